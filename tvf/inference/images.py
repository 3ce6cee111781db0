"""What to classify: paths, folders, patterns, lists and arrays, as a list of items to read."""

import glob
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from tvf.data import convert_image, is_image, is_system, read_image
from tvf.errors import InputError
from tvf.files import printable

LIST_ENDINGS = (".txt", ".lst")
STDIN = "-"
NAMED = 10  # missing files in one message


@dataclass(frozen=True)
class Reading:
    """How an image becomes pixels, as in training: see `tvf.data.read_image`."""

    image_size: int
    max_megapixels: float = 100.0
    white_point: int | None = None

    def read(self, image: Any) -> np.ndarray:
        """Read a path or a PIL image as uint8 [S, S, 3]; InputError if that fails."""
        if isinstance(image, Image.Image):
            return convert_image(image, self.image_size, self.white_point)
        return read_image(image, self.image_size, self.max_megapixels, self.white_point)


@dataclass(frozen=True)
class Item:
    """An image to classify: its name, its path or PIL image, and its class if that is known."""

    name: str
    image: Any
    label: int | None = None


def list_items(images: Any, classes: Sequence[str] = ()) -> list[Item]:
    """List what `images` names, see `Model.predict`. InputError for what is not there.

    An image in a folder that is called like one of `classes`, below a folder that was given, has
    that class as its label.
    """
    listed = images if isinstance(images, Iterable) and not _is_one(images) else [images]
    items = [item for each in listed for item in _expand(each, classes)]
    if not items:
        raise InputError("there is no image to classify: name a file, a folder or a pattern.")
    return items


def _is_one(images: Any) -> bool:
    return isinstance(images, str | os.PathLike | np.ndarray | Tensor | Image.Image)


def _expand(image: Any, classes: Sequence[str]) -> Iterator[Item]:
    if isinstance(image, np.ndarray | Tensor | Image.Image):
        yield from _from_array(image)
        return
    if not isinstance(image, str | os.PathLike):
        raise InputError(
            f"{type(image).__name__} is no image: name a path, or give an array or a PIL image."
        )
    path = os.path.expanduser(os.fspath(image))
    if path == STDIN:
        yield from _from_lines(sys.stdin, "stdin", "")
    elif os.path.isdir(path):
        yield from _from_folder(path, classes)
    elif os.path.isfile(path):
        if path.lower().endswith(LIST_ENDINGS):
            with open(path, encoding="utf-8", errors="surrogateescape") as lines:
                yield from _from_lines(lines, path, os.path.dirname(path))
        else:
            yield Item(printable(path), path)
    elif glob.has_magic(path):
        found = sorted(file for file in glob.iglob(path, recursive=True) if os.path.isfile(file))
        if not found:
            raise InputError(f"{printable(path)} matches no file.")
        yield from (Item(printable(file), file) for file in found)
    else:
        raise InputError(f"{printable(path)} does not exist.")


def _from_folder(folder: str, classes: Sequence[str]) -> Iterator[Item]:
    """The images below a folder, in the order of their paths; hidden and system files are not."""
    places = {name: number for number, name in enumerate(classes)}
    empty = True
    for here, folders, files in os.walk(folder, onerror=_raise):
        folders[:] = sorted(name for name in folders if not is_system(name))
        below = os.path.relpath(here, folder).split(os.sep)
        label = next((places[printable(name)] for name in below if printable(name) in places), None)
        for name in sorted(files):
            path = os.path.join(here, name)
            if is_image(name) and not is_system(name) and os.path.isfile(path):
                empty = False
                yield Item(printable(path), path, label)
    if empty:
        raise InputError(f"{printable(folder)} has no images.")


def _raise(error: OSError) -> None:
    raise InputError(f"{printable(error.filename)} cannot be read: {error.strerror}.") from error


def _from_lines(lines: Iterable[str], source: str, folder: str) -> Iterator[Item]:
    """One path per line, relative to the working directory or else to the list's folder."""
    paths, missing = [], []
    for number, line in enumerate(lines, 1):
        if not (path := line.rstrip("\r\n")).strip():
            continue
        beside = os.path.join(folder, path)
        found = next((each for each in (path, beside) if os.path.isfile(each)), None)
        if found is None:
            missing.append(f"line {number}: {printable(path)}")
        else:
            paths.append(Item(printable(path), found))
    if missing:
        more = f" and {len(missing) - NAMED:,} more" if len(missing) > NAMED else ""
        named = "; ".join(missing[:NAMED])
        raise InputError(f"{printable(source)} names files that do not exist: {named}{more}.")
    if not paths:
        raise InputError(f"{printable(source)} names no files: write one path per line.")
    yield from paths


def _from_array(image: Any) -> Iterator[Item]:
    if isinstance(image, Image.Image):
        yield Item("image", image)
        return
    given = f"{type(image).__name__} {list(image.shape)} of {image.dtype}"
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        single = image[None] if image.dim() == 3 else image
        array = single.movedim(1, -1).numpy() if single.dim() == 4 else None
    elif image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (3, 4)):
        array = image[None]
    else:
        array = image if image.ndim == 4 or (image.ndim == 3 and image.shape[2] > 4) else None
    channels = array.shape[3] if array is not None and array.ndim == 4 else 1
    if array is None or channels not in (1, 3, 4):
        raise InputError(
            f"{given} is no image: arrays are [H, W], [H, W, 3] or [H, W, 4] (torch: [3, H, W]), "
            "or a batch of these."
        )
    if array.dtype not in (np.uint8, np.uint16):
        raise InputError(
            f"{given}: pixels must be uint8 from 0 to 255 (or uint16). Multiply floats from 0 to 1 "
            "by 255 and convert them."
        )
    for number, pixels in enumerate(array):
        if pixels.ndim == 3 and pixels.shape[2] == 1:
            pixels = pixels[:, :, 0]
        if pixels.dtype == np.uint16 and pixels.ndim == 3:
            raise InputError(f"{given}: pixels of 16 bits must be grey, [H, W].")
        yield Item(f"image {number}", Image.fromarray(np.ascontiguousarray(pixels)))
