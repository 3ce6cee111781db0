"""Finds the images of every class, at any depth: each real folder and each real file once.

Folders are walked before links are followed, so what lies in a class belongs to it, whatever links
to it. Only links are resolved: plain files cost no system call of their own.
"""

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from tvf.data.entries import (
    FILE,
    FOLDER,
    IMAGE_ENDINGS,
    is_image,
    is_system,
    kind_of_ending,
    scan,
)
from tvf.data.folders import AUTO, Layout, find_layout
from tvf.data.left_out import (
    BROKEN,
    ENDING,
    REPEATED,
    SPECIAL,
    SYSTEM,
    UPWARDS,
    LeftOut,
    Tally,
    describe_left_out,
    first_few,
)
from tvf.data.pool import PARTS
from tvf.errors import InputError
from tvf.files import printable


@dataclass(frozen=True)
class FoundImages:
    """The images below a data root: paths from there, classes, and splits, one of each per image.

    `left_out` counts what was not read, `notes` are what the user should know about folders. Paths
    of a `flat` data set begin with the class, other ones with the split.
    """

    classes: tuple[str, ...]
    names: list[str]
    labels: list[int]
    parts: list[str]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]
    flat: bool


def find_images(root: Path, layout: str = AUTO, grouped: bool = False) -> FoundImages:
    """List the images in the class folders of each split, in the order of their paths.

    `layout` and `grouped` as in `find_layout`. Raises InputError that names the folder or link at
    fault.
    """
    return _list_images(find_layout(root, layout, grouped))


def _list_images(layout: Layout) -> FoundImages:
    found = _Finder(layout).find()
    names: list[str] = []
    labels: list[int] = []
    parts: list[str] = []
    for each in found:
        before = len(names)
        for folder in sorted(each.images):
            names += [f"{folder}/{name}" for name in sorted(each.images[folder])]
        if each.part == "train" and len(names) == before:
            train, name = os.path.split(each.folder)
            raise InputError(
                f"{_shown(layout, train)} has a class folder without images: {printable(name)}"
                f"{_held(each.left_out)}. Add images or remove it."
            )
        labels += [each.label] * (len(names) - before)
        parts += [each.part] * (len(names) - before)
    for part, folder in layout.folders.items():
        if part not in parts:
            tally = Tally()
            for each in found:
                if each.part == part:
                    tally.merge(each.left_out)
            raise InputError(
                f"{_shown(layout, folder)} has no images{_held(tally)}: add some, or remove it to "
                "split off a part of train/ instead."
            )
    for each in found:
        layout.left_out.merge(each.left_out)
    classes = tuple(map(printable, layout.classes))
    return FoundImages(
        classes,
        names,
        labels,
        parts,
        layout.left_out.entries(),
        (*layout.notes, *_note_repeated_classes(layout, found)),
        flat=not layout.folders["train"],
    )


@dataclass
class _ClassImages:
    """The images of one class in one split: file names by folder, both below the data root."""

    part: str
    label: int
    folder: str
    images: dict[str, list[str]] = field(default_factory=dict)
    left_out: Tally = field(default_factory=Tally)


@dataclass(frozen=True)
class _Link:
    """A link `name` in a folder, which is `folder` below the data root and `real` in truth."""

    found: _ClassImages
    folder: str
    real: str
    name: str

    @property
    def path(self) -> str:
        return f"{self.folder}/{self.name}"


