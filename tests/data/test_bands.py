"""Bands of TIFF files by their numbers, and images in grey: what data.channels names."""

import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from helpers.folders import write_images
from tvf.data import ImageFolder, ReadingRules
from tvf.data.encoded import EncodedImage
from tvf.data.images import convert_image, read_image
from tvf.data.percentiles import find_window
from tvf.errors import InputError

tifffile = pytest.importorskip("tifffile")
RNG = np.random.default_rng(0)
SIZE = 32
BANDS = RNG.integers(0, 256, (SIZE, SIZE, 6), dtype=np.uint8)
WAYS = {
    "together": ("contig", False),
    "apart": ("separate", False),
    "as frames": (None, False),
    "big": ("contig", True),
}


def _tiff(path: Path, values: np.ndarray, way: str = "together", **how: Any) -> Path:
    """A TIFF file of values [H, W, C]."""
    config, big = WAYS[way]
    values = values if config == "contig" else np.moveaxis(values, -1, 0)
    how = {"photometric": "minisblack", "metadata": None, **how}
    tifffile.imwrite(path, values, planarconfig=config, bigtiff=big, **how)
    return path


def _read(file: Any, channels: Any, **how: Any) -> np.ndarray:
    white_point = how.pop("white_point", None)
    rules = ReadingRules("squash", "nearest", channels=channels, **how)
    return read_image(file, SIZE, white_point=white_point, rules=rules)


@pytest.mark.parametrize("way", WAYS)
def test_bands_are_chosen_by_their_numbers_from_1(tmp_path: Path, way: str) -> None:
    path = _tiff(tmp_path / "x.tif", BANDS, way, compression="zlib")
    assert np.array_equal(_read(path, [6, 1, 3]), BANDS[..., [5, 0, 2]])
    assert np.array_equal(_read(path, [4]), BANDS[..., [3, 3, 3]])
    encoded = EncodedImage("row", path.read_bytes, 0.0)
    assert np.array_equal(_read(encoded, [2, 2, 1]), BANDS[..., [1, 1, 0]])
    for bands in ([7], [1, 2, 7]):
        with pytest.raises(InputError, match=r"x.tif .*it has 6 bands, and data.channels=\[.*7\]"):
            _read(path, bands)


