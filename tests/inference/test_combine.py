"""Models combined from a sweep's jobs: the averages, what chooses, and what is written."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tvf
from helpers.classifier import train_classifier
from helpers.folders import write_images
from tvf.errors import InputError
from tvf.files import write_json
from tvf.inference.combine import (
    INTERPOLATED,
    METHODS,
    Combination,
    _mates,
    combine_jobs,
)
from tvf.records import read_predictions, read_trained_on, softmax

pytestmark = pytest.mark.slow


def _sweep(folder: Path, images: Path, seeds: int, *divisions: str) -> Path:
    """So many seeds in each division."""
    for division in divisions or ("data.split_seed=0",):
        for seed in range(seeds):
            job = folder / f"{division}-{seed}"
            how = (f"seed={seed}", "optimizer.lr=1e-2", division)
            train_classifier(images, job, *how, backbone=["backbone=efficientnet_lite0"])
    write_json(folder / "sweep.json", {"commands": [], "jobs": {}})
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data"), each=40)


@pytest.fixture(scope="module")
def sweep(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _sweep(tmp_path_factory.mktemp("sweeps") / "sweep", images, 3)


@pytest.fixture(scope="module")
def combined(sweep: Path) -> Combination:
    return combine_jobs(sweep)


def _accuracy(model: Any, job: Path, images: Path, split: str) -> float:
    recorded = read_predictions(job)[split]
    table = model.predict([images / str(name) for name in recorded.names])
    return float((table.probabilities.argmax(1) == recorded.labels).mean())


def test_what_validation_chose_is_written_as_a_model(
    combined: Combination, sweep: Path, images: Path
) -> None:
    assert combined.chosen.score == max(each.score for each in combined.candidates)
    assert combined.folder == sweep / "combine" / combined.chosen.method
    model = tvf.load(combined.folder)
    val, test = (read_predictions(combined.folder)[split] for split in ("val", "test"))
    assert _accuracy(model, combined.folder, images, "val") == pytest.approx(combined.chosen.score)
    found = model.predict([images / str(name) for name in test.names])
    assert np.allclose(found.probabilities, softmax(test.logits, model.temperature), atol=1e-6)
    assert combined.test_score == (test.logits.argmax(1) == test.labels).mean()
    summary = json.loads((combined.folder / "summary.json").read_text())
    assert summary["combination"]["method"] == combined.chosen.method
    assert len(val) + len(test) < 80
    # A later job that starts from it must not be judged by images that any member trained on.
    for job in sweep.glob("data*"):
        seen, own = read_trained_on(combined.folder), read_trained_on(job)
        assert seen is not None and own is not None and np.isin(own, seen).all()
    assert tvf.load(sweep).source != str(combined.folder)  # it is no job of the sweep
    assert f"Made without training ({combined.chosen.method}" in model.card


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_written_and_loaded(
    method: str, combined: Combination, sweep: Path, images: Path, tmp_path: Path
) -> None:
    assert combined.candidates[0].method == "best"
    copy = shutil.copytree(sweep, tmp_path / "sweep")
    if method not in {each.method for each in combined.candidates}:
        with pytest.raises(InputError, match="no other job makes the best one better"):
            combine_jobs(copy, method=method)
        assert method == "soup"
        return
    again = combine_jobs(copy, method=method)
    assert again.chosen.method == method
    model = tvf.load(again.folder)
    assert _accuracy(model, again.folder, images, "val") == pytest.approx(again.chosen.score)


def test_the_soup_is_the_mean_of_weights_with_statistics_of_its_own(
    combined: Combination, sweep: Path
) -> None:
    from tvf.inference.combine import _Combiner, _read

    best = Path(tvf.load(sweep).source)
    config = json.loads((best / "config.json").read_text())
    jobs = sorted(sweep.glob("data*"))
    states = [_read(job) for job in jobs[:2]]
    average = _Combiner(best, config, False).average(states, [0.5, 0.5])
    head = "module.classifier.weight"
    mean = (states[0][head].double() + states[1][head].double()) / 2
    assert torch.equal(average[head], mean.float())
    # bn2 trained, so its statistics are computed anew; those of frozen layers are as they were.
    moving = "module.bn2.running_mean"
    assert not torch.equal(states[0][moving], states[1][moving])
    mean = (states[0][moving] + states[1][moving]) / 2
    assert not torch.allclose(average[moving], mean, rtol=1e-3)
    frozen = "module.bn1.running_mean"
    assert torch.equal(average[frozen], states[0][frozen])
    # A soup of one job twice is that job.
    same = _Combiner(best, config, False).average([states[0], states[0]], [0.5, 0.5])
    assert all(torch.equal(same[name], states[0][name]) for name in same)


def test_only_jobs_of_one_division_take_part(images: Path, tmp_path: Path) -> None:
    sweep = _sweep(tmp_path / "sweep", images, 2, "data.split_seed=1", "data.split_seed=2")
    done = combine_jobs(sweep)
    summary = json.loads((done.folder / "summary.json").read_text())
    divisions = {name.rpartition("-")[0] for name in summary["combination"]["jobs"]}
    assert len(divisions) == 1 and len(summary["combination"]["jobs"]) == 2


def test_images_that_have_changed_are_refused(tmp_path: Path) -> None:
    images = write_images(tmp_path / "data")
    sweep = _sweep(tmp_path / "sweep", images, 1)
    (images / "train" / "cats" / "0.png").unlink()
    with pytest.raises(InputError, match="images of .* have changed since it was trained"):
        combine_jobs(sweep)


def test_probes_are_combined_with_probes_alone(images: Path, tmp_path: Path) -> None:
    for name, how in {
        "probe": ("model=probe",),
        "other": ("model=probe", "seed=2", "optimizer.lr=1e-2"),
        "transfer": ("model=transfer",),
    }.items():
        train_classifier(images, tmp_path / name, *how, backbone=["backbone=efficientnet_lite0"])
    write_json(tmp_path / "sweep.json", {"commands": [], "jobs": {}})
    probe = tmp_path / "probe"
    mates = _mates(tmp_path, probe, json.loads((probe / "config.json").read_text()))
    assert {mate.name for mate in mates} == {"probe", "other"}
    shutil.rmtree(tmp_path / "transfer")
    combined = combine_jobs(tmp_path)
    assert INTERPOLATED in combined.absent
    assert tvf.load(combined.folder).classes == tvf.load(probe).classes
