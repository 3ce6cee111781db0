"""The rows of a Hugging Face data set: which columns hold what, images and their labels."""

import errno
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np

from tvf.data.encoded import EncodedImage
from tvf.data.hf_columns import choose_hf_columns, type_of
from tvf.data.hf_dataset import HfSplits, import_datasets
from tvf.data.left_out import LeftOut, first_few
from tvf.data.listed import ListedImages
from tvf.data.names import note_alike
from tvf.data.pool import PARTS
from tvf.data.split_names import split_of
from tvf.data.table_columns import Columns
from tvf.data.table_notes import note_equal_numbers, note_missing
from tvf.errors import InputError
from tvf.files import printable

NO_LABEL = "rows without a label"
NAMED = 5  # rows in a message


@dataclass(frozen=True)
class _Row:
    where: str
    name: str
    file: EncodedImage
    part: str
    split: Any
    label: Any
    group: Any
    weight: Any


def list_rows(path: str, splits: HfSplits, given: Mapping[str, str | None]) -> ListedImages:
    """List the images; `given` names the columns as `choose_columns` takes them.

    A column of splits is for a single data set. Raises InputError that names the column, split or
    rows at fault. What `open_splits` has not opened anew is not listed again by the same process.
    """
    return _list_rows(path, splits, tuple(given.items()))


@lru_cache(maxsize=2)
def _list_rows(
    path: str, splits: HfSplits, given: tuple[tuple[str, str | None], ...]
) -> ListedImages:
    path = printable(path)
    train = next(name for name, part in splits.parts.items() if part in ("train", ""))
    features = splits.datasets[train].features
    columns = choose_hf_columns(path, features, dict(given), len(splits.datasets) > 1)
    kinds = {name: features[name] for name in columns.names.values()}
    rows: list[_Row] = []
    left_out, notes = [], [*splits.notes, *columns.notes]
    for name, dataset in splits.datasets.items():
        _require_alike(path, name, dataset, kinds)
        listed = list(_rows_of(path, name, dataset, columns, splits.parts[name]))
        kept = [row for row in listed if not _is_missing(row.label)]
        if len(kept) < len(listed):
            first = next(row for row in listed if _is_missing(row.label)).where
            left_out.append(LeftOut(NO_LABEL, printable(name), len(listed) - len(kept), first))
        if listed and not kept and splits.parts[name] not in ("train", ""):
            notes.append(f"no row of {printable(name)} has a label, so it is not used")
        rows += kept
    if "split" in columns.names:
        rows = _assign_splits(path, rows, notes)
    classes = _classes(path, kinds[columns.names["label"]], rows, notes)
    places = {label: number for number, label in enumerate(classes)}
    parts = np.array([row.part for row in rows])
    names = tuple(printable(label) for label in classes)
    if all(isinstance(row.label, str) for row in rows):
        notes += note_missing("label", names) + note_equal_numbers(names)
    notes += note_alike(names, f"{path} has labels", "Give their images one label")
    return ListedImages(
        classes=names,
        names=[row.name for row in rows],
        files=[row.file for row in rows],
        labels=np.array([places[str(row.label)] for row in rows], np.int64),
        parts=None if not parts.any() else parts,
        groups=_groups(path, rows) if "group" in columns.names else None,
        weights=_weights(path, rows) if "weight" in columns.names else None,
        left_out=tuple(left_out),
        notes=tuple(notes),
    )


def _require_alike(path: str, name: str, dataset: Any, kinds: Mapping[str, Any]) -> None:
    for column, kind in kinds.items():
        found = dataset.features.get(column)
        if type(found) is not type(kind) or type_of(found) != type_of(kind):
            has = "no such column" if found is None else f"{type_of(found)} there"
            raise InputError(
                f"{path}: column {printable(column)} is {type_of(kind)}, but split "
                f"{printable(name)} has {has}. Save all splits with the same columns."
            )


def _rows_of(path: str, name: str, dataset: Any, columns: Columns, part: str) -> Any:
    """The rows of a split, without reading an image."""
    kinds = import_datasets()
    dataset = dataset.with_format(None)
    image = columns.names["image"]
    files = dataset.select_columns([image]).cast_column(image, kinds.Image(decode=False))
    others = {what: column for what, column in columns.names.items() if what != "image"}
    values = dataset.select_columns([*dict.fromkeys(others.values())])[:]
    named = _paths(files, image)
    changed = max((_time_of(each["filename"]) for each in dataset.cache_files), default=math.inf)
    naming, splitting = (
        _labels(path, dataset.features[others.get(what, others["label"])])
        for what in ("label", "split")
    )
    for row in range(len(dataset)):
        where = f"{printable(name) or 'row'}[{row}]"
        load = partial(_load, files, image, row)
        cells = {what: values[column][row] for what, column in others.items()}
        yield _Row(
            where=where,
            name=printable("/".join(filter(None, [name, named[row] if named else str(row)]))),
            file=EncodedImage(f"{path}/{where}", load, changed),
            part=part,
            split=splitting(cells["split"], where) if "split" in cells else None,
            label=naming(cells["label"], where),
            group=cells.get("group"),
            weight=cells.get("weight"),
        )