def test_bands_of_colours_and_grey_are_those_that_a_viewer_shows(tmp_path: Path) -> None:
    Image.fromarray(BANDS[..., :3]).save(tmp_path / "rgb.tif")
    assert np.array_equal(
        _read(tmp_path / "rgb.tif", [1, 2, 3]), _read(tmp_path / "rgb.tif", "auto")
    )
    Image.fromarray(BANDS[..., 0]).save(tmp_path / "grey.tif")
    assert np.array_equal(_read(tmp_path / "grey.tif", [1]), _read(tmp_path / "grey.tif", "auto"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_bands_are_turned_upright(tmp_path: Path, orientation: int) -> None:
    tags = [(274, "H", 1, orientation, True)]
    path = _tiff(tmp_path / "x.tif", BANDS[..., :3], extratags=tags)
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(BANDS[..., :3]).save(content := BytesIO(), "PNG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(content))
    assert np.array_equal(_read(path, [1, 2, 3]), np.asarray(upright))


def test_values_of_other_types_are_shown_by_white_point_or_window(tmp_path: Path) -> None:
    deep = _tiff(tmp_path / "deep.tif", BANDS.astype(np.uint16) * 16)
    assert np.array_equal(_read(deep, [2, 1, 1], white_point=4080), BANDS[..., [1, 0, 0]])
    assert np.array_equal(_read(deep, [2], window=(0, 4080)), BANDS[..., [1, 1, 1]])
    assert _read(deep, [2]).max() <= 16
    shown = _read(_tiff(tmp_path / "x.tif", BANDS // 2), [1], white_point=127)
    assert shown.max() == 255 and np.abs(shown[..., 0] - BANDS[..., 0].astype(float)).max() <= 2
    for kind in (np.float32, np.float64, np.int16, np.int32, np.uint32, np.int8, np.float16):
        path = _tiff(tmp_path / f"{np.dtype(kind)}.tif", (BANDS // 2).astype(kind))
        with pytest.raises(InputError, match="it has values of type .*data.window="):
            _read(path, [1])
        assert np.array_equal(_read(path, [5], window=(0, 255)), BANDS[..., [4, 4, 4]] // 2)


def test_percentiles_are_those_of_the_bands_alone(tmp_path: Path) -> None:
    values = np.stack([np.full((SIZE, SIZE), 1000.0), RNG.random((SIZE, SIZE)) * 9], -1)
    path = _tiff(tmp_path / "x.tif", values.astype(np.float32))
    low, high = find_window([path], (1, 99), 100.0, [2])
    assert 0 < low < 0.3 and 8.7 < high < 9
    values[0, 0, 1] = np.nan
    with pytest.raises(InputError, match="no numbers .NaN."):
        find_window([_tiff(path, values)], (1, 99), 100.0, [2])
    with pytest.raises(InputError, match="no numbers .NaN."):
        _read(path, [2], window=(0, 9))


def test_a_folder_of_bands_is_read_with_its_own_window(tmp_path: Path) -> None:
    for number in range(24):
        folder = tmp_path / "data" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        values = RNG.normal(number, 5, (40, 36, 8)).astype(np.float32)
        _tiff(folder / f"{number}.tif", values, "apart")
    how: dict[str, Any] = {"channels": [8, 2, 1], "window": ["1%", "99%"], "image_size": 32}
    data = ImageFolder(root=str(tmp_path / "data"), **how).load()
    assert data.train.pool.window is not None and len(data.train) == 15
    other = ImageFolder(root=str(tmp_path / "data"), **{**how, "channels": [8, 1, 2]}).load()
    assert other.train.pool.fingerprint != data.train.pool.fingerprint
    with pytest.raises(InputError, match="images cannot be read"):
        ImageFolder(root=str(tmp_path / "data"), image_size=32).load()


def test_without_tifffile_bands_are_one_error_before_images_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_images(tmp_path, each=2)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(InputError, match=r"^the bands of data.channels .*install 'tvf\[tiff\]'"):
        ImageFolder(root=str(root), image_size=32, channels=[1])
    ImageFolder(root=str(root), image_size=32, channels="grey")


def _damaged(path: Path) -> Path:
    path.write_bytes(_tiff(path, BANDS).read_bytes()[:3000])
    return path


def _palette(path: Path) -> Path:
    Image.fromarray(BANDS[..., :3]).quantize(9).save(path)
    return path


def _white_is_zero(path: Path) -> Path:
    return _tiff(path, BANDS[..., :1], "as frames", photometric="miniswhite")


def _png(path: Path) -> Path:
    Image.fromarray(BANDS[..., :3]).save(path, "PNG")
    return path


def _written(content: bytes) -> Any:
    return lambda path: (path.write_bytes(content), path)[1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_png, "data.channels chooses bands of TIFF files, and it is none"),
        (_palette, "its bands are no plain values .PALETTE."),
        (_white_is_zero, "its bands are no plain values .MINISWHITE."),
        (_damaged, "x.tif cannot be read as an image"),
        (_written(b""), "x.tif cannot be read as an image"),
        (_written(b"II*\0"), "x.tif cannot be read as an image"),
        (_written(b"II*\0\x08\0\0\0\xff\xff"), "x.tif cannot be read as an image"),
        (lambda path: _tiff(path, BANDS.astype(np.complex64)), "its values are of type complex64"),
        (lambda path: path, "No such file"),
        (lambda path: (path.mkdir(), path)[1], "Is a directory"),
    ],
)
def test_what_has_no_bands_is_named(tmp_path: Path, make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        _read(make(tmp_path / "x.tif"), [1])


def test_bands_that_are_too_large_are_not_decoded(tmp_path: Path) -> None:
    path = _tiff(tmp_path / "x.tif", BANDS)
    with pytest.raises(InputError, match="has 0.00102 megapixels, more than data.max"):
        read_image(path, SIZE, 0.001, rules=ReadingRules(channels=(1,)))


def test_grey_is_the_lightness_of_colours(tmp_path: Path) -> None:
    Image.fromarray(BANDS[..., :3]).save(tmp_path / "x.png")
    expected = np.asarray(Image.fromarray(BANDS[..., :3]).convert("L").convert("RGB"))
    assert np.array_equal(_read(tmp_path / "x.png", "grey"), expected)
    rules = ReadingRules("squash", "nearest", channels="grey")
    with Image.open(tmp_path / "x.png") as image:
        image.load()
        assert np.array_equal(convert_image(image, SIZE, rules=rules), expected)
    root = write_images(tmp_path / "images", each=8)
    pixels = ImageFolder(root=str(root), image_size=32, channels="grey").load().train.pool.pixels
    assert (pixels.images == pixels.images[:, :1]).all()


def test_images_in_memory_have_no_bands_of_files() -> None:
    with pytest.raises(InputError, match=r"bands \[1\] are read from TIFF files, by their paths"):
        convert_image(Image.new("RGB", (9, 9)), SIZE, rules=ReadingRules(channels=(1,)))


@pytest.mark.parametrize(
    "channels",
    [*(0, 3, None, True, "rgb", "gray", "[1]", [], [0], [-1], [1, 2], [1, 2, 3, 4], [1.0])]
    + [*([True], ["1"], [[1]], {"a": 1}, [None], [1, 2, 0])],
)
def test_what_names_no_channels_is_refused(channels: Any) -> None:
    with pytest.raises(
        InputError, match="data.channels=.* must be auto, grey, or a list of one or"
    ):
        ReadingRules(channels=channels)


def test_rules_are_equal_only_with_equal_channels() -> None:
    assert ReadingRules().key == ReadingRules(channels="auto").key == ()
    keys = [ReadingRules(channels=c).key for c in ("auto", "grey", (1,), (1, 2, 3), (3, 2, 1))]
    assert len({*keys}) == len(keys)
    assert ReadingRules.of({"channels": [3, 2, 1]}) == ReadingRules(channels=(3, 2, 1))


def test_without_the_library_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _tiff(tmp_path / "x.tif", BANDS)
    monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
    with pytest.raises(
        InputError, match=r"tifffile, which is not installed: pip install 'tvf.tiff"
    ):
        _read(path, [1])


@pytest.mark.parametrize("white_point", [1, 100, 254])
def test_a_white_point_shows_bands_as_it_shows_colours(tmp_path: Path, white_point: int) -> None:
    values = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    path = _tiff(tmp_path / "x.tif", values, photometric="rgb")
    bands = _read(path, [1, 2, 3], white_point=white_point)
    assert np.array_equal(bands, _read(path, "auto", white_point=white_point))
