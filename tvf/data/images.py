"""Image files to one uint8 tensor: decoded, turned upright, cropped to a square and resized, in threads."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL
import psutil
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from tvf.data.splits import Split
from tvf.errors import InputError
from tvf.store import ArraySpec, Store, StoreError, fingerprint, fingerprint_files

log = logging.getLogger(__name__)

READING = 2  # raise it when `read_image` gives other pixels
AT_ONCE = 256  # images


def read_images(
    paths: Sequence[Path],
    labels: Tensor,
    image_size: int,
    *,
    max_megapixels: float = 100.0,
    progress: bool = False,
    store: Store | None = None,
) -> Split:
    """Images as uint8 [N, 3, image_size, image_size]: the centre square, bilinear. Grey ones get three channels.

    One of more than `max_megapixels` is refused before it is decoded. With a store they are decoded once, for as long
    as the files' contents and the size stay what they are. Raises InputError that names the file which cannot be read.
    """
    label = "reading images" if progress else None
    if store is not None:
        try:
            files = fingerprint_files(paths)
        except OSError as error:
            raise InputError(
                f"{error.filename} cannot be read: {error.strerror}. Mend or remove it."
            ) from error
        key = fingerprint([files, image_size, PIL.__version__, READING])
        try:
            entry = store.entry(
                "pixels", [key], {"about": f"{len(paths)} images of {image_size} pixels a side"}
            )
            column = ArraySpec((3, image_size, image_size), torch.uint8)
            (images,) = entry.table(
                "images",
                len(paths),
                [column],
                lambda rows, wait: [_read(paths[rows], image_size, max_megapixels)],
                label,
            ).tensors()
            return Split(images, labels, key)
        except StoreError as error:
            log.warning("store: decoded images are not kept: %s.", error)
    check_memory(len(paths), image_size)
    parts = [paths[start : start + AT_ONCE] for start in range(0, len(paths), AT_ONCE)]
    bar = tqdm(parts, label, leave=False, disable=None if label else True)
    return Split(torch.cat([_read(part, image_size, max_megapixels) for part in bar]), labels)


def _read(paths: Sequence[Path], image_size: int, max_megapixels: float) -> Tensor:
    known, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # ours is asked instead
    try:
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            images = list(
                pool.map(lambda path: read_image(path, image_size, max_megapixels), paths)
            )
    finally:
        Image.MAX_IMAGE_PIXELS = known
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def read_image(path: Path, image_size: int, max_megapixels: float = 100.0) -> np.ndarray:
    """One image as uint8 [image_size, image_size, 3], as a viewer shows it: the first frame, upright, on white."""
    try:
        with Image.open(path) as image:
            if (size := image.width * image.height / 1e6) > max_megapixels:
                raise InputError(
                    f"{path} has {size:.0f} megapixels, more than data.max_megapixels={max_megapixels:g}: raise that, "
                    "or make the image smaller."
                )
            upright = _in_8_bits(ImageOps.exif_transpose(image))
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(
            f"{path} cannot be read as an image: {error}. Mend or remove it."
        ) from error
    return np.asarray(
        ImageOps.fit(upright, (image_size, image_size), Image.Resampling.BILINEAR).convert("RGB")
    )


def _in_8_bits(image: Image.Image) -> Image.Image:
    """Grey or RGB, 8 bits a channel; ValueError for what has no one way to be shown."""
    if image.mode.startswith("I;16"):
        return Image.fromarray(
            ((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8)
        )
    if image.mode in ("I", "F"):
        raise ValueError(f"it has 32 bits a channel (mode {image.mode}); save it with 8 or 16")
    if "A" in image.mode or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        return white.convert("RGB")
    return image if image.mode == "L" else image.convert("RGB")


def check_memory(count: int, image_size: int) -> None:
    """InputError if `count` images would not fit into the memory that is free."""
    needed, free = count * 3 * image_size**2, psutil.virtual_memory().available
    if needed > 0.9 * free:
        raise InputError(
            f"{count} images of {image_size} pixels a side need {needed / 2**30:.1f} GiB of memory, {free / 2**30:.1f} "
            "are free: lower data.image_size or set data.limit."
        )
