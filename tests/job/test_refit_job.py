"""A job with refit_epochs: what it trains on, where it ends, and that it scores nothing."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tvf
from helpers.classifier import train_classifier
from helpers.folders import write_images
from helpers.training import small_config
from tvf.config.validate import _check_parts, _check_refit
from tvf.data import DataSplits, Pixels, Pool, Split
from tvf.errors import InputError
from tvf.files import read_json
from tvf.records.predictions import read_predictions, read_trained_on
from tvf.training.phases import EarlyStopping, Phase, end_phases
from tvf.training.state import EpochResult, best_epoch

EPOCH = EpochResult(1, 1.0, 0.5, None, None, 0.1, None, 1.0, 1.0)


def test_validation_images_join_those_to_train_on() -> None:
    images = torch.zeros(6, 3, 8, 8, dtype=torch.uint8)
    pool = Pool(Pixels(images), torch.arange(6) % 2, list("abcdef"))
    parts = (Split(pool, np.array(places)) for places in ([0, 3, 5], [1, 4], [2]))
    data = DataSplits(("a", "b"), *parts)
    joined = data.join_val()
    assert joined.train.places.tolist() == [0, 1, 3, 4, 5] and len(joined.val) == 0
    assert joined.test is data.test


def test_of_epochs_without_scores_the_last_one_counts() -> None:
    epochs = [replace(EPOCH, epoch=number) for number in (1, 2, 3)]
    assert best_epoch(epochs) is epochs[-1]
    with_scores = [replace(e, val_loss=1.0, val_acc=0.5) for e in epochs]
    assert best_epoch(with_scores) is with_scores[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"refit_epochs": 4}, r"refit_epochs=4 must be a list of the epochs of each phase"),
        ({"refit_epochs": [0]}, r"refit_epochs\[0\]=0 must be a whole number of at least 1"),
        ({"data__validate_on": "test"}, "with data.validate_on=test these are the test images"),
    ],
)
def test_a_wrong_number_of_epochs_or_no_validation_images_are_errors(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        _check_refit(small_config(**{"refit_epochs": [1]} | changes))


def test_a_schedule_that_follows_scores_is_an_error() -> None:
    plateau = {"_target_": "tvf.training.plateau", "_partial_": True}
    with pytest.raises(InputError, match="scheduler follows validation scores.*Train, or sweep"):
        _check_parts(small_config(refit_epochs=[1], scheduler=plateau))


def test_phases_end_after_their_lengths_whatever_their_scores() -> None:
    phases = (Phase(5, 0, stopping=EarlyStopping(1)), Phase(6, 2), Phase(4, 3))
    first, second = end_phases(phases, [2, 3])
    assert (first.epochs, first.groups, second.epochs, second.groups) == (5, 0, 6, 2)
    for phase, length in ((first, 2), (second, 3)):
        assert [phase.ends([0.5] * count) for count in range(1, 4)] == [
            count == length for count in range(1, 4)
        ]
    for wrong in ([6], [5, 6, 4, 1]):
        with pytest.raises(InputError, match=r"at most the epochs of each phase: \[5, 6, 4\]"):
            end_phases(phases, wrong)


@pytest.mark.slow
def test_a_refit_trains_on_all_but_test_images_to_its_epoch_and_scores_nothing(
    tmp_path: Path,
) -> None:
    images = write_images(tmp_path / "data", each=20)
    schedule = ("epochs=3", "scheduler=cosine")
    refit = train_classifier(images, tmp_path / "refit", *schedule, "refit_epochs=[2]")
    # The same images to train on, if others validate: they come after them in the pool.
    for name in ("cats", "dogs"):
        other = images / "val" / name / "0.png"
        other.parent.mkdir(parents=True)
        other.write_bytes((images / "train" / name / "0.png").read_bytes())
    plain = train_classifier(images, tmp_path / "plain", *schedule)

    epochs = [_epochs(folder) for folder in (refit, plain)]
    assert len(epochs[0]) == 2 and len(epochs[1]) == 3
    for key in ("train_loss", "train_acc", "lr_head"):  # bit for bit
        assert [row[key] for row in epochs[0]] == [row[key] for row in epochs[1][:2]]
    summary = read_json(refit / "summary.json")
    assert summary["best_epoch"] == 2 and summary["images"]["val"] == 0
    assert not [key for key in summary if key.startswith(("val_", "test_")) if "seconds" not in key]
    assert read_predictions(refit) == {}
    trained, plainly = (read_trained_on(folder) for folder in (refit, plain))
    assert trained is not None and plainly is not None and set(trained) == set(plainly)
    assert len(tvf.load(refit).predict(images / "val").images) == 2


def _epochs(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
