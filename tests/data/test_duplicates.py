"""Equal images in two splits: counted and named, refused, or dropped."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tvf.data.sources.image_folder import ImageFolder
from tvf.errors import InputError


@pytest.fixture
def root(image_root: Path) -> Path:
    """A test/ folder whose cat equals a training image by bytes, and whose dog does by pixels."""
    for name, source in (("cats", "3.png"), ("dogs", "5.png")):
        folder = image_root / "test" / name
        folder.mkdir(parents=True)
        with Image.open(image_root / "train" / name / source) as image:
            if name == "cats":
                (folder / "copy.png").write_bytes((image_root / "train/cats/3.png").read_bytes())
            else:
                image.save(folder / "copy.bmp")
        Image.effect_noise((40, 40), 50).save(folder / "new.png")
    return image_root


def test_equal_images_in_two_splits_are_counted_and_named(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = ImageFolder(root=str(root), image_size=32, val_fraction=0.01 + 1 / 24).load()
    assert len(data.test) == 4
    assert "2 of train are also in test" in caplog.text
    assert "(train/cats/3.png is test/cats/copy.png)" in caplog.text
    assert "data.duplicates=drop" in caplog.text


def test_equal_images_are_an_error_or_dropped_on_request(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(InputError, match=r"equal images .*train/cats/3.png is test/cats/copy.png"):
        ImageFolder(root=str(root), image_size=32, duplicates="error").load()
    whole = ImageFolder(root=str(root), image_size=32).load()
    caplog.clear()
    data = ImageFolder(root=str(root), image_size=32, duplicates="drop").load()
    assert "dropped" in caplog.text
    total = len(data.train) + len(data.val)
    assert total == len(whole.train) + len(whole.val) - 2 and len(data.test) == 4
    digests = data.train.pool.pixels.pixel_digests
    kept = np.concatenate([data.train.places, data.val.places])
    assert not np.isin(digests[kept], digests[data.test.places]).any()


def test_equal_images_in_one_split_are_no_leak(
    image_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("val", "test"):
        for label in ("cats", "dogs"):
            folder = image_root / name / label
            folder.mkdir(parents=True)
            Image.effect_noise((40, 40), 50).save(folder / "new.png")
    copy = (image_root / "train/cats/3.png").read_bytes()
    (image_root / "train/cats/copy.png").write_bytes(copy)
    ImageFolder(root=str(image_root), image_size=32, duplicates="error").load()
    assert not caplog.text


def test_dropping_every_image_of_a_split_is_an_error(image_root: Path) -> None:
    for name in ("val", "test"):
        for label in ("cats", "dogs"):
            folder = image_root / name / label
            folder.mkdir(parents=True)
            copy = (image_root / "train" / label / "1.png").read_bytes()
            (folder / "copy.png").write_bytes(copy)
    with pytest.raises(InputError, match="would leave a split without images"):
        ImageFolder(root=str(image_root), image_size=32, duplicates="drop").load()


def test_equal_images_of_different_classes_are_named(
    image_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ImageFolder(root=str(image_root), image_size=32).load()
    assert "another class" not in caplog.text
    copied = image_root / "train" / "dogs" / "copy.png"
    copied.write_bytes((image_root / "train" / "cats" / "3.png").read_bytes())
    ImageFolder(root=str(image_root), image_size=32).load()
    assert "2 images equal one of another class" in caplog.text
    assert "train/cats/3.png (cats) and train/dogs/copy.png (dogs)" in caplog.text
