"""How image files are read: metadata, ranges of values, and files that cannot be read."""

import io
import logging
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from tvf.data.images import read_image, read_images
from tvf.data.ranges import describe_lost_range
from tvf.data.sources import ImageFolder
from tvf.errors import InputError
from tvf.store import Store

ORIENTATION, X_RESOLUTION, RESOLUTION_UNIT = 0x0112, 0x011A, 0x0128
# A picture whose eight turns all differ.
CORNER = np.zeros((32, 32, 3), np.uint8)
CORNER[:16, :16], CORNER[:16, 16:] = 255, 128


def _entry(tag: int, kind: int, value: bytes) -> bytes:
    return struct.pack("<HHI", tag, kind, 1) + value.ljust(4, b"\0")


def _exif(*entries: bytes) -> bytes:
    """An EXIF block of these entries, little-endian."""
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return b"Exif\0\0" + b"II*\0\x08\0\0\0" + directory


SIX = _entry(ORIENTATION, 3, struct.pack("<H", 6))
BROKEN_ENTRIES = {
    "unit of a wrong type": _entry(RESOLUTION_UNIT, 2, b"2"),
    "resolution beyond the end": _entry(X_RESOLUTION, 5, struct.pack("<I", 60_000)),
    "software beyond the end": _entry(0x0131, 2, struct.pack("<I", 60_000)),
    "unknown type": _entry(0x9999, 99, b"xxxx"),
}


@pytest.mark.parametrize("broken", BROKEN_ENTRIES)
@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
@pytest.mark.filterwarnings("ignore:(Corrupt|Truncated|Metadata)")
def test_pixels_are_turned_by_the_orientation_whatever_else_the_metadata_say(
    tmp_path: Path, broken: str, ending: str
) -> None:
    exif = _exif(SIX, BROKEN_ENTRIES[broken])
    options: dict[str, Any] = {"lossless": True} if ending == "webp" else {"quality": 95}
    Image.fromarray(CORNER).save(tmp_path / f"x.{ending}", exif=exif, **options)
    turned = np.rot90(CORNER, -1).astype(int)  # 6: turn it clockwise
    assert np.abs(read_image(tmp_path / f"x.{ending}", 32) - turned).max() < 60


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_as_pillow_turns_it(tmp_path: Path, orientation: int) -> None:
    from PIL import ImageOps

    for name in ("x.png", "x.tif"):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        Image.fromarray(CORNER).save(tmp_path / name, exif=exif)
        with Image.open(tmp_path / name) as image:
            expected = np.asarray(ImageOps.exif_transpose(image))
        assert np.array_equal(read_image(tmp_path / name, 32), expected), name


@pytest.mark.parametrize("exif", [b"Exif\0\0no directory", b"Exif\0\0II*\0\xff\xff\xff\xff", b"?"])
@pytest.mark.filterwarnings("ignore:Corrupt")
def test_an_image_whose_metadata_cannot_be_parsed_is_read_as_it_is(
    tmp_path: Path, exif: bytes
) -> None:
    Image.fromarray(CORNER).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "x.png", 32), CORNER)


@pytest.mark.parametrize(
    "error",
    [struct.error("unpack"), KeyError("tag"), IndexError(), ZeroDivisionError(), MemoryError(),
     AttributeError("x"), RecursionError(), AssertionError(), EOFError(), NotImplementedError()],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_whatever_a_reader_raises_the_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    Image.fromarray(CORNER).save(tmp_path / "x.png")

    def fail(self: object) -> None:
        raise error

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    with pytest.raises(InputError, match=r"x\.png cannot be read as an image: .+ Repair or remove"):
        read_image(tmp_path / "x.png", 32)


def _text_bomb(path: Path) -> None:
    """A small PNG with a text of 2 MB."""
    info = PngImagePlugin.PngInfo()
    info.add_text("x", "0" * 2_000_000, zip=True)
    Image.fromarray(CORNER).save(path, pnginfo=info)


def _half(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:1500])


def _nothing(path: Path) -> None:
    path.touch()


