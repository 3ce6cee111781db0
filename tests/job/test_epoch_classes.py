"""The classes that a job records for its validation images, epoch by epoch."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from helpers import SMALL, Outcome
from tvf.records.predictions import PREDICTIONS, read_predictions

Shell = Callable[..., Outcome]
QUICK = (SMALL, "data.limit=68", "data.image_size=32", "data.batch_size=8", "tracker=none")


def _recorded(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / PREDICTIONS) as arrays:
        return dict(arrays)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        ("recipe=lp_ft", "recipe.head_epochs=2", "average=ema"),
        ("early_stopping=patience", "early_stopping.patience=3"),
    ],
    ids=["two phases, averaged", "early stopping"],
)
def test_every_epoch_is_recorded_and_a_resumed_job_has_those_before_it_stopped(
    shell: Shell, tmp_path: Path, more: tuple[str, ...]
) -> None:
    job = (*QUICK, *more, "epochs=4", "store.mode=off")
    assert shell(*job, "hydra.run.dir=whole").code == 0
    assert shell(*job, "hydra.run.dir=halves", "stop_after=2").code == 0
    assert not (tmp_path / "halves" / PREDICTIONS).exists()
    assert shell(*job, "hydra.run.dir=halves").code == 0
    whole, halves = _recorded(tmp_path / "whole"), _recorded(tmp_path / "halves")
    assert whole.keys() == halves.keys()
    assert all(np.array_equal(whole[name], halves[name]) for name in whole)
    val = read_predictions(tmp_path / "whole")["val"]
    assert val.epoch_classes is not None and val.epoch_classes.dtype == np.uint8
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    epochs = [json.loads(line) for line in lines]
    correct = val.epoch_classes == val.labels
    assert correct.mean(axis=1) == pytest.approx([epoch["val_acc"] for epoch in epochs])
    best = json.loads((tmp_path / "whole" / "summary.json").read_text())["best_epoch"]
    assert np.array_equal(val.epoch_classes[best - 1], val.logits.argmax(1))
