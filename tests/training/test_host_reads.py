"""Training never waits for the device: nothing on it is read by the host within an epoch."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from helpers import small_backbone
from helpers.devices import DEVICES, Apart, replay_on_cpu
from helpers.training import DATA, FABRIC, train
from tvf.data import FlipsAndCrops
from tvf.models import FineTuneModel
from tvf.training import (
    CrossEntropyLoss,
    EpochResult,
    ExponentialMovingAverage,
    PassGraph,
    Phase,
    StepOptions,
    balanced_weights,
    graphs,
)
from tvf.training.linear import linear_gradients
from tvf.training.loop import TrainingLoop

READS = ("aten._local_scalar_dense", "aten.is_nonzero", "aten.equal", "aten.nonzero")


class HostReads(TorchDispatchMode):
    """Counts the operations whose result the host has to wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func).startswith(READS):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def epochs_with(monkeypatch: pytest.MonkeyPatch, steps: StepOptions, **how: Any) -> Sequence[str]:
    """The host's reads within the batches of two epochs."""
    reads, train_batches = HostReads(), TrainingLoop._train_batches

    def counted(self: TrainingLoop, *arguments: Any) -> Any:
        with reads:
            return train_batches(self, *arguments)

    monkeypatch.setattr(TrainingLoop, "_train_batches", counted)
    model = FineTuneModel(small_backbone(), 1.0, head_dropout=0.1)
    augment = FlipsAndCrops(horizontal=0.5, padding=2)
    train(model, [Phase(2, 4)], steps=steps, augment=augment, **how)
    return reads.found


@pytest.mark.parametrize(
    "residency", [None, Apart(), Apart(mode="off")], ids=["cpu", "resident", "ahead"]
)
def test_no_batch_is_read_by_the_host(
    monkeypatch: pytest.MonkeyPatch, residency: Apart | None
) -> None:
    average = ExponentialMovingAverage(0.5)(FineTuneModel(small_backbone(), 1.0))
    weights = balanced_weights(DATA.train.labels, DATA.classes)
    loss = CrossEntropyLoss(label_smoothing=0.1, class_weights=weights)
    steps = StepOptions(8, seed=1, loss=loss, clip_norm=1.0, average=average)
    assert not epochs_with(monkeypatch, steps, residency=residency)


@pytest.mark.parametrize("device", DEVICES)
def test_no_step_that_is_written_out_is_read_by_the_host(device: str) -> None:
    layer, inputs = nn.Linear(4, 2).to(device), torch.randn(3, 4, device=device)
    labels = torch.tensor([0, 1, 1]).to(device)
    loss = CrossEntropyLoss(class_weights=torch.tensor([0.3, 0.7]))
    before = torch.cuda.get_sync_debug_mode() if device == "cuda" else 0
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        with HostReads() as reads:
            for size in (1.7, 1.7, 2.1):
                linear_gradients(layer, inputs, labels, loss, size)
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode(before)
    assert not reads.found


def test_no_batch_is_read_whose_pass_was_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the comparison of a new graph with the network, once, is read."""
    made: list[PassGraph] = []

    def record(model: FineTuneModel, optimizer: Any) -> PassGraph:
        made.append(PassGraph(FABRIC, model, optimizer, 8, mode="on", record=replay_on_cpu))
        return made[-1]

    assert epochs_with(monkeypatch, StepOptions(8, seed=1), graph=record)
    monkeypatch.setattr(graphs, "_agree", lambda *results: True)
    assert not epochs_with(monkeypatch, StepOptions(8, seed=1), graph=record)
    assert all(graph.was_used for graph in made)


def test_the_counter_notices_a_read() -> None:
    with HostReads() as reads:
        torch.ones(1).item()
        bool(torch.ones(1) > 0)
    assert len(reads.found) == 2


@pytest.mark.parametrize("mode", ["on", "off"])
def test_epochs_are_equal_on_a_device_with_memory_of_its_own(mode: str) -> None:
    def history(residency: Apart | None) -> list[tuple[float | None, ...]]:
        found: list[EpochResult] = []
        train(
            FineTuneModel(small_backbone(), 1.0),
            [Phase(2, 4)],
            steps=StepOptions(8, seed=1),
            on_epoch=found.append,
            residency=residency,
        )
        return [(e.train_loss, e.train_acc, e.val_loss, e.val_acc) for e in found]

    assert history(Apart(mode=mode)) == history(None)
