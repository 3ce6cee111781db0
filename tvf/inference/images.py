"""What to classify: paths, folders, patterns, lists and arrays, as a list of items to read."""

import glob
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from tvf.data import (
    ENDING,
    ReadingRules,
    Tally,
    convert_image,
    describe_left_out,
    is_image,
    is_system,
    is_usual,
    kind_of_ending,
    read_image,
)
from tvf.errors import InputError
from tvf.files import printable

log = logging.getLogger(__name__)

LIST_ENDINGS = (".txt", ".lst")
STDIN = "-"
NAMED = 10  # missing files in one message


@dataclass(frozen=True)
class Reading:
    """How an image becomes pixels, as in training: see `tvf.data.read_image`."""

    image_size: int
    max_megapixels: float = 100.0
    white_point: int | None = None
    rules: ReadingRules = ReadingRules()

    def read(self, image: Any) -> np.ndarray:
        """Read a path or a PIL image as uint8 [S, S, 3]; InputError if that fails."""
        if isinstance(image, Image.Image):
            return convert_image(image, self.image_size, self.white_point, self.rules)
        return read_image(image, self.image_size, self.max_megapixels, self.white_point, self.rules)


@dataclass(frozen=True)
class Item:
    """An image to classify: its name, its path or PIL image, and its class if that is known."""

    name: str
    image: Any
    label: int | None = None


def list_items(images: Any, classes: Sequence[str] = (), window: bool = False) -> list[Item]:
    """List what `images` names, see `Model.predict`. InputError for what is not there.

    Arrays of other values than 8 and 16 bits are for models with a `window` alone.

    An image in a folder that is called like one of `classes`, below a folder that was given, has
    that class as its label; in folders of two classes, one inside the other, it has none.
    """
    listed = images if isinstance(images, Iterable) and not _is_one(images) else [images]
    items: list[Item] = []
    for each in listed:
        if isinstance(each, np.ndarray | Tensor | Image.Image):
            items += _from_array(each, len(items), window)
        else:
            items += _from_path(each, classes)
    if not items:
        raise InputError("there is no image to classify: name a file, a folder or a pattern.")
    return items


def _is_one(images: Any) -> bool:
    return isinstance(images, str | os.PathLike | np.ndarray | Tensor | Image.Image)


def _from_path(image: Any, classes: Sequence[str]) -> Iterator[Item]:
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
            with open(path, encoding="utf-8-sig", errors="surrogateescape") as lines:
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
    """The images below a folder, in the order of their paths; hidden and system files are not.

    Links are followed, each real folder once. What has the ending of an image that cannot be read
    is counted in a warning.
    """
    places = {name: number for number, name in enumerate(classes)}
    empty, left_out, walked, unclear = True, Tally(), set(), []
    for here, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
        walked.add(os.path.realpath(here))
        folders[:] = sorted(
            name
            for name in folders
            if not is_system(name) and os.path.realpath(os.path.join(here, name)) not in walked
        )
        below = map(printable, os.path.relpath(here, folder).split(os.sep))
        labels = {places[name] for name in below if name in places}
        label = labels.pop() if len(labels) == 1 else None
        if labels and any(map(is_image, files)):
            unclear.append(here)
        for name in sorted(files):
            path = os.path.join(here, name)
            if is_system(name) or not os.path.isfile(path):
                continue
            if is_image(name):
                empty = False
                yield Item(printable(path), path, label)
            else:
                left_out.add(ENDING, kind_of_ending(name), path)
    if empty:
        raise InputError(f"{printable(folder)} has no images.")
    if unclear:
        log.warning(
            "%d folders are called like a class and lie in one of another class, %s for example: "
            "their images are not scored.",
            len(unclear),
            printable(unclear[0]),
        )
    if unusual := [entry for entry in left_out.entries() if not is_usual(entry)]:
        log.warning("left out: %s.", describe_left_out(unusual))


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
            what = " (a folder)" if os.path.isdir(path) or os.path.isdir(beside) else ""
            missing.append(f"line {number}: {printable(path)}{what}")
        else:
            paths.append(Item(printable(path), found))
    if missing:
        more = f" and {len(missing) - NAMED:,} more" if len(missing) > NAMED else ""
        named = "; ".join(missing[:NAMED])
        raise InputError(f"{printable(source)} lists files that do not exist: {named}{more}.")
    if not paths:
        raise InputError(f"{printable(source)} names no files: write one path per line.")
    yield from paths


def _from_array(image: Any, before: int, window: bool) -> Iterator[Item]:
    """The items of an array; `before` is how many there are already."""
    if isinstance(image, Image.Image):
        yield Item(f"image {before}", image)
        return
    given = f"{type(image).__name__} {list(image.shape)} of {image.dtype}"
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        single = image[None] if image.dim() == 3 else image
        array = single.movedim(1, -1).numpy() if single.dim() == 4 else None
    elif image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (3, 4)):
        array = image[None]
    else:
        channels_first = image.ndim >= 3 and image.shape[-3] in (1, 3, 4) and image.shape[-1] > 4
        grey = image.ndim == 3 and image.shape[2] > 4
        array = image if (image.ndim == 4 or grey) and not channels_first else None
    channels = array.shape[3] if array is not None and array.ndim == 4 else 1
    if array is None or channels not in (1, 3, 4):
        raise InputError(
            f"{given} is no image: arrays of NumPy are [H, W], [H, W, 3] or [H, W, 4], tensors of "
            "torch [3, H, W], or a batch of these."
        )
    wide = array.dtype not in (np.uint8, np.uint16)
    if wide and not window:
        raise InputError(
            f"{given}: pixels must be uint8 from 0 to 255 (or uint16). Multiply floats from 0 to 1 "
            "by 255 and convert them."
        )
    if wide and array.dtype.kind not in "fiu":
        raise InputError(f"{given}: pixels must be numbers, for which the model has a window.")
    for number, pixels in enumerate(array):
        if pixels.ndim == 3 and pixels.shape[2] == 1:
            pixels = pixels[:, :, 0]
        if pixels.dtype != np.uint8 and pixels.ndim == 3:
            raise InputError(f"{given}: pixels of other values than 8 bits must be grey, [H, W].")
        if wide:
            pixels = pixels.astype(np.float32)
        yield Item(f"image {before + number}", Image.fromarray(np.ascontiguousarray(pixels)))