@pytest.mark.parametrize("damage", [_text_bomb, _half, _nothing])
def test_a_damaged_file_is_named(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    damage(tmp_path / "x.png")
    with pytest.raises(InputError, match=r"x\.png cannot be read as an image"):
        read_images([tmp_path / "x.png"], 32)


@pytest.mark.parametrize("stored", [False, True])
def test_bad_images_are_counted_by_reason_with_the_first_names(
    tmp_path: Path, image_root: Path, stored: bool
) -> None:
    for number in range(11):
        (image_root / "train" / "dogs" / f"{number}.png").write_bytes(b"no image")
    (image_root / "train" / "cats" / "3.png").write_bytes(b"")
    source = ImageFolder(root=str(image_root), image_size=32)
    with pytest.raises(
        InputError, match=r"^12 of 48 images cannot be read, in .*train: "
    ) as caught:
        source.load(store=Store(tmp_path / "store", 10**9) if stored else None)
    message = str(caught.value)
    assert "train: 11: it is text (dogs/0.png, dogs/1.png, dogs/10.png, ...); 1: " in message
    assert "1: the file is empty (cats/3.png). Repair or remove them." in message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "git-lfs pointer"),
        (b"\n<!DOCTYPE html><html><body>Not found</body></html>", "a web page"),
        (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
        ("Zugriff verweigert: für ".encode() * 30, "it is text"),
        (b"\x00\x01\x02\xff" * 30, "none that Pillow knows"),
    ],
)
def test_what_is_no_image_is_said(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(InputError, match=rf"x.png cannot be read as an image: .*{reason}"):
        read_images([tmp_path / "x.png"], 32)


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "tif"])
def test_truncated_images_have_one_reason(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"x.{ending}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(InputError, match="it is truncated"):
        read_images([path], 32)


def test_a_file_that_cannot_be_opened_is_named_with_the_others(
    image_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulated, as nothing is unreadable for root."""
    (image_root / "train" / "dogs" / "7.png").write_bytes(b"no image")
    import builtins

    real = builtins.open

    def refuse(path: object, *rest: object, **more: object) -> object:
        if str(path).endswith("cats/5.png"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *rest, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(builtins, "open", refuse)
    with pytest.raises(InputError, match=r"2 of 48 .*denied \(cats/5.png\).*text \(dogs/7.png\)"):
        ImageFolder(root=str(image_root), image_size=32).load()


def _grey(high: int, ending: str) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        for number, path in enumerate(sorted(root.glob("train/*/*.png"))):
            values = np.random.default_rng(number).integers(0, high + 1, (40, 40))
            values[0, 0] = high
            path.unlink()
            Image.fromarray(values.astype(np.uint16)).save(path.with_suffix(ending))

    return write


def _dark_colours(root: Path) -> None:
    """12 bits in colour images of 16, of which Pillow reads the upper 8."""
    for path in root.glob("train/*/*.png"):
        Image.fromarray(np.asarray(Image.open(path)) // 16).save(path)


@pytest.mark.parametrize(
    ("write", "found", "white_point"),
    [
        (_grey(4095, ".png"), "from 0 to 4095.* of 65535, so about 17 of 256", 4095),
        (_grey(1023, ".tif"), "from 0 to 1023.* of 65535, so about 5 of 256", 1023),
        (_grey(16000, ".png"), "from 0 to 16000", 16383),
        (_dark_colours, "from 0 to 1[0-5] of 255", 15),
    ],
    ids=["12 bits", "10 bits in TIFF", "14 bits", "dark colours"],
)
def test_values_that_use_little_of_the_range_are_named_with_the_white_point_that_helps(
    image_root: Path,
    caplog: pytest.LogCaptureFixture,
    write: Callable[[Path], None],
    found: str,
    white_point: int,
) -> None:
    write(image_root)
    dark = ImageFolder(root=str(image_root), image_size=32).load()
    (warning,) = [text for text in caplog.messages if "white_point" in text]
    assert f"data.white_point={white_point} shows {white_point} as white" in warning
    import re

    assert re.search(found, warning)
    caplog.clear()
    light = ImageFolder(root=str(image_root), image_size=32, white_point=white_point).load()
    assert not [text for text in caplog.messages if "white_point" in text]
    images = [data.train.pool.pixels.images for data in (dark, light)]
    assert images[0].max() < 64 < 200 < images[1].max()


def test_a_full_range_is_not_worth_a_word(
    caplog: pytest.LogCaptureFixture, image_root: Path
) -> None:
    ImageFolder(root=str(image_root), image_size=32).load()
    _grey(60_000, ".png")(image_root)
    ImageFolder(root=str(image_root), image_size=32).load()
    assert not caplog.messages


def test_the_range_is_known_for_images_from_the_store(
    tmp_path: Path, image_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _grey(4095, ".png")(image_root)
    store = Store(tmp_path / "store", 10**9)
    caplog.set_level(logging.WARNING)
    for _ in range(2):
        caplog.clear()
        ImageFolder(root=str(image_root), image_size=32).load(store=store)
        assert any("data.white_point=4095" in text for text in caplog.messages)
    store.close()


@pytest.mark.parametrize(
    ("low", "high", "white", "said"),
    [
        (32_768, 36_000, 65_535, "Rescale them"),
        (0, 4095, 4095, None),
        (0, 4095, 1000, "are cut: raise it to 4095"),
        (0, 40_000, 65_535, None),
        (0, 15, 15, None),
    ],
)
def test_offsets_and_cut_values_are_told_apart(
    low: int, high: int, white: int, said: str | None
) -> None:
    text = describe_lost_range(np.tile([low, high, white], (9, 1)))
    assert text is None if said is None else said in str(text)


@pytest.mark.parametrize(
    ("dark", "light", "found"),
    [
        ((0, 4095, 65535), (0, 65000, 65535), "45 of them have none above 4095 of 65535"),
        ((0, 9, 255), (0, 250, 255), None),  # there are many black photographs, too
    ],
)
def test_a_part_of_the_images_in_another_range_is_named(
    dark: tuple[int, ...], light: tuple[int, ...], found: str | None
) -> None:
    text = describe_lost_range(np.array([dark] * 45 + [light] * 55))
    assert (text is None) if found is None else (text is not None and found in text)
    assert describe_lost_range(np.array([dark] * 5 + [light] * 95)) is None


def test_one_bright_image_does_not_hide_that_all_others_are_black() -> None:
    text = describe_lost_range(np.array([(0, 9, 255)] * 99 + [(0, 255, 255)]))
    assert text is not None and text.startswith("99 of 100 images have values from 0 to 9 of 255")


def test_16_bits_are_rounded_to_8_without_a_white_point() -> None:
    values = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "png")
    file.seek(0)
    shown = read_image(file, 256)[..., 0]  # type: ignore[arg-type]
    assert np.array_equal(shown, ((values.astype(int) + 128) // 257).astype(np.uint8))


def test_16_bit_netpbm_is_read(tmp_path: Path) -> None:
    values = np.linspace(0, 4095, 1024).astype(">u2").reshape(32, 32)
    (tmp_path / "x.pgm").write_bytes(b"P5 32 32 4095\n" + values.tobytes())
    shown = read_image(tmp_path / "x.pgm", 32)[..., 0].astype(int)
    assert np.abs(shown - values.astype(int) * 255 / 4095).max() <= 1


def test_a_white_point_of_8_bits_leaves_what_is_transparent(tmp_path: Path) -> None:
    pixels = np.full((32, 32, 4), 3, np.uint8)
    pixels[:16, :, 3], pixels[16:, :, 3] = 255, 0
    Image.fromarray(pixels).save(tmp_path / "x.png")
    shown = read_image(tmp_path / "x.png", 32, white_point=15)
    assert (shown[:15] == 51).all() and (shown[17:] == 255).all()


@pytest.mark.parametrize("value", [0, -1, 65_536, 1.5, "white"])
def test_a_white_point_must_be_a_value_of_16_bits(image_root: Path, value: object) -> None:
    with pytest.raises(InputError, match=r"data.white_point=.* must be a whole number"):
        ImageFolder(root=str(image_root), image_size=32, white_point=value)  # type: ignore[arg-type]
