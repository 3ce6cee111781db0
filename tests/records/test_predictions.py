"""The predictions that a job records: which images, labels and logits."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from helpers.training import whole_pool
from tvf.data.pool import Pixels, Pool, Split
from tvf.records.predictions import (
    PREDICTIONS,
    predictions_of,
    read_predictions,
    read_trained_on,
    write_predictions,
)

IMAGES = torch.randint(
    0, 256, (6, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


def make_pool(groups: np.ndarray | None = None) -> Pool:
    names = [f"train/ä/{number}.png" for number in range(6)]
    return Pool(Pixels(IMAGES), torch.arange(6) % 2, names, groups)


def test_predictions_are_read_as_they_were_written(tmp_path: Path) -> None:
    pool = make_pool(groups=np.array([0, 0, 1, 1, 2, 2]))
    val, test = Split(pool, np.array([1, 4])), Split(pool, np.array([2, 3, 5]))
    logits = np.arange(10, dtype=np.float64).reshape(5, 2)
    written = {"val": predictions_of(val, logits[:2]), "test": predictions_of(test, logits[2:])}
    write_predictions(tmp_path, written, pool.pixels.digests[[0]])
    read = read_predictions(tmp_path)
    assert read["val"].names.tolist() == ["train/ä/1.png", "train/ä/4.png"]
    assert read["test"].labels.tolist() == [0, 1, 1] and len(read["test"]) == 3
    assert read["test"].logits.dtype == np.float32
    assert np.array_equal(read["test"].logits, logits[2:])
    assert read["val"].groups is not None and read["val"].groups.tolist() == [0, 2]
    assert np.array_equal(read["val"].ids, pool.pixels.digests[[1, 4]])
    trained_on = read_trained_on(tmp_path)
    assert trained_on is not None and np.array_equal(trained_on, pool.pixels.digests[[0]])


def test_files_without_the_classes_of_each_epoch_are_read_and_so_are_those_with_wrong_ones(
    tmp_path: Path,
) -> None:
    """The rest of the file still says what is known about other images."""
    split = Split(make_pool(), np.arange(6))
    predictions = predictions_of(split, np.zeros((6, 2)))
    for classes, usable in (
        (None, False),
        (np.ones((3, 6), np.uint8), True),
        (np.ones((3, 5), np.uint8), False),
        (np.ones((0, 6), np.uint8), False),
        (np.ones(6, np.uint8), False),
    ):
        val = replace(predictions, epoch_classes=classes)
        write_predictions(tmp_path, {"val": val, "test": predictions}, split.pool.pixels.digests)
        read = read_predictions(tmp_path)
        found = read["val"].epoch_classes
        assert (found is not None) == usable
        assert found is None or found.shape == (3, 6)
        assert len(read["val"]) == 6 and read["test"].epoch_classes is None


def test_ids_follow_the_content_of_an_image_wherever_it_is() -> None:
    split = whole_pool(IMAGES, torch.arange(6) % 2)
    other = whole_pool(IMAGES.flip(0), torch.arange(6) % 2)
    ids, flipped = (s.pool.pixels.digests for s in (split, other))
    assert np.array_equal(ids, flipped[::-1]) and len(np.unique(ids)) == 6


def test_missing_and_damaged_predictions_are_none(tmp_path: Path) -> None:
    assert read_predictions(tmp_path) == {} and read_trained_on(tmp_path) is None
    pool = make_pool()
    split = Split(pool, np.arange(6))
    predictions = {"val": predictions_of(split, np.zeros((6, 2)))}
    write_predictions(tmp_path, predictions | {"test": predictions["val"]}, pool.pixels.digests)
    content = (tmp_path / PREDICTIONS).read_bytes()
    for damaged in (b"", content[:100], content[:-30], b"x" * 500):
        (tmp_path / PREDICTIONS).write_bytes(damaged)
        assert read_predictions(tmp_path) == {}
    for place in range(0, len(content), 7):
        damaged = content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :]
        (tmp_path / PREDICTIONS).write_bytes(damaged)
        read_predictions(tmp_path)  # whatever is left of them, and no exception
    np.savez(tmp_path / PREDICTIONS, val_ids=np.zeros(3), test_ids=np.zeros(3))
    assert read_predictions(tmp_path) == {}