class _Finder:
    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._real_root = os.path.realpath(layout.root)
        self._roots: set[str] = set()  # real paths of the data root and the split folders
        self._walked: set[str] = set()  # real paths of the folders whose images are read
        self._read: set[str] = set()  # real paths of linked files
        self._links: list[_Link] = []
        self._real_folders: dict[str, str] = {}  # of links' targets

    def find(self) -> list[_ClassImages]:
        """The images of each class, by split and class."""
        layout, found, linked = self._layout, [], []
        real_parts = {part: os.path.realpath(layout.path(part)) for part in layout.folders}
        self._require_apart(real_parts)
        self._roots = {self._real_root, *real_parts.values()}
        for part in (part for part in PARTS if part in layout.folders):
            present = {*layout.within[part]}
            for label, name in enumerate(layout.classes):
                if name in present:
                    each = _ClassImages(part, label, layout.below(part, name))
                    found.append(each)
                    if os.path.islink(self._path(each.folder)):
                        linked.append(each)
                    else:
                        self._walk(each, each.folder, f"{real_parts[part]}/{name}")
        for each in linked:
            self._walk_linked_class(each, real_parts[each.part])
        self._follow_links()
        return found

    def _walk(self, found: _ClassImages, folder: str, real: str) -> None:
        """Collect the images below a folder; its links are kept for later."""
        pending = [(folder, real)]
        while pending:
            folder, real = pending.pop()
            self._walked.add(real)
            images: list[str] = []
            for entry in scan(self._path(folder)):
                name = entry.name
                if is_system(name):
                    self._leave_out_system(found, folder, entry)
                elif entry.is_symlink():
                    self._links.append(_Link(found, folder, real, name))
                elif entry.is_file(follow_symlinks=False):
                    _, dot, ending = name.rpartition(".")
                    if dot and ending.lower() in IMAGE_ENDINGS:
                        images.append(name)
                    else:
                        found.left_out.add(ENDING, kind_of_ending(name), f"{folder}/{name}")
                elif not entry.is_dir(follow_symlinks=False):
                    found.left_out.add(SPECIAL, "", f"{folder}/{name}")
                elif f"{real}/{name}" in self._walked:
                    found.left_out.add(REPEATED, FOLDER, f"{folder}/{name}")
                else:
                    pending.append((f"{folder}/{name}", f"{real}/{name}"))
            if images:
                found.images[folder] = images

    def _walk_linked_class(self, found: _ClassImages, real_part: str) -> None:
        """Walk a class folder that is a link. A class that cannot be had is an error."""
        target = os.path.realpath(self._path(found.folder))
        shown = _shown(self._layout, found.folder)
        if not os.path.isdir(target):
            raise InputError(
                f"{shown} is a broken link, to {printable(target)}. Mend or remove it."
            )
        if target in self._walked | self._roots or self._leads_upwards(target, real_part):
            raise InputError(
                f"{shown} is a link to {printable(target)}, which is read already or holds what "
                "is: each folder belongs to one class of one split. Remove the link."
            )
        self._walk(found, found.folder, target)

    def _follow_links(self) -> None:
        """Follow links to folders, with those found in there, and then links to files."""
        files: list[tuple[_Link, str]] = []
        while self._links:
            links, self._links = sorted(self._links, key=lambda link: link.path), []
            for link in links:
                self._follow(link, files)
        for link, target in files:
            folder, name = os.path.split(target)
            plain = folder in self._walked and is_image(name) and not is_system(name)
            if plain or target in self._read:
                link.found.left_out.add(REPEATED, FILE, link.path)
            else:
                self._read.add(target)
                link.found.images.setdefault(link.folder, []).append(link.name)

    def _follow(self, link: _Link, files: list[tuple[_Link, str]]) -> None:
        """Walk the folder that a link leads to, or note a link to an image in `files`."""
        left_out = link.found.left_out
        try:
            target, mode = self._resolve(link)
        except OSError:
            left_out.add(BROKEN, "", link.path)
            return
        if stat.S_ISDIR(mode):
            if self._leads_upwards(target, link.real):
                left_out.add(UPWARDS, "", link.path)
            elif target in self._walked or target in self._roots:
                left_out.add(REPEATED, FOLDER, link.path)
            else:
                self._walk(link.found, link.path, target)
        elif not stat.S_ISREG(mode):
            left_out.add(SPECIAL, "", link.path)
        elif is_image(link.name):
            files.append((link, target))
        else:
            left_out.add(ENDING, kind_of_ending(link.name), link.path)

    def _resolve(self, link: _Link) -> tuple[str, int]:
        """The real path that a link leads to, and its mode. Raises OSError if there is nothing.

        Links often lead to many files of one folder, so its real path is kept.
        """
        path = self._path(link.path)
        folder, name = os.path.split(os.path.join(link.real, os.readlink(path)))
        if name not in ("", ".", ".."):
            if folder not in self._real_folders:
                self._real_folders[folder] = os.path.realpath(folder)
            target = os.path.join(self._real_folders[folder], name)
            mode = os.lstat(target).st_mode
            if not stat.S_ISLNK(mode):
                return target, mode
        return os.path.realpath(path), os.stat(path).st_mode

    def _leads_upwards(self, target: str, real: str) -> bool:
        """Whether a link in the folder `real` leads to a folder that holds it or all data."""
        return _holds(target, real) or _holds(target, self._real_root)

    def _require_apart(self, real_parts: dict[str, str]) -> None:
        """Raise InputError if the folder of a split is another's, or holds it, through links."""
        for one, here in real_parts.items():
            for other, there in real_parts.items():
                if one != other and _holds(here, there):
                    names = [f"{printable(self._layout.folders[part])}/" for part in (one, other)]
                    raise InputError(
                        f"{names[0]} and {names[1]} in data.root={printable(self._layout.root)} "
                        f"are one folder, or one holds the other ({printable(here)}): an image "
                        "belongs to one split. Replace the link."
                    )

    def _leave_out_system(
        self, found: _ClassImages, folder: str, entry: "os.DirEntry[str]"
    ) -> None:
        """Count a file that a system has left, or all that is directly in such a folder."""
        path = f"{folder}/{entry.name}"
        if not entry.is_dir(follow_symlinks=False):
            found.left_out.add(SYSTEM, "", path)
            return
        try:
            count = max(1, len(os.listdir(entry.path)))
        except OSError:
            count = 1
        found.left_out.add(SYSTEM, "in a folder", path, count)

    def _path(self, below: str) -> str:
        return f"{self._layout.root}/{below}"


def _note_repeated_classes(layout: Layout, found: list[_ClassImages]) -> list[str]:
    """Name classes that have folders called like other classes, as of an archive unpacked twice."""
    notes = []
    for each in found:
        start = len(each.folder) + 1
        inside = {folder[start:].partition("/")[0] for folder in each.images}
        again = sorted(inside & {*layout.classes} - {layout.classes[each.label]})
        if len(again) > 1:
            notes.append(
                f"{printable(each.folder)}/, which is read as a class, has folders that are called "
                f"like other classes: {first_few(again)}"
            )
    return notes


def _holds(folder: str, other: str) -> bool:
    """Whether a folder is another or holds it, both given by their real paths."""
    return folder == other or other.startswith(folder.rstrip("/") + "/")


def _shown(layout: Layout, below: str) -> str:
    return printable(os.path.join(layout.root, below) if below else layout.root)


def _held(tally: Tally) -> str:
    entries = tally.entries()
    return f", but {describe_left_out(entries)}" if entries else ""
