"""A window of values: what is shown as black and white, of floats and of all other images."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers.folders import write_images
from tvf.data.images import convert_image, read_image, read_images
from tvf.data.ranges import describe_lost_range
from tvf.data.rules import ReadingRules
from tvf.data.sources.image_folder import ImageFolder
from tvf.errors import InputError

SIZE = 32  # of images and squares, so that nothing is resized


def _ramp(low: float, high: float, dtype: Any) -> np.ndarray:
    return np.linspace(low, high, SIZE * SIZE).reshape(SIZE, SIZE).astype(dtype)


def _window(low: float, high: float) -> ReadingRules:
    return ReadingRules(window=(low, high))


def _expected(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Shades before they are rounded, [H, W, 3]."""
    grey = (np.clip(values.astype(float), low, high) - low) / (high - low) * 255
    return grey[..., None].repeat(3, -1) if grey.ndim == 2 else grey


@pytest.mark.parametrize(
    ("name", "values", "window"),
    [
        ("float.tif", _ramp(-1.5, 2.5, np.float32), (-1.0, 2.0)),
        ("wide.tif", _ramp(-2000, 3000, np.int32), (-1000, 400)),
        ("deep.png", _ramp(0, 65535, np.uint16), (1000, 5000.5)),
        ("deep.tif", _ramp(0, 4095, np.uint16), (-100, 8000)),
        ("grey.png", _ramp(0, 255, np.uint8), (20, 200)),
        ("colour.png", np.stack([_ramp(0, 200 + k, np.uint8) for k in range(3)], -1), (0, 128)),
    ],
)
def test_values_outside_the_window_are_black_and_white_and_those_inside_linear(
    tmp_path: Path, name: str, values: np.ndarray, window: tuple[float, float]
) -> None:
    image = Image.fromarray(values)
    image.save(tmp_path / name)
    expected = _expected(values, *window)
    assert expected.min() <= 10 and expected.max() >= 130
    for shown in (
        read_image(tmp_path / name, SIZE, rules=_window(*window)),
        convert_image(image, SIZE, rules=_window(*window)),
    ):
        assert np.abs(shown - expected).max() <= 0.5 + 1e-6


def _signed(path: Path) -> Path:
    """A TIFF of signed values of 16 bits, from -500 to 523."""
    values = np.arange(-500, 524).reshape(SIZE, SIZE)
    image = Image.frombytes("I;16", (SIZE, SIZE), values.astype("<i2").tobytes())
    image.save(path, tiffinfo={339: 2})
    return path


def test_signed_values_take_a_window(tmp_path: Path) -> None:
    path = _signed(tmp_path / "signed.tif")
    with pytest.raises(InputError, match=r"signed values.*data.window=\[low,high\] which values"):
        read_image(path, SIZE)
    shown = read_image(path, SIZE, rules=_window(-500, 523))
    assert shown[0, 0].tolist() == [0] * 3 and shown[-1, -1].tolist() == [255] * 3
    assert np.array_equal(shown, np.sort(shown.reshape(-1, 3), 0).reshape(shown.shape))


def test_signed_values_that_cannot_be_told_from_others_are_refused(tmp_path: Path) -> None:
    Image.fromarray(_ramp(0, 255, np.uint8)).save(tmp_path / "x.tif", tiffinfo={339: 2})
    cards = ("SIMPLE", "T"), ("BITPIX", "16"), ("NAXIS", "2"), ("NAXIS1", "32"), ("NAXIS2", "32")
    header = "".join(f"{key:8}= {value:>20}".ljust(80) for key, value in cards) + "END".ljust(80)
    values = _ramp(-500, 500, ">i2").tobytes()
    (tmp_path / "x.fits").write_bytes(header.encode().ljust(2880) + values.ljust(2880, b"\0"))
    for name in ("x.tif", "x.fits"):
        with pytest.raises(InputError, match=f"{name} cannot be read.*signed.*with unsigned"):
            read_image(tmp_path / name, SIZE, rules=_window(-500, 500))


