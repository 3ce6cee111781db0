"""Images of 16 bits per channel, with all of their bits: of colours, Pillow keeps the upper 8.

Pillow unpacks big-endian and little-endian values into their upper bytes. Decoded once more in the
other byte order, the same file gives the lower ones.
"""

import re
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageFile

from tvf.data.encoded import ImageFile as AnyImage
from tvf.data.encoded import content_of, openable
from tvf.data.ranges import DEEP

UPPER_ALONE = ("JPEG2000", "SGI")  # formats of whose lower bits Pillow gives none
_NATIVE = "L" if sys.byteorder == "little" else "B"
_OTHER = {"L": "B", "B": "L"}
_COLOURS = re.compile("(RGB|RGBX|RGBA|RGBa|CMYK);16([BLN])")  # how Pillow unpacks 16 bits
_SIZ = b"\xff\x4f\xff\x51"  # begins the header of JPEG 2000's code; its first depth is 42 bytes on

Window = tuple[float, float]
ROWS = 256  # to which a window is applied at a time, as it takes 8 bytes for each value


@dataclass(frozen=True)
class DeepImage:
    """The values of an image, uint16 [H, W, C], in the order of `bands`: L, LA, RGB, RGBA, CMYK.

    RGBa is premultiplied by its transparency. `key` is a colour that is transparent. With
    `upper_alone` the values are those of 8 bits, scaled.
    """

    values: np.ndarray
    bands: str
    key: Any = None
    upper_alone: bool = False

    def show(
        self, white: int, window: Window | None = None
    ) -> tuple[Image.Image, tuple[int, int, int]]:
        """The image in 8 bits, grey, RGB, RGBA or CMYK, with `white` as white; and its range.

        The range is that of `tvf.data.ranges`. With a `window`, see `apply_window`.
        """
        values, alpha = self._opaque(), None
        if self.bands[-1] in "Aa":
            alpha = _in_8_bits(self.values[..., -1:], DEEP)
        elif self.key is not None:
            alpha = np.where((values == self.key).all(-1, keepdims=True), 0, 255).astype(np.uint8)
        if window:
            values = self.light()
        found = (int(values.min()), int(values.max()), white)
        shown = apply_window(values, window) if window else _in_8_bits(values, white)
        if alpha is not None:
            colours = shown if shown.shape[-1] == 3 else shown.repeat(3, -1)
            shown = np.concatenate([colours, alpha], -1)
        mode = {1: "L", 3: "RGB", 4: "CMYK" if self.bands == "CMYK" else "RGBA"}[shown.shape[-1]]
        height, width = shown.shape[:2]
        return Image.frombytes(mode, (width, height), shown.tobytes()), found

    def light(self) -> np.ndarray:
        """The values to which a window is applied, as 8 bits are: of light, not of inks."""
        values = self._opaque()
        return _mix_inks(values) if self.bands == "CMYK" else values

    def _opaque(self) -> np.ndarray:
        """The values without transparency."""
        if self.bands[-1] not in "Aa":
            return self.values
        values = self.values[..., :-1]
        if self.bands == "RGBa":
            opaque = np.maximum(self.values[..., -1:], 1).astype(np.uint32)
            values = np.minimum(values.astype(np.uint32) * DEEP // opaque, DEEP)
        return values


def shades_up_to(white_point: int) -> np.ndarray:
    """What the values 0 to 255 are shown as if `white_point` is white, uint8 [256]."""
    return np.minimum(np.rint(np.arange(256) * 255 / white_point), 255).astype(np.uint8)


def apply_window(values: np.ndarray, window: Window) -> np.ndarray:
    """Values [H, ...] in 8 bits: low and all below as 0, high and all above as 255."""
    low, high = window
    shown = np.empty(values.shape, np.uint8)
    for start in range(0, len(values), ROWS):
        inside = np.clip(values[start : start + ROWS].astype(np.float64), low, high)
        shown[start : start + ROWS] = np.rint((inside - low) * (255 / (high - low)))
    return shown


def _mix_inks(values: np.ndarray) -> np.ndarray:
    """Inks CMYK, uint16 [H, W, 4], as RGB [H, W, 3], as Pillow mixes those of 8 bits."""
    light = DEEP - values.astype(np.uint32)
    return (light[..., :3] * light[..., 3:] // DEEP).astype(np.uint16)


def _in_8_bits(values: np.ndarray, white: int) -> np.ndarray:
    """Values of 16 bits in 8, with `white` and all above it as 255, uint8 [H, W, C]."""
    known = np.minimum(np.arange(DEEP + 1), white)
    shades = ((known * 255 + white // 2) // white).astype(np.uint8)
    shown = np.empty(values.shape, np.uint8)
    for band in range(values.shape[-1]):  # one at a time: an index takes 8 bytes for each value
        shown[..., band] = shades[values[..., band]]
    return shown


def read_deep(file: AnyImage, image: ImageFile.ImageFile) -> DeepImage | None:
    """The values of the opened `image` in `file` if it has 16 bits per channel, else None.

    Loads the image, if it has. Raises ValueError for signed values.
    """
    _require_unsigned(image)
    key = image.info.get("transparency")
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PPM", "PNG")):
        image.load()
        values = np.asarray(image).astype(np.uint16)
        if image.format == "FITS" and values.max() > DEEP // 2:
            raise ValueError("its 16 bits are signed; save it as PNG or TIFF with unsigned values")
        if 0 in tiff_values(image, "PhotometricInterpretation"):  # zero is white
            values = DEEP - values
        return DeepImage(values[..., None], "L", key)
    codec, raw = _how_unpacked(image)
    if raw == "LA;16B":  # PNG: as four bytes, which are the upper and lower one of both
        upper = _unpack(image, "RGBA").astype(np.uint16)
        return DeepImage(upper[..., ::2] << 8 | upper[..., 1::2], "LA")
    if codec in ("ppm", "ppm_plain") and image.mode == "RGB" and _arguments(image)[1] > 255:
        return DeepImage(_read_netpbm(image), "RGB")
    colours = _COLOURS.fullmatch(raw)
    if colours and image.format in ("PNG", "TIFF"):
        bands, order = colours[1], _NATIVE if colours[2] == "N" else colours[2]
        layout = f"{bands.replace('a', 'A')};16"  # not divided by the transparency, if that is RGBa
        upper = _unpack(image, layout + order).astype(np.uint16)
        if codec == "libtiff" and 2 in tiff_values(image, "PlanarConfiguration"):
            return DeepImage(upper * 257, bands.rstrip("X"), upper_alone=True)
        with Image.open(openable(file)) as other:
            lower = _unpack(other, layout + _OTHER[order])
        return DeepImage(upper << 8 | lower, bands.rstrip("X"), key)
    if image.format in UPPER_ALONE and _is_deep(file, image, raw):
        image.load()
        values = np.asarray(image).astype(np.uint16) * 257
        return DeepImage(np.atleast_3d(values), image.mode, upper_alone=True)
    return None


def tiff_values(image: Image.Image, name: str) -> tuple[Any, ...]:
    """The values of a TIFF tag; none if it is missing, or for another format."""
    found = getattr(image, "tag_v2", {}).get(ExifTags.Base[name], ())
    return found if isinstance(found, tuple) else (found,)


def _how_unpacked(image: ImageFile.ImageFile) -> tuple[str, str]:
    """Pillow's decoder of an image that is not loaded, and the layout that it unpacks."""
    if not image.tile:
        return "", ""
    codec, args = image.tile[0][0], _arguments(image)
    raw = str(args[0]) if args else ""
    if image.format == "TIFF" and len(raw) == 1 and len(image.mode) > 1:
        # Channels one after the other, which Pillow takes for 8 bits whatever they are.
        if 16 in tiff_values(image, "BitsPerSample"):
            order = "L" if image.tag_v2.prefix == b"II" else "B"  # type: ignore[attr-defined]
            raw = f"{image.mode};16{order}"
    return codec, raw


def _arguments(image: ImageFile.ImageFile) -> tuple[Any, ...]:
    """What Pillow passes to the decoder of an image's first part."""
    args: Any = image.tile[0][3]
    return args if isinstance(args, tuple) else (args,)


def _unpack(image: ImageFile.ImageFile, layout: str) -> np.ndarray:
    """Load an image with its bytes unpacked as `layout` says, uint8 [H, W, C]."""
    bands, _, depth = layout.partition(";")
    tiles: list[Any] = []
    parts: list[Any] = image.tile
    for tile in parts:
        args: Any = layout
        if isinstance(tile[3], tuple):
            alone = len(tile[3][0]) == 1 < len(bands)  # a channel by itself
            args = (f"{tile[3][0]};{depth}" if alone else layout, *tile[3][1:])
        tiles.append(_tile(*tile[:3], args))
    image.tile = tiles
    image.load()
    return np.asarray(image)


def _read_netpbm(image: ImageFile.ImageFile) -> np.ndarray:
    """The colours of a PPM file, read as greys, of which Pillow keeps 16 bits, in a wide image."""
    width, height = image.size
    image._mode, image._size = "I", (3 * width, height)
    codec, _, offset, args = image.tile[0]
    image.tile = [_tile(codec, (0, 0, 3 * width, height), offset, args)]
    image.load()
    return np.asarray(image).astype(np.uint16).reshape(height, width, 3)


def _tile(*parts: Any) -> Any:
    """Pillow's instruction how to decode a part of an image; before Pillow 11 a plain tuple."""
    return getattr(ImageFile, "_Tile", lambda *each: each)(*parts)


def _is_deep(file: AnyImage, image: ImageFile.ImageFile, raw: str) -> bool:
    """Whether an image in one of the formats UPPER_ALONE has more than 8 bits per channel."""
    if image.format == "SGI":
        return image.tile[0][0] == "SGI16" or raw.endswith(";16B")
    start = content_of(file, 2**16)
    place = start.find(_SIZ)
    return 0 <= place < len(start) - 42 and (start[place + 42] & 0x7F) + 1 > 8


def _require_unsigned(image: ImageFile.ImageFile) -> None:
    if 2 in tiff_values(image, "SampleFormat") and "L" in image.mode:
        raise ValueError("its values are signed; save it with unsigned ones")
