"""What a config builds: recalibrated statistics, averages, and the other jobs of a sweep."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.training import small_config, small_context
from tvf.job.setup import _tag, build_job
from tvf.records.sweep import write_manifest


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_a_head_phase_has_the_same_statistics_whatever_trains_later_and_so_has_an_average(
    tmp_path: Path,
) -> None:
    found = []
    for pct in (0.25, 1.0):
        config = small_config(
            epochs=4,
            model__pct_unfreeze=pct,
            model__frozen_bn="recalibrate",
            recipe={"_target_": "tvf.training.LpFt"},
            average={"_target_": "tvf.training.ExponentialMovingAverage", "decay": 0.9},
        )
        job = build_job(config, small_context(tmp_path), None)
        model, average = job.phases.model, job.steps.average
        buffers = [value.clone() for value in model.buffers()]
        assert not torch.equal(buffers[0], torch.zeros_like(buffers[0]))
        found.append(buffers)
        assert average is not None
        average.update()
        with average.in_place():
            now = zip(model.buffers(), buffers, strict=True)
            assert all(torch.equal(value, before) for value, before in now)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_an_invalid_sibling_does_not_concern_a_job(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = small_config(epochs=4, model__pct_unfreeze=0.5)
    changes: dict[str, Any] = {"groups": ["nope"], "pct_unfreeze": None}
    other = config | {"model": config["model"] | changes}
    write_manifest(tmp_path, {"own": config, "other": other})
    phases = build_job(config, small_context(tmp_path / "own", tmp_path), None).phases
    phases.start(0, None)
    assert phases.pipeline_of(0) is phases.pipeline_of(0) and "nope" not in caplog.text
    assert [len(sibling.phases) for sibling in phases.siblings] == [1]


def test_each_sibling_has_the_phases_of_its_own_recipe_and_epochs(tmp_path: Path) -> None:
    config = small_config(epochs=4, model__pct_unfreeze=0.5)
    later = config | {"recipe": {"_target_": "tvf.training.LpFt"}}
    jobs = {"own": config, "seed": config | {"seed": 2}, "later": later}
    jobs["short"] = config | {"epochs": 2}
    write_manifest(tmp_path, jobs)
    built = build_job(config, small_context(tmp_path / "own", tmp_path), None).phases.siblings
    (sibling,) = built
    assert [[(phase.epochs, phase.groups) for phase in phases] for phases in sibling.phases] == [
        [(4, 2)],
        [(4, 2)],
        [(2, 0), (2, 2)],
        [(2, 2)],
    ]


def test_options_that_the_job_acts_on_do_not_reach_the_targets(tmp_path: Path) -> None:
    config = small_config(
        optimizer__clip_norm=2.0,
        model__frozen_bn="recalibrate",
        model__pct_unfreeze=None,
        model___target_="tvf.models.TransferModel",
    )
    job = build_job(config, small_context(tmp_path), None)
    assert job.steps.clip_norm == 2.0
    assert job.phases.model.frozen_bn == "eval" and not job.phases.model.trained_groups


@pytest.mark.parametrize(
    ("name", "limit", "sweep", "tag"),
    [
        ("fine-tuning-0.5-train100-fold2", 100, True, "[finetune pct=0.5 train=100 fold=2]"),
        ("fine-tuning-0.5-trainall", None, True, "[finetune pct=0.5 train=all]"),
        ("fine-tuning-0.5", 100, True, "[finetune pct=0.5]"),
        ("fine-tuning-0.5-train100", 100, False, "[finetune pct=0.5]"),
    ],
)
def test_log_lines_of_a_sweep_have_what_its_names_have(
    tmp_path: Path, name: str, limit: int | None, sweep: bool, tag: str
) -> None:
    config = small_config(name=name, data__train_limit=limit, data__fold=2)
    context = small_context(tmp_path, tmp_path if sweep else None)
    assert _tag(config, context, {"model": "finetune", "pct_unfreeze": 0.5}) == tag
