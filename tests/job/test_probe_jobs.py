"""Jobs with a probe: they start from ridge regression, and are cached and resumed like others."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.jobs import metrics, summary
from helpers.training import small_config, small_context
from tvf.files import BEST_WEIGHTS
from tvf.job.head_start import start_head
from tvf.job.run import run_job
from tvf.job.setup import build_job
from tvf.store import Store

MODEL = {"_target_": "tvf.models.ProbeModel", "frozen_bn": "eval", "head_dropout": 0.0}


@pytest.fixture(autouse=True)
def same_threads() -> Any:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def _config(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    common: dict[str, Any] = {"epochs": 3, "threads": 1, "model": MODEL}
    return small_config(**common | {"store__dir": str(tmp_path / "store")} | changes)


def _run(tmp_path: Path, name: str, config: dict[str, Any]) -> Path:
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    run_job(config, small_context(folder))
    return folder


def test_cached_epochs_equal_uncached_ones_and_the_store_serves_other_seeds(tmp_path: Path) -> None:
    cached = _run(tmp_path, "on", _config(tmp_path, store__mode="on"))
    uncached = _run(tmp_path, "off", _config(tmp_path, store__mode="off"))
    assert metrics(cached) == metrics(uncached)
    assert (cached / BEST_WEIGHTS).read_bytes() == (uncached / BEST_WEIGHTS).read_bytes()
    other = summary(_run(tmp_path, "seed", _config(tmp_path, store__mode="on", seed=2)))
    assert summary(cached)["prefix_images"] > 0 and other["prefix_images"] == 0
    assert summary(cached)["pct_unfreeze"] == 0


def test_a_resumed_job_equals_a_whole_one(tmp_path: Path) -> None:
    average = {"_target_": "tvf.training.ExponentialMovingAverage", "decay": 0.9}
    config = _config(tmp_path, average=average)
    whole = _run(tmp_path, "whole", config)
    _run(tmp_path, "resumed", config | {"stop_after": 1})
    resumed = _run(tmp_path, "resumed", config)
    assert metrics(resumed) == metrics(whole)
    assert (resumed / BEST_WEIGHTS).read_bytes() == (whole / BEST_WEIGHTS).read_bytes()


def test_the_head_starts_from_ridge_regression_on_the_training_images_alone(tmp_path: Path) -> None:
    job = build_job(_config(tmp_path), small_context(tmp_path), Store(tmp_path / "store", 10**9))
    job.phases.start(0, None)
    model, train = job.phases.model, job.phases.data.train
    pixels = train.pixels(np.arange(len(train)))

    def accuracy() -> float:
        with torch.no_grad():
            hits = model.eval()(pixels).argmax(1) == train.labels
        return float(hits.float().mean())

    before = accuracy()
    start_head(job)
    fitted = {name: value.clone() for name, value in model.state_dict().items()}
    assert accuracy() > before
    job.phases.data.val.labels.fill_(0)
    start_head(job)
    assert all(torch.equal(fitted[name], value) for name, value in model.state_dict().items())


def test_a_head_with_given_weights_stays_as_it_is(tmp_path: Path) -> None:
    first = _run(tmp_path, "first", _config(tmp_path))
    config = _config(tmp_path, model=MODEL | {"init_from": str(first)})
    job = build_job(config, small_context(tmp_path), Store(tmp_path / "store", 10**9))
    job.phases.start(0, None)
    before = {name: value.clone() for name, value in job.phases.model.state_dict().items()}
    start_head(job)
    after = job.phases.model.state_dict()
    assert all(torch.equal(before[name], value) for name, value in after.items())
