"""The images that a table lists, checked row by row: all mistakes are found before any is read."""

import difflib
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from tvf.data.listed import ListedImages
from tvf.data.names import note_alike
from tvf.data.pool import PARTS
from tvf.data.split_names import split_of
from tvf.data.table_columns import Columns, choose_columns
from tvf.data.table_file import read_header, read_rows, row_word
from tvf.data.table_notes import note_equal_numbers, note_missing, note_split_folders
from tvf.errors import InputError
from tvf.files import printable

NAMED = 5  # rows of each kind of mistake in a message
LIKELY_ENDINGS = (".jpg", ".png", ".jpeg", ".tif", ".bmp", ".webp", ".JPG", ".PNG", ".JPEG")


@dataclass(frozen=True)
class TableOptions:
    """Where a table is, where its images are, and which columns it has: see `ImageTable`."""

    path: str
    root: str | None
    ending: str
    columns: tuple[tuple[str, str | None], ...]


def list_table(options: TableOptions) -> ListedImages:
    """List the images of a table. Raises InputError that names its faulty lines, and counts them.

    A table that has not changed is not read again by the same process.
    """
    try:
        status = os.stat(options.path)
    except OSError as error:
        raise InputError(f"{printable(options.path)} cannot be read: {error.strerror}.") from error
    return _list_table(options, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=2)
def _list_table(options: TableOptions, _changed: int, _size: int) -> ListedImages:
    path = Path(options.path)
    columns = choose_columns(printable(path), read_header(path), dict(options.columns))
    reader = _Reader(options, columns)
    for number, cells in read_rows(path, list(columns.names.values())):
        reader.add(number, cells)
    return reader.finish()


@dataclass
class _Faults:
    """Mistakes by their kind: how many there are, and the first of them in words."""

    word: str
    counts: Counter[str] = field(default_factory=Counter)
    named: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, number: int, detail: str = "") -> None:
        self.counts[kind] += 1
        named = self.named.setdefault(kind, [])
        if len(named) < NAMED:
            named.append(f"{self.word} {number}" + (f": {printable(detail)}" if detail else ""))

    def describe(self) -> str:
        parts = []
        for kind, count in self.counts.items():
            more = f"; and {count - NAMED:,} more" if count > NAMED else ""
            parts.append(f"{count:,} {kind} ({'; '.join(self.named[kind])}{more})")
        return ", ".join(parts)


@dataclass(frozen=True)
class _Image:
    number: int
    name: str
    file: str
    values: Mapping[str, str]