def _paths(files: Any, image: str) -> list[str] | None:
    """The name of each image's file, if all are known and differ."""
    paths = files.flatten().select_columns([f"{image}.path"])[:][f"{image}.path"]
    names = [os.path.basename(path) for path in paths if path]
    return names if len({*names}) == len(paths) else None


def _time_of(file: str) -> float:
    try:
        status = os.stat(file)
    except OSError:
        return math.inf
    return max(status.st_mtime, status.st_ctime)


def _load(files: Any, image: str, row: int) -> bytes:
    """The bytes of an image; of one that is kept in a file of its own, from there."""
    try:
        cell = files[row][image]
    except Exception as error:  # pyarrow has kinds of its own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise OSError(errno.EIO, reason) from error
    if cell is None or (cell["bytes"] is None and not cell["path"]):
        raise OSError(errno.ENODATA, "it has no image")
    if cell["bytes"] is not None:
        return cell["bytes"]
    if not os.path.isfile(cell["path"]):  # nothing is downloaded
        raise OSError(errno.ENOENT, f"its image is in {printable(cell['path'])}, which is no file")
    with open(cell["path"], "rb") as file:
        return file.read()


def _labels(path: str, kind: Any) -> Callable[[Any, str], Any]:
    """What turns the value of a row, given where it is, into its label; None for no label."""
    if type(kind).__name__ != "ClassLabel":
        return lambda value, where: value.strip() if isinstance(value, str) else value
    names = list(kind.names)

    def name_of(value: Any, where: str) -> Any:
        """The class name of a ClassLabel's number; None for a missing one."""
        if value is None or value == -1:
            return None
        if not 0 <= value < len(names):
            raise InputError(
                f"{path}, {where}: class number {value} has no name, there are {len(names)}: "
                "correct its ClassLabel."
            )
        return names[value]

    return name_of


def _assign_splits(path: str, rows: Sequence[_Row], notes: list[str]) -> list[_Row]:
    """The rows in the splits that their column says, by the usual names."""
    names = ["" if row.split is None else str(row.split) for row in rows]
    parts = {name: split_of(name) for name in dict.fromkeys(names)}
    pairs = [*zip(rows, names, strict=True)]
    if unknown := [f"{row.where}: {name or 'empty'}" for row, name in pairs if not parts[name]]:
        raise InputError(
            f"{path} has {len(unknown):,} rows whose split is none of {', '.join(PARTS)}, nor a "
            f"usual name of them ({first_few(unknown, NAMED)}): correct them; "
            "data.split_column=null ignores the column."
        )
    notes += [
        f"split {printable(name)} is read as {part}"
        for name, part in parts.items()
        if name.casefold() not in (part, "validation")
    ]
    return [replace(row, part=parts[name]) for row, name in pairs]


def _is_missing(label: Any) -> bool:
    return label is None or label == ""


def _classes(path: str, kind: Any, rows: Sequence[_Row], notes: list[str]) -> list[str]:
    """The classes in their order: of ClassLabel, of numbers, or of text."""
    found = {row.label for row in rows}
    if type(kind).__name__ == "ClassLabel":
        if len({*kind.names}) < len(kind.names):
            raise InputError(f"{path}: two classes of its ClassLabel have the same name.")
        classes = [name for name in kind.names if name in found]
        classes += sorted(found - {*classes})  # of other splits
        if unused := [name for name in kind.names if name not in found]:
            notes.append(f"classes without images are left out: {first_few(unused)}")
    else:
        classes = sorted(found)
        if -1 in found:
            notes.append("label -1 is read as a class: it may mean a missing label")
    if len(classes) < 2:
        have = f" ({first_few(classes)})" if classes else ""
        raise InputError(
            f"{path} has {len(classes)} classes with images{have}, but must have 2 or more."
        )
    trained = {row.label for row in rows if row.part in ("train", "")}
    if unknown := [label for label in classes if label not in trained]:
        where = next(row.where for row in rows if row.label == unknown[0])
        raise InputError(
            f"{path} has classes without images to train on: {first_few(unknown)} ({where} for "
            "example). Remove their rows, or add images."
        )
    return [str(label) for label in classes]


def _groups(path: str, rows: Sequence[_Row]) -> np.ndarray:
    keys = [None if row.group is None else str(row.group).strip() for row in rows]
    _refuse(path, "without group", [row for row, key in zip(rows, keys, strict=True) if not key])
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([numbers[key] for key in keys], np.int64)


def _weights(path: str, rows: Sequence[_Row]) -> np.ndarray:
    def is_weight(value: Any) -> bool:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and math.isfinite(value) and value >= 0

    wrong = [row for row in rows if not is_weight(row.weight)]
    _refuse(path, "whose weight is no number of at least 0", wrong)
    weights = np.array([row.weight for row in rows], np.float64)
    if not weights[[row.part in ("train", "") for row in rows]].any():
        raise InputError(
            f"{path}: all weights of images to train on are 0, so nothing can be learnt: correct "
            "them; data.weight_column=null ignores the column."
        )
    return weights


def _refuse(path: str, fault: str, rows: Sequence[_Row]) -> None:
    if rows:
        where = first_few([row.where for row in rows], NAMED)
        raise InputError(
            f"{path} has {len(rows):,} rows {fault} ({where}): correct or remove them."
        )
