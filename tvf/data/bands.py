"""Bands of TIFF files that are no photographs: satellites, microscopes, frames of one shape.

Pillow reads few of them, and of several frames the first; tifffile reads all.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from tvf.data.deep import DeepImage, Window, apply_window, shades_up_to
from tvf.data.encoded import ImageFile, openable
from tvf.data.ranges import DEEP
from tvf.errors import InputError

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # how the files begin
PLAIN = (1, 2)  # photometric interpretations: black is zero, RGB
ORIENTATION = 274
# How to turn values [H, W, C] upright, by the orientation tag: as `tvf.data.rules.UPRIGHT` does.
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda values: values[:, ::-1],
    3: lambda values: values[::-1, ::-1],
    4: lambda values: values[::-1],
    5: lambda values: values.swapaxes(0, 1),
    6: lambda values: np.rot90(values, 3),
    7: lambda values: values[::-1, ::-1].swapaxes(0, 1),
    8: lambda values: np.rot90(values, 1),
}


class TooLargeError(ValueError):
    """An image of this many megapixels, which are too many."""

    def __init__(self, megapixels: float) -> None:
        super().__init__()
        self.megapixels = megapixels


def import_tifffile() -> Any:
    """The library that reads bands; InputError if it is missing."""
    try:
        import tifffile  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(
            "the bands of data.channels are read by tifffile, which is not installed: "
            "pip install 'tvf[tiff]'"
        ) from error
    return tifffile


def read_bands(file: ImageFile, bands: Sequence[int], max_megapixels: float) -> np.ndarray:
    """The bands with these numbers, from 1, of a TIFF file, upright [H, W, len(bands)].

    They are those of its first frame or, if that has one, the frames of its shape. Raises
    ValueError if it does not have them, TooLargeError before it decodes them.
    """
    tifffile = import_tifffile()
    try:
        opened = tifffile.TiffFile(openable(file))
    except tifffile.TiffFileError as error:
        raise ValueError("data.channels chooses bands of TIFF files, and it is none") from error
    with opened:
        first: Any = opened.pages[0]
        if (size := first.imagewidth * first.imagelength / 1e6) > max_megapixels:
            raise TooLargeError(size)
        if int(first.photometric) not in PLAIN or first.imagedepth > 1:
            kind = getattr(first.photometric, "name", first.photometric)
            raise ValueError(f"its bands are no plain values ({kind}); save it as RGB or grey")
        several = first.samplesperpixel == 1 and len(opened.pages) > 1
        frames = [page for page in opened.pages if _like(page, first)] if several else [first]
        count = len(frames) if several else first.samplesperpixel
        if max(bands) > count:
            raise ValueError(f"it has {count} bands, and data.channels={list(bands)}")
        if several:
            values = np.stack([frames[band - 1].asarray() for band in bands], -1)
        else:
            values = first.asarray().reshape(_shape(first))
            values = np.moveaxis(values, 0, -1) if first.axes.startswith("S") else values
            values = values[..., [band - 1 for band in bands]]
        tag = first.tags.get(ORIENTATION)
    if values.dtype.kind not in "fiu":
        raise ValueError(f"its values are of type {values.dtype}; save it with numbers")
    return TURNS.get(int(tag.value) if tag else 1, np.asarray)(values)


def _like(page: Any, first: Any) -> bool:
    return page.shape == first.shape and page.dtype == first.dtype


def _shape(page: Any) -> tuple[int, ...]:
    size = (page.imagelength, page.imagewidth)
    return (page.samplesperpixel, *size) if page.axes.startswith("S") else (*size, -1)


def show_bands(
    values: np.ndarray, white_point: int | None, window: Window | None
) -> tuple[Image.Image, tuple[int, int, int] | None]:
    """One band as grey or three as RGB of 8 bits, and their range as `convert_to_8_bits` says.

    Raises ValueError if there is no single way to show them.
    """
    if values.dtype == np.uint8 and window is None:
        if white_point is not None and white_point <= 255:
            values = shades_up_to(white_point)[values]
        return _as_image(values), None
    if values.dtype == np.uint8 and window and (window[0] < 0 or window[1] > 255):
        raise ValueError(
            f"it has 8 bits, values from 0 to 255, and data.window={list(window)} is for other ones"
        )
    if values.dtype == np.uint16 and window is None:
        bands = "L" if values.shape[-1] == 1 else "RGB"
        return DeepImage(values, bands).show(white_point or DEEP)
    if window is None:
        raise ValueError(
            f"it has values of type {values.dtype}; say with data.window=[low,high] or [1%,99%] "
            "which are black and white"
        )
    return _as_image(apply_window(require_numbers(values), window)), None


def require_numbers(values: np.ndarray) -> np.ndarray:
    """The values; ValueError if some are no numbers."""
    if values.dtype.kind == "f" and np.isnan(values).any():
        raise ValueError("some of its values are no numbers (NaN); replace them")
    return values


def _as_image(shown: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(shown[..., 0] if shown.shape[-1] == 1 else shown))
