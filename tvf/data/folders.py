"""The folders of a data set: which of them are splits and classes, by their usual names.

Names are compared and listed as the file system has them; messages show them as `printable` does.
"""

import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

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
from tvf.data.pool import PARTS
from tvf.errors import InputError
from tvf.files import printable

# What Pillow can open. Left out are its formats that only a plug-in or another program can decode
# (.eps, .wmf, .h5, ...): what they are read as would depend on the machine.
IMAGE_ENDINGS = frozenset(
    "apng avif avifs blp bmp bw cur dcx dds dib fit fits flc fli ftc ftu gbr gif icb icns ico im "
    "j2c j2k jfi jfif jif jp2 jpc jpe jpeg jpf jpg jpx mpo msp pbm pcd pcx pfm pgm pjp pjpeg png "
    "pnm ppm psd pxr qoi ras rgb rgba sgi tga tif tiff vda vst webp xbm xpm".split()
)
# The names of splits in Hugging Face datasets, Keras, Ultralytics, fastai, COCO, Kaggle and others.
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "validate": "val",
    "dev": "val",
    "development": "val",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
# Words that are written next to them: training_set, testImages, ValData.
_BESIDE = re.compile("^(images?|imgs?|data|set)|(images?|imgs?|data|dataset|set|split|folder)$")
# What systems and programs leave in folders, in lower case. Names that begin with a dot are hidden.
SYSTEM_NAMES = frozenset(
    "__macosx|__pycache__|@eadir|@tmp|@recycle|@recently-snapshot|#recycle|#snapshot|~snapshot|"
    "$recycle.bin|system volume information|found.000|lost+found|thumbs.db|"
    "ehthumbs.db|ehthumbs_vista.db|desktop.ini|folder.ini|icon\r|network trash folder|"
    "temporary items|_vti_cnf".split("|")
)
LONGEST_ENDING = 12
FOLDER, FILE, SPECIAL_FILE, BROKEN_LINK = "folder", "file", "special file", "broken link"


def is_system(name: str) -> bool:
    """Whether a name is hidden (it begins with a dot), or one that systems leave in folders."""
    return name.startswith((".", "~$")) or name.lower() in SYSTEM_NAMES


def ending_of(name: str) -> str:
    """What follows the last dot of a name, in lower case; empty if there is no dot."""
    _, dot, ending = name.rpartition(".")
    return ending.lower() if dot else ""


def is_image(name: str) -> bool:
    """Whether a file's name has the ending of an image."""
    return ending_of(name) in IMAGE_ENDINGS


def kind_of_ending(name: str) -> str:
    """A file's ending as it is counted; numbers and long words are none."""
    ending = ending_of(name)
    if not ending or ending.isdecimal() or len(ending) > LONGEST_ENDING:
        return "without ending"
    return f".{ending}"


def kind_of(entry: "os.DirEntry[str]") -> str:
    """What an entry is, or what it links to: a folder, a file, something else, or nothing."""
    try:
        if entry.is_dir():
            return FOLDER
        if entry.is_file():
            return FILE
        os.stat(entry.path)
        return SPECIAL_FILE
    except OSError:
        return BROKEN_LINK


def scan(folder: str) -> list[os.DirEntry[str]]:
    """The entries of a folder; InputError if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise InputError(
            f"{printable(folder)} cannot be read: {error.strerror}. Make it readable or remove it."
        ) from error


@dataclass(frozen=True)
class Layout:
    """The split folders below `root`, by split, and the names of the class folders in each.

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


def find_layout(root: Path) -> Layout:
    """Find the split and class folders below `root`, without listing the classes' images.

    Raises InputError for folders whose meaning is unclear, and for images without a class.
    """
    left_out = Tally()
    names, loose = _inside(str(root), "", left_out)
    folders, others = _assign_splits(root, names)
    if "train" not in folders:
        raise InputError(_explain_no_train(root, names, loose))
    notes = []
    for part, name in folders.items():
        if name.lower() != part:
            notes.append(f"{printable(name)}/ is read as the {part} split")
    if others:
        for name in others:
            left_out.add(OTHER_FOLDER, "", f"{name}/")
        notes.append(
            f"beside {printable(folders['train'])}/, no split is read from "
            f"{first_few([f'{name}/' for name in others])}"
        )
    within: dict[str, list[str]] = {}
    for part in (part for part in PARTS if part in folders):
        within[part], loose = _inside(os.path.join(root, folders[part]), folders[part], left_out)
        _require_classes(root, part, folders[part], within, loose)
    notes += _alike(within["train"])
    return Layout(str(root), folders, tuple(within["train"]), within, left_out, tuple(notes))


