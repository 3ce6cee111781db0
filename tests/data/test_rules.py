"""How images become squares: today's rule bit for bit, and the other ones that have a name."""

from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image, ImageOps

from helpers.folders import write_images
from tvf.data.digests import digest_file
from tvf.data.images import DECODER_VERSION, convert_image, read_image, read_images
from tvf.data.rules import INTERPOLATIONS, RESIZE, ReadingRules
from tvf.data.sources.image_folder import ImageFolder
from tvf.data.sources.image_table import ImageTable
from tvf.errors import InputError
from tvf.store import Store, fingerprint

SHAPES = [(40, 90), (90, 40), (7, 7), (64, 64), (200, 3)]


def _noise(shape: tuple[int, ...]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_by_default_images_are_read_as_they_were_before(
    tmp_path: Path, shape: tuple[int, int], mode: str
) -> None:
    path = tmp_path / "a.png"
    image = _noise((*shape, 3)).convert(mode)
    image.save(path)
    square = ImageOps.fit(image.convert("RGB"), (32, 32), Image.Resampling.BILINEAR)
    for rules in (ReadingRules(), ReadingRules(pad_color="white")):
        assert np.array_equal(read_image(path, 32, rules=rules), np.asarray(square))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", INTERPOLATIONS)
def test_squash_takes_the_whole_image_and_pad_keeps_its_shape(
    shape: tuple[int, int], method: str
) -> None:
    image = _noise((*shape, 3))
    squashed = convert_image(image, 32, rules=ReadingRules("squash", method))
    how = Image.Resampling[method.upper()]
    assert np.array_equal(squashed, np.asarray(image.resize((32, 32), how)))
    padded = convert_image(image, 32, rules=ReadingRules("pad", method, "#0102fe"))
    border = (padded == (1, 2, 254)).all(-1)
    rows, columns = (~border.all(1)).nonzero()[0], (~border.all(0)).nonzero()[0]
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    longest = max(shape)
    assert (height, width) == tuple(max(1, round(side * 32 / longest)) for side in shape)
    inner = padded[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert np.array_equal(inner, np.asarray(image.resize((width, height), how)))
    assert abs(int(rows[0]) - (31 - int(rows[-1]))) <= 1  # centred
    assert abs(int(columns[0]) - (31 - int(columns[-1]))) <= 1


def test_the_store_keeps_what_it_has_and_tells_the_rules_apart(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    _noise((30, 50, 3)).save(path)
    store = Store(tmp_path / "store", 10**9)
    for rules in (
        ReadingRules(),
        ReadingRules("crop", pad_color="white"),
        ReadingRules("squash"),
        ReadingRules("pad"),
        ReadingRules("pad"),
    ):
        read = read_images([path], 32, rules=rules, store=store).images
        expected = read_image(path, 32, rules=rules)
        assert np.array_equal(read[0].permute(1, 2, 0).numpy(), expected)
    files = np.array([digest_file(path)], "S32")
    before = fingerprint([files, 32, None, PIL.__version__, DECODER_VERSION])
    entries = [each.name for each in (tmp_path / "store" / "pixels").iterdir()]
    assert len(entries) == 3 and before in entries  # as earlier versions called it


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (ReadingRules(), ReadingRules(pad_color="red"), True),
        (ReadingRules("squash"), ReadingRules("squash", pad_color="red"), True),
        (ReadingRules("pad"), ReadingRules("pad", pad_color="#000"), True),
        (ReadingRules("pad"), ReadingRules("pad", pad_color="red"), False),
        (ReadingRules(), ReadingRules("squash"), False),
        (ReadingRules(), ReadingRules(interpolation="bicubic"), False),
    ],
)
def test_rules_have_one_key_if_they_come_to_the_same(
    one: ReadingRules, other: ReadingRules, same: bool
) -> None:
    assert (one.key == other.key) is same
    assert ReadingRules().key == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resize": "stretch"}, "data.resize=stretch must be one of crop, squash, pad"),
        ({"interpolation": "cubic"}, "data.interpolation=cubic must be one of nearest, box"),
        ({"pad_color": "mud"}, "data.pad_color='mud' must be a colour that is not transparent"),
        ({"pad_color": "#00000000"}, "must be a colour that is not transparent"),
        ({"pad_color": 0}, "data.pad_color=0 must be a colour"),
    ],
)
def test_unknown_rules_are_errors(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    root = write_images(tmp_path, each=1)
    with pytest.raises(InputError, match=message):
        ImageFolder(root=str(root), image_size=32, **options)
    with pytest.raises(InputError, match=message):
        ReadingRules.of(options)


@pytest.mark.parametrize("resize", RESIZE)
def test_sources_of_files_read_by_the_rule(tmp_path: Path, resize: str) -> None:
    root = write_images(tmp_path, each=4)
    options: dict[str, Any] = {"resize": resize, "pad_color": "red", "interpolation": "bicubic"}
    folder = ImageFolder(root=str(root), image_size=32, **options)
    catalog = folder.catalog()
    lines = [f"{name},{name.split('/')[1]}" for name in catalog.names]
    (tmp_path / "labels.csv").write_text("\n".join(["image,label", *lines]))
    table = ImageTable(path=str(tmp_path / "labels.csv"), image_size=32, **options)
    rules = ReadingRules(resize, "bicubic", "red")
    assert catalog.files is not None
    expected = np.stack([read_image(file, 32, rules=rules) for file in catalog.files])
    for source in (folder, table):
        images = source.catalog().read(np.arange(8), False, None).images
        assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), expected)


def test_padding_does_not_hide_dark_images(tmp_path: Path) -> None:
    Image.new("L", (80, 20), 5).save(tmp_path / "a.png")
    read = read_images([tmp_path / "a.png"], 32, rules=ReadingRules("pad", pad_color="white"))
    assert read.ranges is not None and read.ranges.tolist() == [[5, 5, 255]]
