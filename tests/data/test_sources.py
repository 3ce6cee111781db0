"""Data sources: splits, image folders, and how images are decoded."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tvf.data.images import check_memory, read_image, read_images
from tvf.data.sources.elpv import Elpv
from tvf.data.sources.image_folder import ImageFolder
from tvf.data.splits import divide
from tvf.errors import InputError
from tvf.store import Store


@pytest.mark.slow
def test_elpv_by_cell_has_1575_393_and_656_images_in_three_channels() -> None:
    elpv = Elpv(image_size=32, split_by="cell").load()
    assert [len(split) for split in (elpv.train, elpv.val, elpv.test)] == [1575, 393, 656]
    images = elpv.train.pixels(np.arange(1575))
    assert images.shape == (1575, 3, 32, 32) and images.dtype == torch.uint8
    assert torch.equal(images[:, 0], images[:, 2])


def test_elpv_is_read_in_three_equal_channels() -> None:
    images = Elpv(image_size=32).catalog().read(np.arange(0, 2624, 100), False, None).images
    assert images.shape == (27, 3, 32, 32) and images.dtype == torch.uint8
    assert torch.equal(images[:, 0], images[:, 2])


def test_elpv_splits_by_cell_are_stratified_and_the_same_for_both_tasks() -> None:
    sources = [Elpv(image_size=32, task=task, split_by="cell") for task in ("binary", "four_class")]
    two, four = (source.catalog() for source in sources)
    assert (two.classes, four.classes) == (("functional", "defective"), ("0", "1/3", "2/3", "1"))
    halves, places = divide(two, sources[0]), divide(four, sources[1])
    assert [len(places[name]) for name in ("train", "val", "test")] == [1575, 393, 656]
    shares = np.bincount(four.labels) / 2624
    for name in places:
        levels = four.labels[places[name]]
        assert np.array_equal(halves[name], places[name])
        assert np.array_equal(two.labels[halves[name]], levels >= 2)
        assert np.bincount(levels) / len(levels) == pytest.approx(shares, abs=0.005)


def test_elpv_by_module_keeps_each_of_44_modules_in_one_split() -> None:
    source = Elpv(image_size=32)
    catalog = source.catalog()
    assert catalog.groups is not None and len(catalog) == 2624
    mono = catalog.strata % 2 == 1 if catalog.strata is not None else None
    modules, sizes = np.unique(catalog.groups, return_counts=True)
    assert len(modules) == 44 and sizes.min() >= 48 and sizes.max() <= 72
    assert len(np.unique(catalog.groups[mono])) == 18  # as in Deitsch et al. 2019
    places = divide(catalog, source)
    groups = [set(catalog.groups[places[name]]) for name in ("train", "val", "test")]
    assert len(groups[0] | groups[1] | groups[2]) == sum(map(len, groups)) == 44
    sizes = [len(places[name]) / 2624 for name in ("train", "val", "test")]
    assert sizes == pytest.approx([0.6, 0.15, 0.25], abs=0.02)
    for name in places:
        defective = catalog.labels[places[name]].mean()
        assert defective == pytest.approx(catalog.labels.mean(), abs=0.06), name


def test_without_val_and_test_folders_train_is_split_in_proportion(image_root: Path) -> None:
    data = ImageFolder(root=str(image_root), image_size=32).load()
    assert data.classes == ("cats", "dogs")
    assert [len(split) for split in (data.train, data.val, data.test)] == [29, 7, 12]
    assert torch.bincount(data.test.labels).tolist() == [6, 6]


def test_val_and_test_folders_are_used_if_they_exist(image_root: Path) -> None:
    for name in ("val", "test"):
        folder = image_root / name / "dogs"
        folder.mkdir(parents=True)
        Image.new("RGB", (40, 40), "red").save(folder / "a.jpg")
    data = ImageFolder(root=str(image_root), image_size=32).load()
    assert [len(split) for split in (data.train, data.val, data.test)] == [48, 1, 1]
    assert data.test.labels.tolist() == [1]
    (image,) = data.test.pixels(np.arange(1)).float()
    assert image[0].mean() > 250 > 10 > image[1].mean()


def test_an_image_is_its_centre_square_resized_and_turned_upright(tmp_path: Path) -> None:
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:20, 20:60] = (255, 0, 0)  # of the centre square, the upper half is red
    plain, turned = tmp_path / "plain.png", tmp_path / "turned.jpg"
    Image.fromarray(pixels).save(plain)
    exif = Image.Exif()
    exif[0x0112] = 3  # the camera was held upside down
    Image.fromarray(pixels[::-1, ::-1].copy()).save(turned, exif=exif, quality=95)
    for path in (plain, turned):
        image = read_image(path, 32).astype(int)
        assert image.shape == (32, 32, 3)
        assert image[:14, 2:-2, 0].min() > 200
        assert image[18:, :, 0].max() < 55


def _truncated(root: Path) -> str:
    image = root / "train" / "dogs" / "5.png"
    image.write_bytes(image.read_bytes()[:200])
    return "5.png cannot be read"


def _empty_class(root: Path) -> str:
    (root / "train" / "birds").mkdir()
    return "birds"


def _one_class(root: Path) -> str:
    for image in (root / "train" / "dogs").iterdir():
        image.unlink()
    (root / "train" / "dogs").rmdir()
    return "at least 2"


def _unknown_test_class(root: Path) -> str:
    (root / "test" / "birds").mkdir(parents=True)
    return "birds is a class that train/ does not have"


def _empty_test(root: Path) -> str:
    (root / "test").mkdir()
    return "test has no images"


def _no_train(root: Path) -> str:
    (root / "train").rename(root / "pictures")
    return "has no train/ folder"


@pytest.mark.parametrize(
    "damage", [_truncated, _empty_class, _one_class, _unknown_test_class, _empty_test, _no_train]
)
def test_an_unusable_folder_is_named(image_root: Path, damage: Callable[[Path], str]) -> None:
    message = damage(image_root)
    with pytest.raises(InputError, match=message):
        ImageFolder(root=str(image_root), image_size=32).load()


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_size": 7},
        {"batch_size": 0},
        {"limit": 0},
        {"val_fraction": 1.0},
        {"split_seed": -1},
        {"task": "three"},
    ],
)
def test_options_out_of_range_are_errors_before_anything_is_read(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match=f"data.{next(iter(wrong))}"):
        Elpv(**{"image_size": 96, **wrong})  # type: ignore[arg-type]


def _gradient(mode: str) -> Image.Image:
    """64x64 pixels, from black at the left to white at the right."""
    return Image.fromarray(
        np.tile(np.linspace(0, 255, 64).round().astype(np.uint8), (64, 1))
    ).convert(mode)


def _transparent_palette() -> Image.Image:
    """All red, which `transparency=0` makes transparent."""
    image = Image.new("P", (64, 64), 0)
    image.putpalette([255, 0, 0])
    return image


def test_unusual_images_are_read_as_a_viewer_shows_them(tmp_path: Path) -> None:
    expected = np.asarray(_gradient("RGB")).astype(int)
    deep = np.asarray(_gradient("L")).astype(np.uint16) * 257
    transparent = _gradient("RGBA")
    transparent.putalpha(Image.fromarray(np.full((64, 64), 0, np.uint8)))
    turned = _gradient("RGB").transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it 90 degrees clockwise
    images: dict[str, tuple[Image.Image, dict[str, Any], Any]] = {
        "palette.png": (_gradient("P"), {}, expected),
        "transparent palette.png": (
            _transparent_palette(),
            {"transparency": 0},
            np.full((64, 64, 3), 255),
        ),
        "cmyk.jpg": (_gradient("RGB").convert("CMYK"), {"quality": 100}, expected),
        "big-endian.tif": (
            Image.frombytes("I;16B", (64, 64), deep.astype(">u2").tobytes()),
            {},
            expected,
        ),
        "cmyk.tif": (_gradient("RGB").convert("CMYK"), {}, expected),
        "deep.png": (Image.fromarray(deep), {}, expected),
        "deep.tif": (Image.fromarray(deep), {}, expected),
        "transparent.png": (transparent, {}, np.full((64, 64, 3), 255)),
        "grey and alpha.png": (_gradient("LA"), {}, expected),
        "turned.png": (turned, {"exif": exif}, expected),
        "moving.webp": (
            _gradient("RGB"),
            {"save_all": True, "append_images": [Image.new("RGB", (64, 64))], "lossless": True},
            expected,
        ),
    }
    for name, (image, options, pixels) in images.items():
        image.save(tmp_path / name, **options)
        assert np.abs(read_image(tmp_path / name, 64).astype(int) - pixels).max() <= 1, name


def test_images_without_one_way_to_show_them_are_errors(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((64, 64), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(InputError, match=r"float.tif cannot be read as an image: it has 32 bits"):
        read_image(tmp_path / "float.tif", 64)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(InputError, match=r"text.png cannot be read as an image"):
        read_image(tmp_path / "text.png", 64)


@pytest.mark.slow
def test_an_image_over_the_limit_is_an_error_before_decoding_unless_the_limit_is_raised(
    tmp_path: Path,
) -> None:
    """20,000x20,000 pixels, 400 megapixels, in a file of a few hundred kB."""
    Image.new("1", (20_000, 20_000)).save(tmp_path / "large.png", compress_level=1)
    start = time.monotonic()
    with pytest.raises(
        InputError, match=r"large.png has 400 megapixels, more than data.max_megapixels=100"
    ):
        read_images([tmp_path / "large.png"], 64)
    assert time.monotonic() - start < 1
    Image.new("1", (11_000, 11_000)).save(tmp_path / "large.png", compress_level=1)
    read = read_images([tmp_path / "large.png"], 64, max_megapixels=500)
    assert read.images.shape == (1, 3, 64, 64)


def test_the_limit_of_an_images_size_does_not_depend_on_the_store(tmp_path: Path) -> None:
    Image.new("RGB", (80, 60)).save(tmp_path / "small.png")
    store = Store(tmp_path / "store", 10**8)
    read_images([tmp_path / "small.png"], 64, store=store)
    with pytest.raises(InputError, match="has 0.0048 megapixels, more than data.max_megapixels=0"):
        read_images([tmp_path / "small.png"], 64, max_megapixels=0.001, store=store)


def test_more_images_than_fit_into_memory_are_an_error() -> None:
    with pytest.raises(InputError, match="GiB"):
        check_memory(10**9, 224)
