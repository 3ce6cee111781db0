"""Which jobs may share a phase of the head alone, and that what they take is what was trained."""

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import small_backbone
from helpers.sweeps import base_config
from helpers.training import DATA, FABRIC, train
from tvf.config import build_phases
from tvf.data.splits import Split
from tvf.files import BEST_WEIGHTS
from tvf.job.head_phase import HeadPhase, head_phase
from tvf.job.setup import Job, JobContext
from tvf.models.finetune import FineTuneModel
from tvf.models.weights import load_weights, save_weights
from tvf.store.disk import Store


def _phase(
    folder: Path, pct: float = 0.5, more: Job | None = None, **changes: Any
) -> HeadPhase | None:
    """The head phase of a job whose config differs in `changes` (node__key=value)."""
    config = base_config()
    config["recipe"] = {"_target_": "tvf.training.LpFt"}
    config["epochs"], config["model"]["pct_unfreeze"] = 6, pct
    for key, value in changes.items():
        *nodes, last = key.split("__")
        node = config
        for each in nodes:
            node = node[each]
        node[last] = value
    torch.manual_seed(config["seed"])
    backbone = small_backbone()
    with torch.no_grad():
        backbone.module.head.weight.normal_()  # type: ignore[union-attr]
    model = FineTuneModel(backbone, pct)
    phases = build_phases(config, len(model.trained_groups))
    parts = Job(FABRIC, Store(folder / "store", 10**9), DATA, 8, backbone, model, phases)
    return head_phase(
        config,
        JobContext(folder, None, False, {}),
        replace(parts, data=more.data) if more else parts,
    )


def _key(folder: Path, *args: Any, **changes: Any) -> str | None:
    phase = _phase(folder, *args, **changes)
    return phase.key if phase else None


def test_what_trains_later_and_at_what_rates_makes_no_other_head_phase(tmp_path: Path) -> None:
    own = _key(tmp_path)
    assert own is not None
    assert own == _key(tmp_path, 0.25) == _key(tmp_path, 1.0)
    for changes in (
        {"optimizer__backbone_lr": 0.5},
        {"optimizer__layer_decay": 0.5},
        {"recipe__lr": 0.1, "recipe__backbone_lr": 0.1},
        {"epochs": 7},  # half of which are the head's, as of six
        {"name": "other"},
        {"tracker__mode": "offline"},
        {"store__max_gb": 1},
    ):
        assert _key(tmp_path, **changes) == own, changes


def test_all_that_the_head_depends_on_does(tmp_path: Path) -> None:
    own = _key(tmp_path)
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
        assert _key(tmp_path, **changes) not in (own, None), changes
    phase = _phase(tmp_path)
    assert phase is not None
    images = DATA.val.images.clone()
    images[0, 0, 0, 0] += 1
    other = replace(DATA, val=Split(images, DATA.val.labels))
    assert _key(
        tmp_path, 0.5, Job(FABRIC, None, other, 8, small_backbone(), phase.model, ())
    ) not in (own, None)


def test_code_of_the_users_counts_by_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    keys = []
    for scale in (1, 2):
        (tmp_path / "mine.py").write_text(
            f"from tvf.training import CrossEntropyLoss as Objective\nclass Loss(Objective):\n    scale = {scale}\n"
        )
        sys.modules.pop("mine", None)
        importlib.invalidate_caches()
        keys.append(_key(tmp_path, loss={"_target_": "mine.Loss", "label_smoothing": 0.0}))
    assert None not in keys and len({*keys, _key(tmp_path)}) == 3


def test_a_recipe_that_begins_with_groups_or_ends_with_the_head_shares_nothing(
    tmp_path: Path,
) -> None:
    assert _key(tmp_path, recipe={"_target_": "tvf.training.Direct"}) is None
    halves = [{"share": 0.5}, {"share": 0.5, "fraction": 0}]
    assert _key(tmp_path, recipe={"_target_": "tvf.training.Phases", "phases": halves}) is None


def test_only_who_goes_on_within_the_phase_holds_it(tmp_path: Path) -> None:
    for phase, keeps in ((1, False), (0, True)):
        one, other = _phase(tmp_path), _phase(tmp_path)
        assert one and other
        with one, other:
            one.hold({"phase": phase})
            other.hold({"phase": 0})  # in vain, if one has it
            assert [each.holds for each in (one, other)] == [keeps, not keeps]


@pytest.mark.parametrize("best_epoch", [1, 2])
def test_what_is_taken_is_what_was_kept_and_the_rest_is_the_takers(
    tmp_path: Path, best_epoch: int
) -> None:
    """Between jobs of other fractions; the best epoch may lie before the last."""
    giver, taker = _phase(tmp_path / "giver", 0.25), _phase(tmp_path / "giver", 1.0)
    assert giver and taker
    taker.model.module.conv1.weight.data.add_(1.0)  # type: ignore[union-attr]  # as its own weights may be
    states: list[dict[str, Any]] = []
    place = JobContext(tmp_path / "giver", None, False, {})
    with giver:
        assert giver.take(place, "accuracy") is None
        phases = build_phases(
            base_config() | {"epochs": 4, "recipe": {"_target_": "tvf.training.LpFt"}}, 1
        )
        train(giver.model, phases, on_phase=states.append, on_epoch=lambda epoch: None)
        (state,) = states
        for row in state["history"]:
            row["val_acc"] = float(row["epoch"] == best_epoch)
        save_weights(giver.model, place.folder / BEST_WEIGHTS, best_epoch)
        giver.keep(state | {"spent": {"train_seconds": 3.0, "prefix_images": 5}}, place)
    own = {name: value.clone() for name, value in taker.model.state_dict().items()}
    other = JobContext(tmp_path / "taker", None, False, {})
    with taker:
        taken = taker.take(other, "accuracy")
    assert taken is not None and taken["history"] == state["history"]
    assert taken["spent"] == {"train_seconds": 3.0, "prefix_images": 0, "continued_images": 0}
    parameters = {name for name, _ in taker.model.named_parameters()}
    assert parameters <= taken["model"].keys()  # all of which train later
    for name, value in taken["model"].items():
        from_giver = "head" in name or name not in parameters
        assert torch.equal(value, state["model"][name] if from_giver else own[name]), name
    assert all(torch.equal(value, own[name]) for name, value in taker.model.state_dict().items())
    load_weights(taker.model, other.folder / BEST_WEIGHTS, best_epoch)
    for name, value in taker.model.state_dict().items():
        from_giver = "head" in name or name not in parameters
        assert torch.equal(value, giver.model.state_dict()[name] if from_giver else own[name]), name
