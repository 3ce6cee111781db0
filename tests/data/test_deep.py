"""Images of 16 bits per channel are read with all of them, in colour, too, or not at all."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tvf.data.encoded import EncodedImage
from tvf.data.images import convert_image, read_image
from tvf.data.rules import ReadingRules
from tvf.data.sources import ImageFolder
from tvf.errors import InputError

WHITE = 4095  # of 12 bits, kept in 16
COLOURS = np.random.default_rng(0).integers(0, WHITE + 1, (32, 32, 3)).astype(np.uint16)
SHOWN = np.round(COLOURS / WHITE * 255).astype(int)
GREY = SHOWN[..., :1].repeat(3, -1)
HALF = np.zeros((32, 32, 1), np.uint16)  # the transparency: the lower half can be seen
HALF[16:] = 65_535


def png(values: np.ndarray, kind: int, key: bytes = b"", bits: int = 16) -> bytes:
    """A PNG file of this colour type; `key` is the colour that is transparent."""

    def chunk(name: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    rows = b"".join(b"\0" + row.tobytes() for row in values.astype(">u2" if bits == 16 else "u1"))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 32, 32, bits, kind, 0, 0, 0))
        + (chunk(b"tRNS", key) if key else b"")
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def tiff(
    values: np.ndarray, order: str = "<", apart: bool = False, packed: bool = False, **tags: int
) -> bytes:
    """A TIFF file; `apart` stores one channel after the other, `packed` compresses them."""
    channels = values.shape[-1]
    values = values.astype(f"{order}{values.dtype.kind}{values.dtype.itemsize}")
    parts = [values[..., n] for n in range(channels)] if apart else [values]
    strips = [part.tobytes() for part in parts]
    strips = [zlib.compress(strip) for strip in strips] if packed else strips
    entries: dict[int, tuple[str, list[int]]] = {
        256: ("H", [32]),
        257: ("H", [32]),
        258: ("H", [8 * values.dtype.itemsize] * channels),
        259: ("H", [8 if packed else 1]),
        262: ("H", [tags.get("photometric", 2)]),
        273: ("I", [0] * len(strips)),
        277: ("H", [channels]),
        278: ("H", [32]),
        279: ("I", [len(strip) for strip in strips]),
        284: ("H", [1 + apart]),
    }
    if "extra" in tags:
        entries[338] = ("H", [tags["extra"]])
    if "sample" in tags:
        entries[339] = ("H", [tags["sample"]] * channels)
    first = 8 + 2 + 12 * len(entries) + 4
    long = sum(len(v) * struct.calcsize(k) for k, v in entries.values()) + first
    starts = [long + sum(map(len, strips[:n])) for n in range(len(strips))]
    entries[273] = ("I", starts)
    table, blob = b"", b""
    for tag, (kind, numbers) in sorted(entries.items()):
        data = struct.pack(f"{order}{len(numbers)}{kind}", *numbers)
        number = {"H": 3, "I": 4}[kind]
        place = data.ljust(4, b"\0")
        if len(data) > 4:
            place, blob = struct.pack(f"{order}I", first + len(blob)), blob + data
        table += struct.pack(f"{order}HHI", tag, number, len(numbers)) + place
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    count = struct.pack(f"{order}H", len(entries))
    return (header + count + table + bytes(4) + blob).ljust(long, b"\0") + b"".join(strips)


def netpbm(kind: str, largest: int) -> bytes:
    body = COLOURS.astype(">u2").tobytes() if kind == "P6" else b" ".join(
        str(value).encode() for value in COLOURS.ravel()
    )  # fmt: skip
    return f"{kind} 32 32 {largest}\n".encode() + body


def _with_alpha(values: np.ndarray) -> np.ndarray:
    return np.concatenate([values, HALF], -1)


def _hidden(shown: np.ndarray) -> np.ndarray:
    """What is seen where the upper half is transparent."""
    return np.where(HALF > 0, shown, 255)


KEY = struct.pack(">HHH", *COLOURS[5, 5].tolist())
FILES = {
    "rgb.png": (png(COLOURS, 2), SHOWN),
    "rgba.png": (png(_with_alpha(COLOURS), 6), _hidden(SHOWN)),
    "grey and alpha.png": (png(_with_alpha(COLOURS[..., :1]), 4), _hidden(GREY)),
    "a transparent colour.png": (
        png(COLOURS, 2, KEY),
        np.where((COLOURS == COLOURS[5, 5]).all(-1, keepdims=True), 255, SHOWN),
    ),
    "a transparent grey.png": (
        png(COLOURS[..., :1], 0, KEY[:2]),
        np.where(COLOURS[..., :1] == COLOURS[5, 5, 0], 255, GREY),
    ),
    "little.tif": (tiff(COLOURS), SHOWN),
    "big.tif": (tiff(COLOURS, ">"), SHOWN),
    "packed.tif": (tiff(COLOURS, packed=True), SHOWN),
    "big and packed.tif": (tiff(COLOURS, ">", packed=True), SHOWN),
    "apart.tif": (tiff(COLOURS, apart=True), SHOWN),
    "big and apart.tif": (tiff(COLOURS, ">", apart=True), SHOWN),
    "rgba.tif": (tiff(_with_alpha(COLOURS), extra=2), _hidden(SHOWN)),
    "premultiplied.tif": (
        tiff(_with_alpha(COLOURS * (HALF > 0)), extra=1),
        _hidden(SHOWN),
    ),
    "unused.tif": (tiff(_with_alpha(COLOURS), extra=0), SHOWN),
    "cmyk.tif": (
        tiff(np.concatenate([COLOURS, 0 * HALF], -1), photometric=5),
        255 - SHOWN,
    ),
    "x.ppm": (netpbm("P6", 65_535), SHOWN),
    "plain.ppm": (netpbm("P3", 65_535), SHOWN),
}


@pytest.mark.parametrize("name", FILES)
def test_12_of_16_bits_in_colour_are_read_whole(tmp_path: Path, name: str) -> None:
    content, expected = FILES[name]
    (tmp_path / name).write_bytes(content)
    found = read_image(tmp_path / name, 32, white_point=WHITE).astype(int)
    assert np.abs(found - expected).max() <= 1
    dark = read_image(tmp_path / name, 32).astype(int)
    assert np.abs(dark - found).max() > 100  # without a white point, 65535 is white


def test_netpbm_of_12_bits_uses_its_own_range(tmp_path: Path) -> None:
    (tmp_path / "x.ppm").write_bytes(netpbm("P6", WHITE))
    assert np.abs(read_image(tmp_path / "x.ppm", 32).astype(int) - SHOWN).max() <= 1


def test_a_16_bit_tiff_whose_zero_is_white_is_not_shown_as_a_negative(tmp_path: Path) -> None:
    deep = COLOURS[..., :1] * 16
    (tmp_path / "x.tif").write_bytes(tiff(deep, photometric=0))
    found = read_image(tmp_path / "x.tif", 32).astype(int)
    assert np.abs(found - (255 - deep / 257)).max() <= 1


@pytest.mark.parametrize("bits", [2, 4])
def test_the_transparent_value_of_few_bits_is_found(tmp_path: Path, bits: int) -> None:
    packed = np.full((32, 4 * bits), 0b0101_0101 if bits == 2 else 0b0001_0001)
    (tmp_path / "x.png").write_bytes(png(packed, 0, struct.pack(">H", 1), bits))
    assert (read_image(tmp_path / "x.png", 32) == 255).all()


def test_grey_with_premultiplied_alpha_is_read(tmp_path: Path) -> None:
    values = np.concatenate([np.full((32, 32, 1), 100), np.where(HALF > 0, 255, 0)], -1)
    (tmp_path / "x.tif").write_bytes(tiff(values.astype(np.uint8), photometric=1, extra=1))
    found = read_image(tmp_path / "x.tif", 32)
    assert (found[:15] == 255).all() and (found[17:] == 100).all()


@pytest.mark.parametrize(
    ("content", "ending", "reason"),
    [
        (tiff(GREY[..., :1].astype(np.int8), photometric=1, sample=2), "tif", "are signed"),
        (tiff(GREY[..., :1].astype(np.int16), photometric=1, sample=2), "tif", "signed values"),
        (tiff(COLOURS.astype(np.uint32)[..., :1], photometric=1), "tif", "has 32 bits"),
    ],
)
def test_values_that_no_8_bits_can_show_are_refused(
    tmp_path: Path, content: bytes, ending: str, reason: str
) -> None:
    (tmp_path / f"x.{ending}").write_bytes(content)
    with pytest.raises(InputError, match=f"cannot be read as an image: .*{reason}"):
        read_image(tmp_path / f"x.{ending}", 32)


def fits(values: np.ndarray) -> bytes:
    cards = {"SIMPLE": "T", "BITPIX": 16, "NAXIS": 2, "NAXIS1": 32, "NAXIS2": 32}
    lines = [f"{key:8}= {value:>20}".ljust(80) for key, value in cards.items()]
    header = "".join([*lines, "END".ljust(80)]).ljust(2880).encode()
    return header + values.astype(">i2").tobytes().ljust(2880, b"\0")


def test_fits_is_read_unless_a_value_is_negative(tmp_path: Path) -> None:
    values = COLOURS[::-1, :, 0].astype(int)  # from the lowest row up
    (tmp_path / "x.fits").write_bytes(fits(values))
    assert np.abs(read_image(tmp_path / "x.fits", 32, white_point=WHITE) - GREY).max() <= 1
    (tmp_path / "x.fits").write_bytes(fits(values - 2000))
    with pytest.raises(InputError, match="its 16 bits are signed"):
        read_image(tmp_path / "x.fits", 32)


def sgi(values: np.ndarray) -> bytes:
    header = struct.pack(">hBBHHHH", 474, 0, 2, 3, 32, 32, 3).ljust(512, b"\0")
    return header + np.moveaxis(values, 2, 0)[:, ::-1].astype(">u2").tobytes()


def _jpeg_2000(path: Path) -> None:
    """One whose header has 16 bits instead of 8."""
    Image.fromarray(SHOWN.astype(np.uint8)).save(path)
    content = bytearray(path.read_bytes())
    start = content.find(b"\xff\x4f\xff\x51") + 42
    content[start : start + 9 : 3] = bytes([15] * 3)
    path.write_bytes(content)


WRITERS: dict[str, Callable[[Path], object]] = {
    "sgi": lambda path: path.write_bytes(sgi(COLOURS)),
    "tif": lambda path: path.write_bytes(tiff(COLOURS, apart=True, packed=True)),
    "j2k": _jpeg_2000,
}


@pytest.mark.parametrize("ending", WRITERS)
def test_where_the_lower_bits_cannot_be_had_the_range_is_named_and_a_white_point_refused(
    image_root: Path, caplog: pytest.LogCaptureFixture, ending: str
) -> None:
    for path in image_root.glob("train/*/*.png"):
        path.unlink()
        WRITERS[ending](path.with_suffix(f".{ending}"))
    ImageFolder(root=str(image_root), image_size=32).load()
    (warning,) = [text for text in caplog.messages if "16 bits have values" in text]
    assert "of 65535, so about" in warning
    with pytest.raises(InputError, match="only the upper 8 of its 16 bits .* save it as PNG"):
        ImageFolder(root=str(image_root), image_size=32, white_point=WHITE).load()
    light = ImageFolder(root=str(image_root), image_size=32, white_point=15).load()  # of 8 bits
    assert light.train.pool.pixels.images.max() > 200 or ending == "j2k"


def test_colours_of_12_bits_are_named_like_greys_with_the_white_point_that_helps(
    image_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for path in image_root.glob("train/*/*.png"):
        path.write_bytes(png(COLOURS, 2))
    ImageFolder(root=str(image_root), image_size=32).load()
    assert any("data.white_point=4095 shows 4095 as white" in text for text in caplog.messages)
    caplog.clear()
    data = ImageFolder(root=str(image_root), image_size=32, white_point=WHITE).load()
    assert not any("white_point" in text for text in caplog.messages)
    assert len(data.train.pool.pixels.images[0].unique()) > 200


def test_a_window_of_inks_is_one_of_the_colours_that_they_mix(tmp_path: Path) -> None:
    inks = np.random.default_rng(0).integers(0, 256, (32, 32, 4))
    for dtype, step in (("u1", 1), ("u2", 257)):
        path = tmp_path / f"{dtype}.tif"
        path.write_bytes(tiff((inks * step).astype(dtype), photometric=5))
    rules, deep_rules = (ReadingRules(window=(40 * step, 200 * step)) for step in (1, 257))
    expected = read_image(tmp_path / "u1.tif", 32, rules=rules).astype(int)
    found = read_image(tmp_path / "u2.tif", 32, rules=deep_rules)
    assert np.abs(found - expected).max() <= 2 and np.ptp(expected) == 255


def test_unsigned_values_of_32_bits_do_not_wrap(tmp_path: Path) -> None:
    values = np.linspace(0, 4.2e9, 32 * 32).reshape(32, 32)
    path, rules = tmp_path / "wide.tif", ReadingRules(window=(0, 4.2e9))
    path.write_bytes(tiff(values.astype(np.uint32)[..., None], photometric=1, sample=1))
    with Image.open(path) as image:
        image.load()
        loaded = convert_image(image, 32, rules=rules)
    for shown in (read_image(path, 32, rules=rules), loaded):
        assert np.abs(shown[..., 0] - values / 4.2e9 * 255).max() <= 0.5 + 1e-6


@pytest.mark.parametrize(
    "content",
    [png(COLOURS, 2), png(COLOURS[..., :1], 0), tiff(COLOURS, ">", packed=True), tiff(COLOURS)],
)
def test_images_kept_in_another_file_are_read_like_files(tmp_path: Path, content: bytes) -> None:
    (path := tmp_path / "image").write_bytes(content)
    for rules in (ReadingRules(), ReadingRules(window=(100, 3000))):
        encoded = EncodedImage("data/train[0]", lambda: content, 0.0)
        assert np.array_equal(
            read_image(encoded, 32, rules=rules), read_image(path, 32, rules=rules)
        )
