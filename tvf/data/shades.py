"""How the values of an image become shades of 8 bits: as its bits say, a white point, or a window.

A window (low, high) shows low and all below as black, high and all above as white.
"""

import numpy as np
from PIL import Image, ImageFile

from tvf.data.deep import (
    DeepImage,
    Window,
    apply_window,
    read_deep,
    shades_up_to,
    tiff_values,
)
from tvf.data.encoded import ImageFile as AnyImage
from tvf.data.ranges import DEEP

# From one value to the next of PNGs of 2 and 4 bits, in 8: Pillow scales pixels, but not the value
# that is transparent.
STEPS = {"L;2": 85, "L;4": 17}


def convert_to_8_bits(
    file: AnyImage,
    image: ImageFile.ImageFile,
    white_point: int | None,
    window: Window | None,
) -> tuple[Image.Image, tuple[int, int, int] | None]:
    """Load the opened image; return it as grey or RGB of 8 bits, and its range if it has 16.

    The range is that of `tvf.data.ranges`, None with a window. Raises ValueError if there is no
    single way to show the image.
    """
    deep = read_deep(file, image)
    in_8_bits = deep is None or (deep.upper_alone and (white_point or 256) <= 255)
    if deep is not None and (window or not in_8_bits):
        if window or white_point is not None:
            _require_all_bits(
                deep, image, f"window {list(window)}" if window else f"white point of {white_point}"
            )
        shown, found = deep.show(white_point or DEEP, window)
        return _lay_on_white(shown), None if window else found
    _load(image)
    return show_in_8_bits(image, white_point, window), None


def read_values(file: AnyImage, image: ImageFile.ImageFile) -> np.ndarray:
    """The values of the opened image to which a window would be applied, [H, W] or [H, W, C].

    Raises ValueError if there are none.
    """
    deep = read_deep(file, image)
    if deep is not None:
        _require_all_bits(deep, image, "window")
        return deep.light()
    _load(image)
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    if image.mode in ("I", "F"):
        return _wide_values(image)
    shown, transparent = _plain(image)
    values = np.atleast_3d(np.asarray(shown))
    return values[..., :-1] if transparent else values


def _require_all_bits(deep: DeepImage, image: Image.Image, what: str) -> None:
    if deep.upper_alone:
        raise ValueError(
            f"only the upper 8 of its 16 bits can be read ({image.format}), so there is no "
            f"{what}; save it as PNG"
        )


def _load(image: ImageFile.ImageFile) -> None:
    if (step := STEPS.get(str(image.tile[0][3]) if image.tile else "")) is not None:
        if isinstance(key := image.info.get("transparency"), int):
            image.info["transparency"] = key * step
    image.load()


def show_in_8_bits(
    image: Image.Image, white_point: int | None, window: Window | None
) -> Image.Image:
    """A loaded image as grey or RGB of 8 bits; ValueError if there is no single way to show it."""
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint16)[..., None]
        return DeepImage(values, "L").show(white_point or DEEP, window)[0]
    if image.mode in ("I", "F"):
        return _show_wide(image, window)
    if window and (window[0] < 0 or window[1] > 255):
        raise ValueError(
            f"it has 8 bits, values from 0 to 255, and data.window={list(window)} is for other ones"
        )
    shown, transparent = _plain(image)
    if window or (white_point is not None and white_point <= 255):
        if window:
            shades = apply_window(np.arange(256)[None], window)[0].tolist()
        else:
            shades = shades_up_to(white_point or 255).tolist()
        opaque = list(range(256)) if transparent else []
        shown = shown.point(shades * (len(shown.getbands()) - bool(opaque)) + opaque)
    return _lay_on_white(shown)


def _plain(image: Image.Image) -> tuple[Image.Image, bool]:
    """A loaded image of 8 bits as grey, RGB or RGBA, and whether it is the last."""
    shown = image.convert("LA") if image.mode == "La" else image
    transparent = "A" in shown.mode or "transparency" in image.info
    if shown.mode != "L" or transparent:
        shown = shown.convert("RGBA" if transparent else "RGB")
    return shown, transparent


def _lay_on_white(image: Image.Image) -> Image.Image:
    if image.mode != "RGBA":
        return image
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image)
    return white.convert("RGB")


def _show_wide(image: Image.Image, window: Window | None) -> Image.Image:
    """An image of 32 bits per channel, floats or signed values as grey."""
    if window is None:
        signed = 2 in tiff_values(image, "SampleFormat")
        found = "signed values" if signed else f"32 bits per channel (mode {image.mode})"
        raise ValueError(
            f"it has {found}; save it with 8 or 16 bits, unsigned, or say with "
            "data.window=[low,high] which values are black and white"
        )
    return Image.fromarray(apply_window(_wide_values(image), window))


def _wide_values(image: Image.Image) -> np.ndarray:
    if 0 in tiff_values(image, "PhotometricInterpretation"):
        raise ValueError("its lowest value is white; save it with black as the lowest")
    values = np.asarray(image)
    if image.format == "TIFF" and image.mode == "I" and 2 not in tiff_values(image, "SampleFormat"):
        values = values.view(np.uint32)  # which Pillow takes for signed
    if np.isnan(values).any():
        raise ValueError("some of its values are no numbers (NaN); replace them")
    return values
