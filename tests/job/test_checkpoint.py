"""Checkpoints: a job resumed from any of them equals one that was never stopped."""

import copy
import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers import SmallNet, small_backbone
from helpers.training import train
from tvf.errors import InputError
from tvf.job.checkpoint import MAGIC, OLD_MAGIC, Checkpoints
from tvf.models.finetune import FineTuneModel
from tvf.models.weights import is_readable, load_weights, save_weights
from tvf.training.ema import ExponentialMovingAverage
from tvf.training.loop import LoopOptions
from tvf.training.loss import ImageMixing
from tvf.training.optimizer import DiscriminativeOptimizer
from tvf.training.phases import EarlyStopping, Phase
from tvf.training.schedules import cosine
from tvf.training.state import EpochResult
from tvf.training.step import StepOptions


class Dropping(SmallNet):
    """With dropout before the head, which draws from torch's generator."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(nn.functional.dropout(images, 0.3, self.training))


PHASES = (
    Phase(2, 0),
    Phase(3, 2, 0.005, 0.002, EarlyStopping(1)),
    Phase(1, 1),
)


def _train(
    state: dict[str, Any] | None = None,
    best: dict[str, Tensor] | None = None,
    keep: Callable[[dict[str, Any], dict[str, Tensor]], None] | None = None,
    metric: str = "accuracy",
    phases: Sequence[Phase] = (Phase(3, 2),),
    richly: bool = False,
) -> tuple[list[EpochResult], dict[str, Tensor], dict[str, Tensor]]:
    """The epochs, the last weights and the best; `best` are those on disk when at `state`."""
    torch.manual_seed(1)
    network = Dropping()
    network.load_state_dict(small_backbone().module.state_dict())
    model = FineTuneModel(replace(small_backbone(), module=network), 0.5)
    history = [EpochResult(**row) for row in state["history"]] if state else []
    best = dict(best or {})
    steps = StepOptions(8, seed=1)
    if richly:
        mix, average = ImageMixing("mixup", 0.4), ExponentialMovingAverage(0.5)(model)
        steps = StepOptions(8, seed=1, mix=mix, clip_norm=1.0, average=average)
    warmup = 0.3 if richly else 0.0
    train(
        model,
        phases,
        optimizer=DiscriminativeOptimizer(torch.optim.Adam, 0.01, 0.001),
        schedule=lambda optimizer, epochs, batches: cosine(optimizer, epochs, batches, warmup),
        steps=steps,
        options=LoopOptions(metric=metric),
        on_epoch=history.append,
        on_best=lambda epoch: best.update(copy.deepcopy(model.state_dict())),
        state=state,
        save=(lambda state: keep(copy.deepcopy(state), dict(best))) if keep else None,
    )
    return (
        [replace(epoch, epoch_seconds=0, images_per_second=0) for epoch in history],
        model.state_dict(),
        best,
    )


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({}, id="direct"),
        pytest.param({"metric": "macro_f1"}, id="macro_f1"),
        pytest.param({"phases": PHASES}, id="three phases", marks=pytest.mark.slow),
        pytest.param(
            {"phases": PHASES, "richly": True},
            id="three phases with all that has a state",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_resuming_from_any_batch_gives_the_same_epochs_and_weights_bit_for_bit(
    tmp_path: Path, more: dict[str, Any]
) -> None:
    kept: list[tuple[dict[str, Any], dict[str, Tensor]]] = []
    history, weights, best = _train(keep=lambda state, best: kept.append((state, best)), **more)
    assert {epoch.phase for epoch in history} == {*range(1, 1 + len(more.get("phases", "1")))}
    # 33 images in batches of 8; the last one joins the fourth batch, whose end is the epoch's.
    assert [len(state["losses"]) for state, _ in kept] == len(history) * [1, 2, 3, 0]
    checkpoints = Checkpoints(tmp_path, configuration="this")
    for state, best_then in kept:
        checkpoints.save(state)
        torch.manual_seed(99)  # a new process's generators have other states
        predicted = [state["predicted"]]
        again, resumed, best_now = _train(
            checkpoints.load(),
            best_then,
            lambda now, _, seen=predicted: seen.append(now["predicted"]),
            **more,
        )
        assert again == history
        assert torch.equal(predicted[-1], kept[-1][0]["predicted"])
        assert all(torch.equal(resumed[name], weights[name]) for name in weights)
        assert all(torch.equal(best_now[name], best[name]) for name in best)


def _saved(folder: Path) -> Checkpoints:
    checkpoints = Checkpoints(folder, configuration="this")
    for number in (1, 2):
        checkpoints.save({"number": number, "weights": torch.arange(number * 100)})
    return checkpoints


def test_the_newest_state_is_loaded_but_not_that_of_another_configuration(tmp_path: Path) -> None:
    checkpoints = _saved(tmp_path)
    state = checkpoints.load()
    assert (
        state is not None
        and state["number"] == 2
        and torch.equal(state["weights"], torch.arange(200))
    )
    assert Checkpoints(tmp_path, configuration="other").load() is None
    checkpoints.delete()
    assert checkpoints.load() is None and not list(tmp_path.iterdir())


class Trap:
    """Code that a pickle can run when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def _disguise(path: Path, content: bytes) -> None:
    import hashlib

    path.write_bytes(MAGIC + hashlib.blake2b(content, digest_size=16).digest() + content)


