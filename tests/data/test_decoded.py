"""Images that are too many to keep: decoded in each epoch, with the same numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from helpers.classifier import train_classifier
from helpers.folders import write_images
from tvf.data import ImageFiles, images
from tvf.data.images import read_images
from tvf.errors import InputError
from tvf.files import BEST_WEIGHTS
from tvf.store import Store


def _epochs(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.mark.slow
@pytest.mark.parametrize(("augment", "mode"), [("none", "off"), ("crop_flip", "auto")])
def test_a_job_that_decodes_its_images_anew_has_the_numbers_of_one_that_keeps_them(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, augment: str, mode: str
) -> None:
    given = (f"augment={augment}", "epochs=2", f"store.mode={mode}", f"store.dir={tmp_path / 's'}")
    kept = train_classifier(root, tmp_path / "kept", *given)
    monkeypatch.setattr(images, "IN_MEMORY", 1000)
    small = (f"store.dir={tmp_path / 't'}", "store.max_gb=0.0001")  # of 147 kB for 48 images
    anew = train_classifier(root, tmp_path / "anew", *given, *small)
    losses = [
        [(row[key] for key in ("train_loss", "val_loss", "train_acc")) for row in rows]
        for rows in map(_epochs, (kept, anew))
    ]
    assert [[*row] for row in losses[0]] == [[*row] for row in losses[1]]
    weights = [safetensors.torch.load_file(folder / BEST_WEIGHTS) for folder in (kept, anew)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_only_what_describes_the_images_is_kept(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    paths = sorted(root.rglob("*.png"))
    expected = read_images(paths, 32)
    monkeypatch.setattr(images, "IN_MEMORY", 1000)
    store = Store(tmp_path, max_bytes=100_000)
    found = read_images(paths, 32, store=store)
    assert "are decoded again in each epoch" in caplog.text
    assert isinstance(found.images, ImageFiles)
    assert (tuple(found.images.shape), found.images.nbytes) == ((48, 3, 32, 32), 48 * 3 * 32 * 32)
    rows = torch.tensor([3, 1, 3])
    assert torch.equal(found.images[rows], expected.images[rows])
    assert np.array_equal(found.pixel_digests, expected.pixel_digests)
    assert np.array_equal(found.digests, expected.digests)
    assert found.ranges is not None and expected.ranges is not None
    assert np.array_equal(found.ranges, expected.ranges)


def test_a_file_that_changes_while_the_job_trains_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "IN_MEMORY", 10)
    path = tmp_path / "one.png"
    Image.new("RGB", (40, 40), "red").save(path)
    found = read_images([path], 32)
    assert found.images[torch.tensor([0])].shape == (1, 3, 32, 32)
    Image.new("RGB", (40, 40), "blue").save(path)
    with pytest.raises(InputError, match="one.png has changed since the job began"):
        found.images[torch.tensor([0])]
