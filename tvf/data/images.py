"""Reads image files into a uint8 tensor: decoded, turned upright, cropped to a square, resized.

Decoding runs in threads; with a store each set of files is decoded once, for all jobs.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import PIL
import psutil
import torch
from PIL import Image, ImageOps
from torch import Tensor

from tvf.data.pool import Pixels, digest, digest_pixels
from tvf.errors import InputError
from tvf.progress import progress_bar
from tvf.store import ArraySpec, Store, StoreError, fingerprint

log = logging.getLogger(__name__)

DECODER_VERSION = 2  # increase it when `read_image` returns different pixels
CHUNK_SIZE = 256  # images decoded per step of the progress bar


def read_images(
    paths: Sequence[Path],
    image_size: int,
    *,
    max_megapixels: float = 100.0,
    progress: bool = False,
    store: Store | None = None,
) -> Pixels:
    """Read images as uint8 [N, 3, image_size, image_size]: the centre square, bilinear, RGB.

    A store keeps the pixels until the content of the files or the size changes. Raises InputError
    that names a file that cannot be read or has more than `max_megapixels` (checked before it is
    decoded).
    """
    label = "reading images" if progress else None
    files = _digest_files(paths)

    def read(rows: np.ndarray) -> list[Tensor]:
        images = _read_chunk([paths[row] for row in rows], image_size, max_megapixels)
        return [images, torch.from_numpy(digest_pixels(images).view(np.uint8).reshape(-1, 32))]

    if store is not None:
        content = fingerprint([files, image_size, PIL.__version__, DECODER_VERSION])
        about = f"{len(paths)} images of {image_size}x{image_size} pixels"
        columns = [
            ArraySpec((3, image_size, image_size), torch.uint8),
            ArraySpec((32,), torch.uint8),
        ]
        try:
            table = store.entry("pixels", [content], {"about": about}).table(
                "images", len(paths), columns, lambda rows, wait: read(rows), label
            )
            images, digests = table.tensors()
            return Pixels(images, files, _as_bytes(digests))
        except StoreError as error:
            log.warning("store: decoded images are not cached: %s.", error)
    check_memory(len(paths), image_size)
    chunks = []
    with progress_bar(label, len(paths)) as advance:
        for rows in np.split(np.arange(len(paths)), range(CHUNK_SIZE, len(paths), CHUNK_SIZE)):
            chunks.append(read(rows))
            advance(len(rows))
    images, digests = (torch.cat(column) for column in zip(*chunks, strict=True))
    return Pixels(images, files, _as_bytes(digests))


def read_image(path: Path, image_size: int, max_megapixels: float = 100.0) -> np.ndarray:
    """Read one image as uint8 [image_size, image_size, 3], as a viewer shows it.

    That is the first frame, upright, with transparency on white.
    """
    try:
        with Image.open(path) as image:
            if (size := image.width * image.height / 1e6) > max_megapixels:
                raise InputError(
                    f"{path} has {size:.0f} megapixels, more than "
                    f"data.max_megapixels={max_megapixels:g}: raise the limit or shrink the image."
                )
            upright = _convert_to_8_bits(ImageOps.exif_transpose(image))
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(
            f"{path} cannot be read as an image: {error}. Repair or remove it."
        ) from error
    square = ImageOps.fit(upright, (image_size, image_size), Image.Resampling.BILINEAR)
    return np.asarray(square.convert("RGB"))


def check_memory(count: int, image_size: int) -> None:
    """Raise InputError if `count` images do not fit into free memory."""
    needed, free = count * 3 * image_size**2, psutil.virtual_memory().available
    if needed > 0.9 * free:
        raise InputError(
            f"{count} images of {image_size}x{image_size} pixels need {needed / 2**30:.1f} GiB of "
            f"memory, but only {free / 2**30:.1f} GiB are free: lower data.image_size or set "
            "data.limit."
        )


def _digest_files(paths: Sequence[Path]) -> np.ndarray:
    """A digest of each file's content, bytes [N]."""
    try:
        return np.array([digest(path.read_bytes()) for path in paths], "S32")
    except OSError as error:
        raise InputError(
            f"{error.filename} cannot be read: {error.strerror}. Repair or remove it."
        ) from error


def _as_bytes(digests: Tensor) -> np.ndarray:
    """Digests of the store, uint8 [N, 32], as bytes [N]."""
    return digests.numpy().view("S32").reshape(-1)


def _read_chunk(paths: Sequence[Path], image_size: int, max_megapixels: float) -> Tensor:
    # `read_image` checks the size against our own limit, so Pillow's is disabled here.
    pillow_limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    read = partial(read_image, image_size=image_size, max_megapixels=max_megapixels)
    try:
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            images = list(pool.map(read, paths))
    finally:
        Image.MAX_IMAGE_PIXELS = pillow_limit
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def _convert_to_8_bits(image: Image.Image) -> Image.Image:
    """Return the image as 8-bit grey or RGB; ValueError if there is no single way to show it."""
    if image.mode.startswith("I;16"):
        pixels = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((pixels + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"it has 32 bits per channel (mode {image.mode}); save it with 8 or 16")
    if "A" in image.mode or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        return white.convert("RGB")
    return image if image.mode == "L" else image.convert("RGB")
