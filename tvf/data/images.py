"""Reads image files into a uint8 tensor: decoded, turned upright, made square, resized.

Decoding runs in threads; with a store each set of files is decoded once, for all jobs.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import PIL
import psutil
import torch
from PIL import Image
from PIL.ImageFile import ImageFile as OpenedImage
from torch import Tensor

from tvf.data.bad_images import BadImageError, explain_bad, naming, without_pillow_limit
from tvf.data.bands import TooLargeError, read_bands, require_numbers, show_bands
from tvf.data.decoded import ImageFiles
from tvf.data.digests import digest_files
from tvf.data.encoded import ImageFile, openable
from tvf.data.pool import Pixels, digest_pixels
from tvf.data.ranges import WINDOW_QUANTILES, WINDOWED
from tvf.data.rules import ReadingRules, turn_upright
from tvf.data.shades import convert_to_8_bits, read_values, show_in_8_bits
from tvf.errors import InputError
from tvf.memory import return_freed_memory, return_large_blocks
from tvf.progress import progress_bar
from tvf.store import ArraySpec, Store, StoreError, fingerprint, format_bytes

log = logging.getLogger(__name__)

DECODER_VERSION = 5  # increase it when `read_image` returns different pixels
IN_MEMORY = 2**29  # bytes of images that are kept in a job's memory if there is no store
COLUMNS = {"images": 0, "descriptions": 1}  # of `_read_rows`, from which on
MANY = 50_000  # images from which on memory must not fall into pieces while they are decoded
MOST_MEGAPIXELS = 100.0
CHUNK_SIZE = 256  # images decoded per step of the progress bar
DEFAULT_RULES = ReadingRules()


def read_images(
    files: Sequence[ImageFile],
    image_size: int,
    *,
    max_megapixels: float = MOST_MEGAPIXELS,
    white_point: int | None = None,
    rules: ReadingRules = DEFAULT_RULES,
    progress: bool = False,
    store: Store | None = None,
) -> Pixels:
    """Read images as uint8 [N, 3, image_size, image_size]: RGB, by default the centre square.

    See `read_image`. A store keeps the pixels until the content of the files or an option changes.
    Raises InputError that names the first files that cannot be read or have more than
    `max_megapixels` (checked before they are decoded), and says how many there are.
    """
    reader = _Reader(files, image_size, max_megapixels, white_point, rules)
    try:
        return reader.read("reading images" if progress else None, store)
    except BadImageError as error:
        raise explain_bad(files, reader.read_one, error) from error


def read_image(
    file: ImageFile,
    image_size: int,
    max_megapixels: float = MOST_MEGAPIXELS,
    white_point: int | None = None,
    rules: ReadingRules = DEFAULT_RULES,
) -> np.ndarray:
    """Read one image as uint8 [image_size, image_size, 3], as a viewer shows it.

    That is the first frame, upright, with transparency on white, made square as `rules` say.
    `white_point` is the value that becomes white, by default the largest of the file's bits: one
    above 255 is for images of 16 bits alone. Raises InputError that names the file, whatever Pillow
    raises for it.
    """
    return _read_with_range(file, image_size, max_megapixels, white_point, rules)[0]


def convert_image(
    image: Image.Image,
    image_size: int,
    white_point: int | None = None,
    rules: ReadingRules = DEFAULT_RULES,
) -> np.ndarray:
    """Like `read_image`, for an image in memory; of colours of 16 bits, Pillow has 8 there.

    One that Pillow has opened but not loaded is read from its file.
    """
    name, unread = getattr(image, "filename", ""), getattr(image, "tile", [])
    if name and unread and os.path.isfile(name):
        return read_image(name, image_size, white_point=white_point, rules=rules)
    if rules.bands:
        raise InputError(
            f"the image cannot be used: bands {list(rules.bands)} are read from TIFF files, by "
            "their paths."
        )
    try:
        image.load()
        shown = show_in_8_bits(image, white_point, rules.window)
        scaled = rules.scale(turn_upright(shown, image), image_size)
        return np.asarray(rules.fill(scaled, image_size))
    except Exception as error:  # Pillow raises anything for a damaged file
        raise InputError(f"the image cannot be used: {error}.") from error


def check_memory(count: int, image_size: int) -> None:
    """Raise InputError if `count` images do not fit into free memory."""
    needed, free = count * 3 * image_size**2, psutil.virtual_memory().available
    if needed > 0.9 * free:
        raise InputError(
            f"{count} images of {image_size}x{image_size} pixels need {needed / 2**30:.1f} GiB of "
            f"memory, but only {free / 2**30:.1f} GiB are free: lower data.image_size or set "
            "data.limit."
        )


@dataclass(frozen=True)
class _Reader:
    """Reads these files, in threads."""

    files: Sequence[ImageFile]
    image_size: int
    max_megapixels: float
    white_point: int | None
    rules: ReadingRules

    def read(self, label: str | None, store: Store | None) -> Pixels:
        """All images, from the store if it has them; BadImageError for the first bad file."""
        digests = digest_files(self.files)
        found = self._read_stored("images", digests, label, store)
        if found is not None:
            return _as_pixels(digests, found)
        size = len(self.files) * 3 * self.image_size**2
        if size <= min(IN_MEMORY, 0.5 * psutil.virtual_memory().available):
            return _as_pixels(digests, self._read_all("images", label))
        log.warning(
            "data: the images (%s) are decoded again in each epoch, which takes longer: %s, and "
            "they are too many to keep in memory.",
            format_bytes(size),
            "store.mode is off" if store is None else "the store has no room for them",
        )
        if len(self.files) > MANY:
            return_large_blocks()
        described = self._read_stored("descriptions", digests, label, store)
        return self._read_anew(digests, described or self._read_all("descriptions", label))

    def _read_stored(
        self, what: str, digests: np.ndarray, label: str | None, store: Store | None
    ) -> list[Tensor] | None:
        """The columns of `_read_rows` from the store, or all but the first; None if it has no room.

        Reads what it does not have.
        """
        if store is None:
            return None
        versions = [PIL.__version__, DECODER_VERSION]
        how = [self.image_size, self.white_point, *versions, *self.rules.key]
        if self.max_megapixels != MOST_MEGAPIXELS:  # whether an image is refused must not depend on
            how.append(f"max_megapixels={self.max_megapixels:g}")  # the store
        content, first = fingerprint([digests, *how]), COLUMNS[what]
        about = f"{len(digests)} images of {self.image_size}x{self.image_size} pixels"
        columns = [
            ArraySpec((3, self.image_size, self.image_size), torch.uint8),
            ArraySpec((32,), torch.uint8),
            ArraySpec((3,), torch.int32),
        ]
        try:
            table = store.entry("pixels", [content], {"about": about}).table(
                what,
                len(digests),
                columns[first:],
                lambda rows, _: self._read_rows(rows)[first:],
                label,
            )
            return table.tensors()
        except StoreError as error:
            log.warning("store: decoded images are not cached: %s.", error)
            return None

    def _read_all(self, what: str, label: str | None) -> list[Tensor]:
        """The same, in memory."""
        count, chunks, first = len(self.files), [], COLUMNS[what]
        with progress_bar(label, count) as advance:
            for rows in np.split(np.arange(count), range(CHUNK_SIZE, count, CHUNK_SIZE)):
                chunks.append(self._read_rows(rows)[first:])
                return_freed_memory()
                advance(len(rows))
        return [torch.cat(column) for column in zip(*chunks, strict=True)]

    def _read_anew(self, digests: np.ndarray, described: Sequence[Tensor]) -> Pixels:
        """Images that are decoded whenever they are read, of which these columns are known."""
        by_pixels, ranges = described[0].numpy().view("S32").reshape(-1), described[1].numpy()

        def read(rows: np.ndarray) -> tuple[Tensor, np.ndarray]:
            images, found, _ = self._read_rows(rows)
            return images, found.numpy().view("S32").reshape(-1)

        images = ImageFiles(self.files, self.image_size, by_pixels, read)
        return Pixels(images, digests, by_pixels, ranges)

    def read_one(self, file: ImageFile) -> tuple[np.ndarray, tuple[int, int, int]]:
        return _read_with_range(
            file, self.image_size, self.max_megapixels, self.white_point, self.rules
        )

    def _read_rows(self, rows: np.ndarray) -> list[Tensor]:
        """Images uint8 [B, 3, S, S], digests of their pixels uint8 [B, 32], ranges int32 [B, 3]."""
        files = [self.files[row] for row in rows.tolist()]
        with without_pillow_limit(), ThreadPoolExecutor(torch.get_num_threads()) as pool:
            squares, ranges = zip(*pool.map(self.read_one, files), strict=True)
        images = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).contiguous()
        digests = torch.from_numpy(digest_pixels(images).view(np.uint8).reshape(-1, 32))
        return [images, digests, torch.tensor(ranges, dtype=torch.int32)]


def _as_pixels(digests: np.ndarray, columns: Sequence[Tensor]) -> Pixels:
    images, by_pixels, ranges = columns
    return Pixels(images, digests, by_pixels.numpy().view("S32").reshape(-1), ranges.numpy())


def _read_with_range(
    file: ImageFile,
    image_size: int,
    max_megapixels: float,
    white_point: int | None,
    rules: ReadingRules,
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """The image, uint8 [S, S, 3], and the range of its values as in `describe_lost_range`."""
    if rules.bands:
        with naming(file):
            bands = _read_bands(file, rules.bands, max_megapixels)
            shown, values = show_bands(bands, white_point, rules.window)
            return _make_square(shown, values, image_size, rules)
    with open_image(file, max_megapixels) as image:
        shown, values = convert_to_8_bits(file, image, white_point, rules.window)
        return _make_square(turn_upright(shown, image), values, image_size, rules)


def _make_square(
    shown: Image.Image, values: tuple[int, int, int] | None, image_size: int, rules: ReadingRules
) -> tuple[np.ndarray, tuple[int, int, int]]:
    scaled = rules.scale(shown, image_size)
    if values is None:
        values = _shade_range(np.asarray(scaled), rules)
    return np.asarray(rules.fill(scaled, image_size)), values


def values_of(file: ImageFile, max_megapixels: float, bands: Sequence[int] = ()) -> np.ndarray:
    """The values to which a window would be applied, [H, W] or [H, W, C]. Raises BadImageError."""
    if bands:
        with naming(file):
            return require_numbers(_read_bands(file, bands, max_megapixels))
    with open_image(file, max_megapixels) as image:
        return read_values(file, image)


def _read_bands(file: ImageFile, bands: Sequence[int], max_megapixels: float) -> np.ndarray:
    try:
        return read_bands(file, bands, max_megapixels)
    except TooLargeError as error:
        raise _too_large(file, error.megapixels, max_megapixels) from error


def _too_large(file: ImageFile, size: float, most: float) -> BadImageError:
    shown = f"{size:,.0f}" if size >= 10 else f"{size:.3g}"
    reason = f"has {shown} megapixels, more than data.max_megapixels={most:g}"
    return BadImageError(file, reason, verdict="", remedy="Raise the limit or shrink the image.")


@contextmanager
def open_image(file: ImageFile, max_megapixels: float) -> Iterator[OpenedImage]:
    """The image as Pillow opens it; BadImageError for whatever is raised within the context."""
    with naming(file), Image.open(openable(file)) as image:
        if (size := image.width * image.height / 1e6) > max_megapixels:
            raise _too_large(file, size, max_megapixels)
        yield image


def _shade_range(pixels: np.ndarray, rules: ReadingRules) -> tuple[int, int, int]:
    if rules.window is None:
        return int(pixels.min()), int(pixels.max()), 255
    middle, high = np.quantile(pixels, WINDOW_QUANTILES, method="nearest")
    return int(middle), int(high), WINDOWED