@pytest.mark.parametrize(
    "damage", ["empty", "cut", "bit", "pickle", "posing pickle", "torch pickle"]
)
def test_a_damaged_or_foreign_file_is_replaced_by_the_one_before_and_never_run(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints, trapped = _saved(tmp_path), tmp_path / "trapped"
    content = checkpoints.last.read_bytes()
    if damage == "empty":
        checkpoints.last.write_bytes(b"")
    elif damage == "cut":
        checkpoints.last.write_bytes(content[:-100])
    elif damage == "bit":
        checkpoints.last.write_bytes(content[:500] + bytes([content[500] ^ 1]) + content[501:])
    elif damage == "pickle":
        checkpoints.last.write_bytes(pickle.dumps(Trap(trapped)))
    elif damage == "posing pickle":
        _disguise(checkpoints.last, pickle.dumps(Trap(trapped)))
    else:
        torch.save({"of": "this", "state": Trap(trapped)}, tmp_path / "made")
        _disguise(checkpoints.last, (tmp_path / "made").read_bytes())
    state = checkpoints.load()
    assert state is not None and state["number"] == 1
    assert "last.pt is damaged" in caplog.text and not trapped.exists()


@pytest.mark.parametrize("old", OLD_MAGIC)
def test_checkpoints_of_an_older_version_are_not_resumed_and_kept(
    tmp_path: Path, old: bytes
) -> None:
    checkpoints = _saved(tmp_path)
    content = checkpoints.last.read_bytes().replace(MAGIC, old)
    checkpoints.last.write_bytes(content)
    with pytest.raises(InputError, match=r"last\.pt was written by an older version of tvf"):
        checkpoints.load()
    assert checkpoints.last.read_bytes() == content


def test_files_that_hold_no_weights_or_another_networks_are_errors_with_their_name(
    tmp_path: Path,
) -> None:
    path = tmp_path / "best.safetensors"
    save_weights(nn.Linear(2, 3), path, 5)
    weights = nn.Linear(2, 3)
    load_weights(weights, path, 5)
    with pytest.raises(InputError, match=r"best.safetensors is from epoch 5, not 4"):
        load_weights(weights, path, 4)
    assert is_readable(path)
    with pytest.raises(InputError, match=r"best.safetensors does not hold this model's weights"):
        load_weights(nn.Linear(2, 4), path, 5)
    for content in (
        pickle.dumps(Trap(tmp_path / "trapped")),
        path.read_bytes()[:-1],
        b"",
        b"\xff" * 100,
    ):
        path.write_bytes(content)
        assert not is_readable(path)
        with pytest.raises(
            InputError, match=r"best.safetensors does not hold this model's weights"
        ):
            load_weights(weights, path, 5)
    assert not (tmp_path / "trapped").exists()


def test_a_state_of_another_network_is_an_error() -> None:
    states: list[dict[str, Any]] = []
    _train(keep=lambda state, _: states.append(state))
    for weights in (
        {},
        {"other": torch.zeros(1)},
        {name: torch.zeros(1) for name in states[0]["model"]},
    ):
        with pytest.raises(InputError, match="a different network"):
            _train(states[0] | {"model": weights})
    frozen = {"module.conv1.weight", "module.bn1.weight"}
    assert not frozen & states[0]["model"].keys() and "module.head.weight" in states[0]["model"]


def test_without_writable_checkpoints_the_job_continues_and_warns_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    checkpoints = Checkpoints(tmp_path / "file" / "folder", configuration="this")
    for _ in range(2):
        checkpoints.save({"number": 1})
    assert caplog.text.count("cannot write ") == 1
    assert checkpoints.load() is None


@pytest.mark.parametrize("minutes", [0, -1, float("nan"), "often"])
def test_intervals_out_of_range_raise(tmp_path: Path, minutes: Any) -> None:
    with pytest.raises(InputError, match="checkpoint.every_minutes"):
        Checkpoints(tmp_path, configuration="this", every_minutes=minutes)


def test_a_state_that_an_earlier_version_named_otherwise_is_kept_under_its_new_name(
    tmp_path: Path,
) -> None:
    Checkpoints(tmp_path, "as written").save({"epoch": 1})
    now = Checkpoints(tmp_path, "canonical")
    assert now.load() is None and now.load(earlier=["another"]) is None
    assert now.load(earlier=["another", "as written"]) == {"epoch": 1}
    assert now.load() == {"epoch": 1}
