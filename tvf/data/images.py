"""Image files to one uint8 tensor: decoded, turned upright, cropped to a square and resized, in threads."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from tvf.errors import InputError


def read_images(paths: Sequence[Path], image_size: int, *, progress: bool = False) -> Tensor:
    """Images as uint8 [N, 3, image_size, image_size]: the centre square, bilinear. Grey ones get three channels.

    Raises InputError that names the file which cannot be read.
    """
    check_memory(len(paths), image_size)
    images = np.empty((len(paths), image_size, image_size, 3), np.uint8)

    def read_into(number: int) -> None:
        images[number] = read_image(paths[number], image_size)

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        done = pool.map(read_into, range(len(paths)))
        list(tqdm(done, "reading images", len(paths), leave=False, disable=None if progress else True))
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def read_image(path: Path, image_size: int) -> np.ndarray:
    """One image as uint8 [image_size, image_size, 3]; transparency is dropped."""
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"it has more than 8 bits a channel (mode {image.mode}); save it with 8")
            upright = ImageOps.exif_transpose(image)
            upright = upright if upright.mode == "L" else upright.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read as an image: {error}. Mend or remove it.") from error
    return np.asarray(ImageOps.fit(upright, (image_size, image_size), Image.Resampling.BILINEAR).convert("RGB"))


def check_memory(count: int, image_size: int) -> None:
    """InputError if `count` images would not fit into the memory that is free."""
    needed, free = count * 3 * image_size**2, psutil.virtual_memory().available
    if needed > 0.9 * free:
        raise InputError(
            f"{count} images of {image_size} pixels a side need {needed / 2**30:.1f} GiB of memory, {free / 2**30:.1f} "
            "are free: lower data.image_size or set data.limit."
        )
