"""What a job trains, built from its config: what phases, averages and other jobs of a sweep have to do with it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import small_backbone
from helpers.sweeps import base_config
from helpers.training import DATA, FABRIC
from tvf.config import build_phases
from tvf.job.setup import Job, JobContext, PhaseBuilder
from tvf.models.finetune import FineTuneModel
from tvf.records.sweep import write_manifest


def _stages(
    place: JobContext, pct: float, **nodes: dict[str, Any]
) -> tuple[PhaseBuilder, FineTuneModel]:
    config: dict[str, Any] = base_config() | nodes | {"epochs": 4}
    config["model"] |= {"pct_unfreeze": pct, "frozen_bn": "recalibrate"}
    model = FineTuneModel(small_backbone(), pct, frozen_bn="recalibrate")
    phases = build_phases(config, len(model.trained_groups))
    parts = Job(FABRIC, None, DATA, 8, small_backbone(), model, phases)
    return PhaseBuilder(config, place, parts, ""), model


def test_a_head_phase_has_the_same_statistics_whatever_trains_later_and_so_has_an_average(
    tmp_path: Path,
) -> None:
    lp_ft, found = {"_target_": "tvf.training.LpFt"}, []
    for pct in (0.25, 1.0):
        ema = {"_target_": "tvf.training.ExponentialMovingAverage", "decay": 0.9}
        stages, model = _stages(
            JobContext(tmp_path, None, False, {}), pct, recipe=lp_ft, average=ema
        )
        buffers = [value.clone() for value in model.buffers()]
        assert not torch.equal(buffers[0], torch.zeros_like(buffers[0]))
        found.append(buffers)
        average = stages.ways.average
        assert average is not None
        average.update()
        with average.in_place():
            assert all(
                torch.equal(value, before)
                for value, before in zip(model.buffers(), buffers, strict=True)
            )
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_another_job_of_the_sweep_that_is_wrong_is_not_this_ones_matter(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config: dict[str, Any] = base_config() | {"epochs": 4}
    jobs = {}
    for name, changes in {
        "own": {},
        "other": {"direction": "block:nope", "pct_unfreeze": None},
    }.items():
        model = config["model"] | {"pct_unfreeze": 0.5, "frozen_bn": "recalibrate"} | changes
        jobs[name] = config | {"model": model}
    write_manifest(tmp_path, jobs)
    stages, _ = _stages(JobContext(tmp_path / "own", tmp_path, False, {}), 0.5)
    stages.start(0, None)
    assert stages.feed_of(0) is stages.feed_of(0) and "nope" not in caplog.text
