"""How an image of any shape becomes a square: turned upright, then cropped, squashed or padded.

With the window of its values, these are the rules that travel with a model.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import ExifTags, Image, ImageColor, ImageOps

from tvf.errors import InputError, require_choice

CROP, SQUASH, PAD = RESIZE = ("crop", "squash", "pad")
# Pillow's filters; all but nearest take the mean of the pixels that become one.
INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
# How to turn an image upright, by the EXIF orientation tag.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class ReadingRules:
    """How an image becomes a square of 8 bits, by the options `data.resize` and so on.

    "crop" takes the central square, "squash" the whole image, whose shape changes, and "pad" the
    whole image in its shape, with `pad_color` around it: a name such as black, or #rrggbb.
    `interpolation` is one of INTERPOLATIONS. `window` [low, high] shows low and all below as black,
    high and all above as white. `channels` "grey" takes the lightness of colours; a list of one or
    three numbers takes these bands of TIFF files, counted from 1, as grey or as red, green and
    blue; "auto" shows an image as a viewer does. Raises InputError for any other value.
    """

    resize: str = CROP
    interpolation: str = "bilinear"
    pad_color: str = "black"
    window: tuple[float, float] | None = None
    channels: str | tuple[int, ...] = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", _check_channels(self.channels))
        if self.window is not None:
            object.__setattr__(self, "window", _check_window(self.window))
        require_choice("data.resize", self.resize, RESIZE)
        require_choice("data.interpolation", self.interpolation, INTERPOLATIONS)
        _parse_color(self.pad_color)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "ReadingRules":
        """The one that these options name, with defaults for those that are missing."""
        return cls(**{key: options[key] for key in cls.__dataclass_fields__ if key in options})

    @property
    def key(self) -> tuple[Any, ...]:
        """What decides the pixels: empty for the default, equal for what comes to the same."""
        key: tuple[Any, ...] = (self.resize, self.interpolation)
        if self.resize == PAD:
            key += (_parse_color(self.pad_color),)
        elif key == (ReadingRules.resize, ReadingRules.interpolation):
            key = ()
        if self.window is not None:
            key = (*key, "window", *self.window)
        return key if self.channels == "auto" else (*key, "channels", self.channels)

    @property
    def bands(self) -> tuple[int, ...]:
        """The bands to read, from 1; none if they are those of a viewer."""
        return self.channels if isinstance(self.channels, tuple) else ()

    def scale(self, shown: Image.Image, size: int) -> Image.Image:
        """An upright image as RGB of `size` pixels per side; of fewer in one with "pad"."""
        method = Image.Resampling[self.interpolation.upper()]
        if self.resize == CROP:
            scaled = ImageOps.fit(shown, (size, size), method)
        elif self.resize == SQUASH:
            scaled = shown.resize((size, size), method)
        else:
            longest = max(shown.size)
            width, height = (max(1, round(side * size / longest)) for side in shown.size)
            scaled = shown.resize((width, height), method)
        if self.channels == "grey":
            scaled = scaled.convert("L")
        return scaled.convert("RGB")

    def fill(self, scaled: Image.Image, size: int) -> Image.Image:
        """What `scale` returned as a square, padded if it is none."""
        if scaled.size == (size, size):
            return scaled
        square = Image.new("RGB", (size, size), _parse_color(self.pad_color))
        square.paste(scaled, ((size - scaled.width) // 2, (size - scaled.height) // 2))
        return square


def turn_upright(shown: Image.Image, image: Image.Image) -> Image.Image:
    """Turn `shown` as the orientation tag of `image` says; damaged metadata say nothing.

    `ImageOps.exif_transpose` also writes all metadata anew, and fails if one of them is damaged.
    """
    try:
        method = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        method = None
    return shown if method is None else shown.transpose(method)


def _parse_color(color: object) -> tuple[int, int, int]:
    try:
        found = ImageColor.getrgb(color) if isinstance(color, str) else ()
    except ValueError:
        found = ()
    if len(found) != 3:
        raise InputError(
            f"data.pad_color={color!r} must be a colour that is not transparent: a name such as "
            "black, white or gray, or '#7f7f7f'."
        )
    return found


def _check_channels(channels: object) -> str | tuple[int, ...]:
    if channels in ("auto", "grey") and isinstance(channels, str):
        return channels
    given = list(channels) if isinstance(channels, list | tuple) else []
    bands = [band for band in given if type(band) is int and band >= 1]
    if len(bands) == len(given) and len(bands) in (1, 3):
        return tuple(bands)
    raise InputError(
        f"data.channels={channels} must be auto, grey, or a list of one or three bands of TIFF "
        "files, counted from 1: [4,3,2] shows the fourth as red, the third as green, the second as "
        "blue."
    )


def _check_window(window: object) -> tuple[float, float]:
    given = list(window) if isinstance(window, Sequence) and not isinstance(window, str) else []
    numbers = [float(n) for n in given if isinstance(n, int | float) and not isinstance(n, bool)]
    if len(numbers) == len(given) == 2 and all(map(math.isfinite, numbers)):
        low, high = numbers
        if low < high:
            return low, high
    raise InputError(
        f"data.window={window} must be [low,high]: the value that is shown as black, and a higher "
        "one that is shown as white, such as [0,4095]; or [1%,99%], percentiles of the values of "
        "the training images."
    )