def split_of(name: str) -> str | None:
    """The split that a folder's name means: valid, VAL, val_images or val2017 mean val.

    None if it means none, or several.
    """
    words = re.split(r"[^a-z]+", name.casefold())
    parts = {SPLIT_NAMES.get(word) or SPLIT_NAMES.get(_BESIDE.sub("", word)) for word in words}
    parts.discard(None)
    return parts.pop() if len(parts) == 1 else None


def _assign_splits(root: Path, names: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The folder of each split, and the folders that are none.

    A split's plain name comes before names that contain it: test/ before test_old/.
    """
    folders: dict[str, str] = {}
    for part in PARTS:
        meant = [name for name in names if split_of(name) == part]
        plain = [name for name in meant if name.casefold() in SPLIT_NAMES]
        if train := folders.get("train"):  # val_logs/ is no split: it has none of the classes
            meant = [name for name in meant if _shares_class(root / name, root / train)]
        if len(chosen := plain or meant) > 1:
            raise InputError(
                f"data.root={printable(root)} has several folders for the {part} split: "
                f"{first_few([f'{name}/' for name in chosen])}. Keep one of them there, or name "
                "the others train/, val/ and test/ as they are meant."
            )
        if chosen:
            folders[part] = chosen[0]
    return folders, [name for name in names if name not in folders.values()]


def _shares_class(folder: Path, train: Path) -> bool:
    """Whether a folder has a class folder of train/, or images that lack one."""
    try:
        inside = os.listdir(folder)
    except OSError:
        return True  # read later, with an error that names it
    return any(is_image(name) or (train / name).is_dir() for name in inside)


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
    if part == "train" and len(train) < 2:
        has = f" ({first_few(train)})" if train else ""
        raise InputError(
            f"{printable(path)} has {len(train)} class folders{has}, but must have at least 2:"
            f"{held} Put the images in {printable(folder)}/<class>/."
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
            f"{printable(meant)}{_explain_unknown(unknown[0], train)}"
        )


def _explain_unknown(name: str, train: Sequence[str]) -> str:
    for form in ("NFC", "NFD"):
        if (same := unicodedata.normalize(form, name)) in train and same != name:
            return (
                f": the names look alike, but train/ has it in Unicode form {form} "
                f"({_spell_out(same)}), and this one is {_spell_out(name)}. Rename one of them."
            )
    for other in train:
        if _folded(other) == _folded(name):
            return (
                f": train/ has {printable(other)} ({_spell_out(other)}, and this one is "
                f"{_spell_out(name)}). Rename one of them."
            )
    return f": it must be one of {first_few(train)}."


def _alike(classes: Iterable[str]) -> list[str]:
    """Notes about classes that look alike; InputError if they look the same."""
    shapes: dict[str, list[str]] = {}
    for name in classes:
        shapes.setdefault(_folded(name), []).append(name)
    notes = []
    for names in shapes.values():
        forms = {unicodedata.normalize("NFC", name) for name in names}
        if len(forms) < len(names):
            spelled = " and ".join(map(_spell_out, names))
            raise InputError(
                f"train/ has classes whose names look the same, in different Unicode forms: "
                f"{spelled}. Move their images into one folder, or rename one of them."
            )
        if len(names) > 1:
            notes.append(f"classes differ in case or spaces alone: {first_few(names)}")
    return notes


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold().strip()


def _spell_out(name: str) -> str:
    return ascii(name)


def _explain_no_train(root: Path, names: Sequence[str], loose: Sequence[str]) -> str:
    """The message for a data root without a training split: what it has instead."""
    held = [f"{name}/" for name in names] + list(loose)
    has = f" It has {first_few(held)}." if held else ""
    nested = [name for name in names if _has_train(root / name)]
    if len(nested) > 1:
        has = f" {first_few([f'{name}/' for name in nested])} have one each: put the split first."
    elif nested:
        has = (
            f" Its folder {printable(nested[0])}/ has one: data.root={printable(root / nested[0])}."
        )
    return (
        f"data.root={printable(root)} has no train/ folder: put the images in train/<class>/.{has}"
    )


def _has_train(folder: Path) -> bool:
    try:
        return any(split_of(entry.name) == "train" and entry.is_dir() for entry in folder.iterdir())
    except OSError:
        return False
