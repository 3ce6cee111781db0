"""What the folders of a data set may be meant to be, where it cannot be read as it is."""

import os
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from tvf.data.entries import is_image, is_system
from tvf.data.left_out import first_few
from tvf.data.names import folded, spell_out
from tvf.data.split_names import SPLIT_NAMES, split_of, suggest_split
from tvf.files import printable


def suggestion(root: Path, name: str, folders: Mapping[str, str]) -> str:
    """What to do if a folder that is no split is meant to be one that is missing."""
    part = suggest_split(name)
    if part is None or part in folders or not shares_class(root / name, root / folders["train"]):
        return ""
    return f" (did you mean {part}/?)"


def shares_class(folder: Path, train: Path) -> bool:
    """Whether a folder has a class folder of train/, or images that lack one."""
    try:
        inside = os.listdir(folder)
    except OSError:
        return True  # read later, with an error that names it
    return any(is_image(name) or (train / name).is_dir() for name in inside)


def explain_nested(
    root: Path, part: str, folder: str, within: Mapping[str, Sequence[str]]
) -> str | None:
    """The message for classes that lie one level deeper, as of an archive unpacked in a folder."""
    path, found = root / folder, within[part]
    if part == "train" and found and all(name.casefold() in SPLIT_NAMES for name in found):
        inner = [path / name for name in found if split_of(name) == "train"]
        splits = not any(has_images(path / name) for name in found)
        if inner and splits and len(folders_in(inner[0])) > 1:
            return (
                f"{printable(path)} holds splits, not classes ({first_few(found)}): set "
                f"data.root={printable(path)}, or move what is in {printable(inner[0])} up to "
                f"{printable(path)}."
            )
    if len(found) != 1 or has_images(path / found[0]):
        return None
    classes, known = folders_in(path / found[0]), {*within["train"]}
    if len(classes) > 1 if part == "train" else found[0] not in known and known & {*classes}:
        return (
            f"{printable(path)} has a single folder, {printable(found[0])}/, which has the classes "
            f"in it ({first_few(classes)}): move them up to {printable(path)}."
        )
    return None


def folders_in(folder: Path) -> list[str]:
    """The names of the folders in a folder, ascending, without those of systems."""
    try:
        with os.scandir(folder) as entries:
            return sorted(e.name for e in entries if e.is_dir() and not is_system(e.name))
    except OSError:  # read later, with an error that names it
        return []


def has_images(folder: Path) -> bool:
    """Whether a folder has images in it, not counting those in its own folders."""
    try:
        return any(map(is_image, os.listdir(folder)))
    except OSError:
        return True


def explain_unknown(name: str, train: Sequence[str]) -> str:
    """Why a class of another split is none of train/, as the end of a sentence that names it."""
    for form in ("NFC", "NFD"):
        if (same := unicodedata.normalize(form, name)) in train and same != name:
            return (
                f": the names look alike, but train/ has it in Unicode form {form} "
                f"({spell_out(same)}), and this one is {spell_out(name)}. Rename one of them."
            )
    for other in train:
        if folded(other) == folded(name):
            return (
                f": train/ has {printable(other)} ({spell_out(other)}, and this one is "
                f"{spell_out(name)}). Rename one of them."
            )
    return f": it must be one of {first_few(train)}."