@pytest.mark.parametrize(
    ("name", "values", "window", "message"),
    [
        (
            "f.tif",
            np.array([[0, np.nan]], np.float32),
            (0, 1),
            r"f.tif cannot be read.*no numbers \(NaN\)",
        ),
        (
            "g.png",
            np.array([[0, 9]], np.uint8),
            (-1, 255),
            r"8 bits, values from 0 to 255, and data.window",
        ),
        (
            "g.png",
            np.array([[0, 9]], np.uint8),
            (0, 4095),
            r"data.window=\[0.0, 4095.0\] is for other ones",
        ),
        (
            "f.tif",
            np.array([[0, 1]], np.float32),
            None,
            r"32 bits per channel .*data.window=\[low,high\]",
        ),
    ],
)
def test_what_a_window_cannot_show_is_an_error(
    tmp_path: Path, name: str, values: np.ndarray, window: Any, message: str
) -> None:
    Image.fromarray(values).save(tmp_path / name)
    with pytest.raises(InputError, match=message):
        read_images([tmp_path / name], SIZE, rules=ReadingRules(window=window))


def test_infinite_values_are_black_or_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[np.inf, -np.inf], [-np.inf, np.inf]], np.float32)).save(
        tmp_path / "f.tif"
    )
    shown = read_image(tmp_path / "f.tif", 2, rules=_window(0, 1))
    assert shown[..., 0].tolist() == [[255, 0], [0, 255]]


@pytest.mark.parametrize(
    "window",
    [[1, 1], [2, 1], [0], [0, 1, 2], 5, "0,1", ["a", "b"], [0, float("nan")], [True, 3], {}],
)
def test_a_window_must_be_two_ascending_numbers(window: Any, tmp_path: Path) -> None:
    root = write_images(tmp_path, each=1)
    with pytest.raises(InputError, match=r"data.window=.* must be \[low,high\]"):
        ImageFolder(root=str(root), image_size=SIZE, window=window)


def test_a_white_point_and_a_window_exclude_each_other(tmp_path: Path) -> None:
    root = write_images(tmp_path, each=1)
    with pytest.raises(
        InputError, match=r"data.white_point=99 .*the window \[0,99\] shows the same"
    ):
        ImageFolder(root=str(root), image_size=SIZE, white_point=99, window=[0, 9])
    point = ImageFolder(root=str(root), image_size=SIZE, white_point=99)
    window = ImageFolder(root=str(root), image_size=SIZE, window=[0, 99])
    one, other = (
        source.catalog().read(np.arange(2), False, None).images.int() for source in (point, window)
    )
    assert int((one - other).abs().max()) <= 1


def test_windows_are_part_of_the_key() -> None:
    keys = {_window(0, 1).key, _window(0, 2).key, ReadingRules().key}
    assert len(keys) == 3 and _window(0, 1).key == ReadingRules(window=(0.0, 1.0)).key


def test_images_of_which_a_window_shows_nothing_are_named(tmp_path: Path) -> None:
    for number in range(4):
        Image.fromarray(_ramp(100, 900, np.float32)).save(tmp_path / f"{number}.tif")
    paths = sorted(tmp_path.iterdir())
    said = describe_lost_range(read_images(paths, SIZE, rules=_window(0, 1)).ranges)
    assert said is not None
    assert said.startswith("4 of 4 images are mostly a single shade in data.window")
    assert describe_lost_range(read_images(paths, SIZE, rules=_window(0, 1000)).ranges) is None


@pytest.mark.parametrize(
    ("values", "window", "said"),
    [
        (_ramp(0, 4095, np.uint16), (0, 65535), "2 of 2 images are nearly black in data.window"),
        (_ramp(0, 4095, np.uint16), (0, 255), "2 of 2 images are mostly a single shade in"),
        (_ramp(0, 200, np.uint8), (0, 1), "2 of 2 images are mostly a single shade in"),
        (_ramp(0, 1, np.float32), (0, 255), "2 of 2 images are mostly a single shade in"),
        (_ramp(0, 4095, np.uint16), (0, 4095), None),
        (_ramp(0, 200, np.uint8), (50, 150), None),
        # Three quarters are black around the object, as in many X-ray images.
        (np.maximum(_ramp(-3000, 1000, np.int32), -1000), (-1000, 400), None),
    ],
)
def test_a_window_that_loses_most_values_is_named(
    tmp_path: Path, values: np.ndarray, window: tuple[float, float], said: str | None
) -> None:
    paths = [tmp_path / "a.tif", tmp_path / "b.tif"]
    for path in paths:
        Image.fromarray(values).save(path)
    found = describe_lost_range(read_images(paths, SIZE, rules=_window(*window)).ranges)
    assert found is None if said is None else found is not None and found.startswith(said)
