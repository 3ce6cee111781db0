"""Which jobs share a phase that trains only the head, and that they take its result."""

import importlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import training
from helpers.training import DATA, small_config, small_context, train
from tvf.job.head_phase import HeadPhase, open_head_phase
from tvf.job.setup import build_job
from tvf.models.weights import load_weights, save_weights
from tvf.store.disk import Store
from tvf.training.phases import EarlyStopping, LpFt


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def _phase(folder: Path, pct: float = 0.5, **changes: Any) -> HeadPhase | None:
    """The head phase of a job whose config differs in `changes` (node__key=value)."""
    lp_ft = {"_target_": "tvf.training.LpFt"}
    config = small_config(**({"recipe": lp_ft, "epochs": 6, "model__pct_unfreeze": pct} | changes))
    job = build_job(config, small_context(folder), Store(folder / "store", 10**9))
    return open_head_phase(job.head_phase, job.phases.store, job.phases.model)


def _fingerprint(folder: Path, pct: float = 0.5, /, **changes: Any) -> str | None:
    phase = _phase(folder, pct, **changes)
    return phase.fingerprint if phase else None


def test_what_trains_later_and_how_does_not_change_the_head_phase(tmp_path: Path) -> None:
    own = _fingerprint(tmp_path)
    assert own is not None
    assert own == _fingerprint(tmp_path, 0.25) == _fingerprint(tmp_path, 1.0)
    for changes in (
        {"optimizer__backbone_lr": 0.5},
        {"optimizer__layer_decay": 0.5},
        {"recipe": {"_target_": "tvf.training.LpFt", "lr": 0.1, "backbone_lr": 0.1}},
        {"epochs": 7},  # half of which are for the head, as of six
        {"name": "other"},
        {"tracker__mode": "offline"},
        {"store__max_gb": 1},
    ):
        assert _fingerprint(tmp_path, 0.5, **changes) == own, changes


@pytest.mark.slow
def test_everything_the_head_depends_on_changes_its_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = _fingerprint(tmp_path)
    for changes in (
        {"seed": 2},
        {"epochs": 8},
        {"optimizer__lr": 0.5},
        {"optimizer__weight_decay": 0.5},
        {"optimizer__clip_norm": 1.0},
        {"recipe__head_epochs": 3},  # without the patience of the default
        {"recipe__head_patience": 1},
        {"early_stopping__min_delta": 0.1},
        {"scheduler__factor": 0.5},
        {"loss__label_smoothing": 0.1},
        {"mix": {"_target_": "tvf.training.ImageMixing", "kind": "mixup", "alpha": 1.0}},
        {"average": {"_target_": "tvf.training.ExponentialMovingAverage", "decay": 0.5}},
        {"augment__seed": 5},
        {"data__batch_size": 16},
        {"data__class_weights": "balanced"},
        {"data__metric": "macro_f1"},
        {"model__frozen_bn": "batch"},
        {"model__head_dropout": 0.5},
        {"fabric__precision": "64-true"},
        {"channels_last": False},
        {"threads": 2},
    ):
        assert _fingerprint(tmp_path, 0.5, **changes) not in (own, None), changes
    images = DATA.val.pool.pixels.images.clone()
    images[0, 0, 0, 0] += 1
    monkeypatch.setattr(
        training, "DATA", replace(DATA, val=training.whole_pool(images, DATA.val.labels))
    )
    assert _fingerprint(tmp_path) not in (own, None)
    for last, same in ((1.0, True), (2.0, False)):  # equal weights are none
        weights = np.ones(len(DATA.train))
        weights[-1] = last
        weighted = replace(DATA.train, pool=replace(DATA.train.pool, weights=weights))
        monkeypatch.setattr(training, "DATA", replace(DATA, train=weighted))
        assert (_fingerprint(tmp_path) == own) == same


def test_a_users_own_code_counts_by_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    keys = []
    for scale in (1, 2):
        (tmp_path / "mine.py").write_text(
            "from tvf.training import CrossEntropyLoss\n"
            f"class Loss(CrossEntropyLoss):\n    scale = {scale}\n"
        )
        sys.modules.pop("mine", None)
        importlib.invalidate_caches()
        keys.append(_fingerprint(tmp_path, loss={"_target_": "mine.Loss", "label_smoothing": 0.0}))
    assert None not in keys and len({*keys, _fingerprint(tmp_path)}) == 3


def test_recipes_without_a_head_phase_at_the_start_share_nothing(
    tmp_path: Path,
) -> None:
    assert _fingerprint(tmp_path, recipe={"_target_": "tvf.training.Direct"}) is None
    halves = [{"share": 0.5}, {"share": 0.5, "fraction": 0}]
    assert (
        _fingerprint(tmp_path, recipe={"_target_": "tvf.training.Phases", "phases": halves}) is None
    )


def test_only_a_job_that_resumes_within_the_phase_holds_it(tmp_path: Path) -> None:
    for phase, keeps in ((1, False), (0, True)):
        one, other = _phase(tmp_path), _phase(tmp_path)
        assert one and other
        with one, other:
            one.hold({"phase": phase})
            other.hold({"phase": 0})  # in vain, if one has it
            assert [one.holds, other.holds] == [keeps, not keeps]


@pytest.mark.parametrize("best_epoch", [1, 2])
def test_a_job_takes_the_kept_state_and_keeps_its_own_later_layers(
    tmp_path: Path, best_epoch: int
) -> None:
    """Between jobs of different fractions; the best epoch may be before the last."""
    giver, taker = _phase(tmp_path / "giver", 0.25), _phase(tmp_path / "giver", 1.0)
    assert giver and taker
    taker.model.module.conv1.weight.data.add_(1.0)  # type: ignore[union-attr]  # as its own weights may be
    states: list[dict[str, Any]] = []
    given_weights, taken_weights = tmp_path / "given", tmp_path / "taken"
    with giver:
        assert giver.take(given_weights, "accuracy") is None
        phases = LpFt()(4, 1, EarlyStopping())
        train(giver.model, phases, on_phase=states.append)
        (state,) = states
        for row in state["history"]:
            row["val_acc"] = float(row["epoch"] == best_epoch)
        save_weights(giver.model, given_weights, best_epoch)
        giver.keep(state | {"spent": {"train_seconds": 3.0, "prefix_images": 5}}, given_weights)
    own = {name: value.clone() for name, value in taker.model.state_dict().items()}
    with taker:
        taken = taker.take(taken_weights, "accuracy")
    assert taken is not None and taken["history"] == state["history"]
    assert len(state["predicted"]) == 2 and torch.equal(taken["predicted"], state["predicted"])
    assert taken["spent"] == {"train_seconds": 3.0, "prefix_images": 0, "continued_images": 0}
    parameters = {name for name, _ in taker.model.named_parameters()}
    assert parameters <= taken["model"].keys()  # all of which train later
    for name, value in taken["model"].items():
        from_giver = "head" in name or name not in parameters
        assert torch.equal(value, state["model"][name] if from_giver else own[name]), name
    assert all(torch.equal(value, own[name]) for name, value in taker.model.state_dict().items())
    load_weights(taker.model, taken_weights, best_epoch)
    for name, value in taker.model.state_dict().items():
        from_giver = "head" in name or name not in parameters
        assert torch.equal(value, giver.model.state_dict()[name] if from_giver else own[name]), name