class _Reader:
    """Collects rows, one image each, and what is wrong with them."""

    def __init__(self, options: TableOptions, columns: Columns) -> None:
        self._options, self._columns = options, columns
        self._root = options.root or os.path.dirname(options.path) or "."
        self._images: dict[str, _Image] = {}  # by their real paths
        self._faults = _Faults(row_word(Path(options.path)))
        self._real_folders: dict[str, str] = {}
        self._rows = self._repeated = self._backslashes = 0
        self._missing: list[str] = []
        self._renamed: dict[str, str] = {}

    def add(self, number: int, cells: tuple[str, ...] | None) -> None:
        """Add a row, given by its number and its cells in the chosen columns."""
        self._rows += 1
        if cells is None:
            self._faults.add("rows that do not fit the header", number)
            return
        values = dict(zip(self._columns.names, cells, strict=True))
        if empty := [what for what, value in values.items() if not value]:
            for what in empty:
                self._faults.add(f"rows without {what}", number, values["image"])
            return
        if "split" in values:
            values["split"] = self._split_of(number, values["split"])
        if "weight" in values:
            values["weight"] = self._weight_of(number, values["weight"])
        name = values.pop("image") + self._options.ending
        file = self._find(number, name)
        real = self._resolve(file)
        if (known := self._images.get(real)) is None:
            self._images[real] = _Image(number, name, file, values)
            return
        self._repeated += 1
        for what, value in values.items():
            if known.values[what] != value:
                detail = f"{name} is {value}, in {self._faults.word} {known.number} "
                self._faults.add(f"images with two {what}s", number, detail + known.values[what])
        if name < known.name:  # whichever row is the first
            self._images[real] = _Image(known.number, name, file, values)

    def finish(self) -> ListedImages:
        """The images, if nothing is wrong with them; InputError otherwise."""
        table = printable(self._options.path)
        if not self._rows:
            raise InputError(f"{table} has no rows: it must have one for each image.")
        images = list(self._images.values())
        classes = sorted({image.values["label"] for image in images})
        self._check_labels(images)
        if self._faults.counts:
            raise InputError(
                f"{table} has mistakes: {self._faults.describe()}. Correct or remove these "
                f"{self._faults.word}s.{self._hints(len(classes))}"
            )
        if len(classes) < 2:
            raise InputError(
                f"{table} has 1 class, {printable(classes[0])}, but must have 2 or more."
            )
        images.sort(key=lambda image: image.name)  # a division does not depend on the rows' order
        places = {name: number for number, name in enumerate(classes)}
        groups = None
        if "group" in self._columns.names:
            keys = [image.values["group"] for image in images]
            numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
            groups = np.array([numbers[key] for key in keys])
        return ListedImages(
            classes=tuple(map(printable, classes)),
            names=[printable(image.name) for image in images],
            files=[image.file for image in images],
            labels=np.array([places[image.values["label"]] for image in images]),
            parts=(
                np.array([image.values["split"] for image in images])
                if "split" in self._columns.names
                else None
            ),
            groups=groups,
            weights=self._weights(images),
            notes=(*self._columns.notes, *self._notes(classes, images)),
        )

    def _split_of(self, number: int, value: str) -> str:
        part = split_of(value)
        if part is None:
            self._faults.add("unknown splits", number, value)
            return value
        if value.casefold() != part:
            self._renamed[value] = part
        return part

    def _weight_of(self, number: int, value: str) -> str:
        """A weight, in one form for equal ones."""
        try:
            weight = float("nan" if "_" in value else value)
        except ValueError:
            weight = math.nan
        if math.isfinite(weight) and weight >= 0:
            return repr(weight + 0.0)  # -0 is 0
        self._faults.add("weights that are not numbers of at least 0", number, value)
        return value

    def _find(self, number: int, name: str) -> str:
        """The path of an image, which is counted if it is missing."""
        file = os.path.join(self._root, name)
        if os.path.isfile(file):
            return file
        slashed = os.path.join(self._root, name.replace("\\", "/"))
        if "\\" in name and os.path.isfile(slashed):
            self._backslashes += 1
            return slashed
        self._missing.append(file)
        self._faults.add("folders" if os.path.isdir(file) else "missing files", number, name)
        return file

    def _resolve(self, file: str) -> str:
        """The path of a file without links; that of a folder is resolved once."""
        if os.path.islink(file):
            return os.path.realpath(file)
        folder, name = os.path.split(file)
        if folder not in self._real_folders:
            self._real_folders[folder] = os.path.realpath(folder)
        return os.path.join(self._real_folders[folder], name)

    def _check_labels(self, images: Sequence[_Image]) -> None:
        """Count labels that occur once, and those that no training image has."""
        counts = Counter(image.values["label"] for image in images)
        several = [label for label, count in counts.items() if count > 1]
        trained = {
            image.values["label"]
            for image in images
            if image.values.get("split", "train") == "train"
        }
        once = "labels that occur once"
        for image in images:
            label = image.values["label"]
            if counts[label] == 1:
                near = []
                if len(several) < 1000 and self._faults.counts[once] < NAMED:  # it takes long
                    near = difflib.get_close_matches(label, several, n=1)
                hint = f" (did you mean {near[0]}?)" if near else ""
                self._faults.add(once, image.number, label + hint)
            elif label not in trained and image.values["split"] in PARTS:
                trained.add(label)  # named once
                self._faults.add("labels without training images", image.number, label)

    def _weights(self, images: Sequence[_Image]) -> np.ndarray | None:
        """The weight of each image, if there are any; InputError if none is left to train on."""
        if "weight" not in self._columns.names:
            return None
        weights = np.array([float(image.values["weight"]) for image in images])
        pairs = zip(images, weights, strict=True)
        if not any(
            weight for each, weight in pairs if each.values.get("split", "train") == "train"
        ):
            raise InputError(
                f"{printable(self._options.path)}: all weights of images to train on are 0 in "
                f"column {printable(self._columns.names['weight'])}, so nothing can be learnt: "
                "correct them; data.weight_column=null ignores the column."
            )
        return weights

    def _hints(self, classes: int) -> str:
        hints = []
        if self._missing:
            hints.append(f"Paths begin in {printable(self._root)}: data.root= changes that.")
            found = [each for each in LIKELY_ENDINGS if os.path.isfile(self._missing[0] + each)]
            if found:
                hints.append(f"data.ending={found[0]} is added to all paths.")
        if self._faults.counts["unknown splits"]:
            hints.append(
                f"A split must be one of {', '.join(PARTS)}, or of their usual names; "
                "data.split_column=null ignores the column."
            )
        if any("weight" in kind for kind in self._faults.counts):
            hints.append("data.weight_column=null ignores the weights.")
        if self._faults.counts["labels that occur once"] > max(2, classes / 2):
            column = printable(self._columns.names["label"])
            hints.append(f"If column {column} is not the class: data.label_column= names another.")
        return "".join(f" {hint}" for hint in hints)

    def _notes(self, classes: Sequence[str], images: Sequence[_Image]) -> list[str]:
        notes = []
        for value, part in self._renamed.items():
            notes.append(f"split {printable(value)} is read as {part}")
        if self._repeated:
            notes.append(f"{self._repeated:,} rows repeat an image, which is read once")
        if self._backslashes:
            notes.append(f"\\ is read as / in {self._backslashes:,} paths")
        if "split" not in self._columns.names and dict(self._options.columns)["split"] is not None:
            notes += note_split_folders([image.name for image in images])
        notes += note_missing("label", classes)
        if "group" in self._columns.names:
            notes += note_missing("group", (image.values["group"] for image in images))
        notes += note_equal_numbers(classes)
        table = f"{printable(self._options.path)} has labels"
        return notes + note_alike(classes, table, "Give their images one label")
