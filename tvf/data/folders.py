"""The folders of a data set: which of them are splits and classes, by their usual names.

Names are compared and listed as the file system has them; messages show them as `printable` does.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tvf.data.entries import (
    BROKEN_LINK,
    FILE,
    FOLDER,
    is_image,
    is_system,
    kind_of,
    kind_of_ending,
    scan,
)
from tvf.data.flat_hints import explain_no_train, explain_unclear, note_flat
from tvf.data.layout_hints import (
    explain_nested,
    explain_unknown,
    has_images,
    shares_class,
    suggestion,
)
from tvf.data.left_out import (
    BROKEN,
    ENDING,
    LOOSE,
    OTHER_FOLDER,
    SPECIAL,
    SYSTEM,
    Tally,
    first_few,
)
from tvf.data.names import note_alike
from tvf.data.pool import PARTS
from tvf.data.split_names import SPLIT_NAMES, split_of
from tvf.errors import InputError
from tvf.files import printable

AUTO, SPLITS, FLAT = LAYOUTS = ("auto", "splits", "flat")


@dataclass(frozen=True)
class Layout:
    """The split folders below `root`, by split, and the names of the class folders in each.

    The classes of a flat data set lie in `root` itself: its only split, train, has the folder "".
    `classes` are those of the training split, ascending. `left_out` counts what lies beside the
    folders, `notes` are what the user should know about their names.
    """

    root: str
    folders: Mapping[str, str]
    classes: tuple[str, ...]
    within: Mapping[str, Sequence[str]]
    left_out: Tally
    notes: tuple[str, ...]

    def path(self, part: str) -> str:
        """The folder of a split."""
        return os.path.join(self.root, self.folders[part])

    def below(self, part: str, name: str) -> str:
        """The path of a class folder of a split, from `root` on."""
        return "/".join(filter(None, [self.folders[part], name]))


def find_layout(root: Path, layout: str = AUTO, grouped: bool = False) -> Layout:
    """Find the split and class folders below `root`, without listing the classes' images.

    `layout`, one of LAYOUTS, says whether `root` holds splits or the classes themselves; "auto"
    finds out. With `grouped`, the folders inside classes are groups of images. Raises InputError
    for folders whose meaning is unclear, and for images without a class.
    """
    left_out = Tally()
    names, loose = _inside(str(root), "", left_out)
    if layout == FLAT:
        return _flat_layout(root, names, left_out, ())
    folders, others = _assign_splits(root, names)
    if "train" not in folders:
        if layout == SPLITS:
            raise InputError(explain_no_train(root, names, loose))
        if unclear := explain_unclear(root, names, loose, grouped):
            raise InputError(unclear)
        return _flat_layout(root, names, left_out, note_flat(root, names, grouped))
    notes = []
    for part, name in folders.items():
        if name.lower() != part:
            notes.append(f"{printable(name)}/ is read as the {part} split")
    if others:
        for name in others:
            left_out.add(OTHER_FOLDER, "", f"{name}/")
        named = [f"{name}/{suggestion(root, name, folders)}" for name in others]
        notes.append(
            f"beside {printable(folders['train'])}/, no split is read from {first_few(named)}"
            + (_IF_FLAT if any(has_images(root / name) for name in others) else "")
        )
    within: dict[str, list[str]] = {}
    for part in (part for part in PARTS if part in folders):
        within[part], loose = _inside(os.path.join(root, folders[part]), folders[part], left_out)
        _require_classes(root, part, folders[part], within, loose)
    notes += note_alike(within["train"], "train/ has classes", "Move their images into one folder")
    return Layout(str(root), folders, tuple(within["train"]), within, left_out, tuple(notes))


_IF_FLAT = "; if all of them are classes, set data.layout=flat"


def _flat_layout(root: Path, names: Sequence[str], left_out: Tally, notes: Sequence[str]) -> Layout:
    """The layout of a data root whose folders are the classes."""
    if len(names) < 2:
        has = f" ({first_few(names)})" if names else ""
        raise InputError(
            f"data.root={printable(root)} has {len(names)} class folders{has}, but must have at "
            "least 2 with data.layout=flat: put the images in <class>/."
        )
    alike = note_alike(names, "data.root has classes", "Move their images into one folder")
    return Layout(
        str(root), {"train": ""}, tuple(names), {"train": names}, left_out, (*notes, *alike)
    )


def _assign_splits(root: Path, names: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The folder of each split, and the folders that are none.

    A split's plain name comes before names that contain it: test/ before test_old/.
    """
    folders: dict[str, str] = {}
    for part in PARTS:
        meant = [name for name in names if split_of(name) == part]
        plain = [name for name in meant if name.casefold() in SPLIT_NAMES]
        if train := folders.get("train"):  # val_logs/ is no split: it has none of the classes
            meant = [name for name in meant if shares_class(root / name, root / train)]
        if len(chosen := plain or meant) > 1:
            raise InputError(
                f"data.root={printable(root)} has several folders for the {part} split: "
                f"{first_few([f'{name}/' for name in chosen])}. Keep one of them there, or name "
                "the others train/, val/ and test/ as they are meant."
            )
        if chosen:
            folders[part] = chosen[0]
    return folders, [name for name in names if name not in folders.values()]


def _inside(folder: str, shown: str, left_out: Tally) -> tuple[list[str], list[str]]:
    """The names of the folders in a folder, ascending, and of the images that lie beside them.

    All other files are counted. A broken link without an image's ending counts as a folder, whose
    user will say that it cannot be read.
    """
    folders, loose = [], []
    prefix = f"{shown}/" if shown else ""
    for entry in scan(folder):
        name, kind = entry.name, kind_of(entry)
        if is_system(name):
            left_out.add(SYSTEM, "", prefix + name)
        elif kind == FOLDER or (kind == BROKEN_LINK and not is_image(name)):
            folders.append(name)
        elif kind != FILE:
            left_out.add(BROKEN if kind == BROKEN_LINK else SPECIAL, "", prefix + name)
        elif is_image(name):
            loose.append(name)
            left_out.add(LOOSE, "", prefix + name)
        else:
            left_out.add(ENDING, kind_of_ending(name), prefix + name)
    return sorted(folders), sorted(loose)


def _require_classes(
    root: Path, part: str, folder: str, within: Mapping[str, Sequence[str]], loose: Sequence[str]
) -> None:
    """Raise InputError unless a split has class folders, and only those of train/."""
    path, train, found = root / folder, within["train"], within[part]
    held, meant = "", "" if folder == part else f" ({folder}/ is read as the {part} split)"
    if loose:
        files = first_few([f"{folder}/{name}" for name in loose], 3)
        held = f" {len(loose):,} images lie in it without a class ({files})."
    if deeper := explain_nested(root, part, folder, within):
        raise InputError(deeper)
    if part == "train" and len(train) < 2:
        has = f" ({first_few(train)})" if train else ""
        raise InputError(
            f"{printable(path)} has {len(train)} class folders{has}, but must have at least 2:"
            f"{held} Put the images in {printable(folder)}/<class>/."
            + (f" If {printable(folder)}/ is a class, set data.layout=flat." if loose else "")
        )
    if loose and not found:
        raise InputError(
            f"{printable(path)} has no class folders{printable(meant)}:{held} Put them in "
            f"{printable(folder)}/<class>/, or move the folder out of data.root to hold out a part "
            "of the training images instead."
        )
    if unknown := [name for name in found if name not in train]:
        raise InputError(
            f"{first_few([path / name for name in unknown])} is a class that train/ does not have"
            f"{printable(meant)}{explain_unknown(unknown[0], train)}"
        )
