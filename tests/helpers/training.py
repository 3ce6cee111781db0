"""Shared by several tests: training a small network through the loop without a config."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR

from helpers.devices import fabric_on
from helpers.sweeps import base_config
from tvf.data import DataSplits, FlipsAndCrops, Pixels, Pool, Split
from tvf.frontier import InputPipeline, Residency
from tvf.job import JobContext
from tvf.models import FineTuneModel
from tvf.store import Store
from tvf.training import (
    DiscriminativeOptimizer,
    EpochResult,
    LoopOptions,
    PassGraph,
    Phase,
    PhaseSetup,
    StepOptions,
    TrainingLoop,
    carry_optimizer_state,
    make_schedule,
)

FABRIC = fabric_on("cpu")


def split(count: int, seed: int) -> Split:
    """Images of three classes that differ slightly in colour."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 156, (count, 3, 16, 16), dtype=torch.uint8, generator=generator)
    labels = torch.arange(count) % 3
    images[torch.arange(count), labels] += 100
    return whole_pool(images, labels)


def whole_pool(images: Tensor, labels: Tensor) -> Split:
    """A split that is all of its pool."""
    names = [str(number) for number in range(len(labels))]
    return Split(Pool(Pixels(images), labels, names), np.arange(len(labels)))


DATA = DataSplits(("a", "b", "c"), split(33, 0), split(20, 1), split(20, 2))


@dataclass(frozen=True)
class SmallData:
    """DATA as a data source that a config can name."""

    image_size: int = 16
    batch_size: int = 8
    metric: str = "accuracy"
    class_weights: str | None = None

    def load(self, progress: bool = False, store: Store | None = None) -> DataSplits:
        return DATA


def small_config(**changes: Any) -> dict[str, Any]:
    """A job's config over SmallData and `small_backbone`; `changes` are node__key=value."""
    config = base_config()
    config["data"] = {"_target_": "helpers.training.SmallData", "batch_size": 8}
    config["backbone"] = {"_target_": "helpers.small_backbone"}
    for key, value in changes.items():
        *nodes, last = key.split("__")
        node = config
        for name in nodes:
            node = node[name]
        node[last] = value
    return config


def small_context(folder: Path, sweep: Path | None = None) -> JobContext:
    """Where a job of `small_config` runs."""
    choices = {"model": "finetune", "backbone": "small", "data": "small"}
    return JobContext(folder, sweep, parallel=False, choices=choices)


class SmallPhases:
    """The phases of a model on DATA, without a store; `begun` hears of each and its optimizer."""

    def __init__(
        self,
        model: FineTuneModel,
        phases: Sequence[Phase],
        *,
        optimizer: DiscriminativeOptimizer | None = None,
        schedule: Callable[..., Any] | None = None,
        augment: FlipsAndCrops | None = None,
        batch_size: int = 8,
        residency: Residency | None = None,
        graph: Callable[[FineTuneModel, Optimizer | None], PassGraph | None] = lambda *_: None,
        begun: Callable[[int, Optimizer], None] = lambda index, optimizer: None,
    ) -> None:
        self.phases, self.model, self.begun = tuple(phases), model, begun
        self.residency, self.graph = residency, graph
        self.optimizer = optimizer or DiscriminativeOptimizer(torch.optim.Adam, 0.01, 0.001)
        self.schedule, self.augment = (
            schedule or _constant,
            augment or FlipsAndCrops(horizontal=0.5),
        )
        self.batches = -(-len(DATA.train) // batch_size)
        self.module: Any = FABRIC.setup_module(model)

    def start(self, index: int, previous: Optimizer | None) -> PhaseSetup:
        phase, model = self.phases[index], self.model
        model.unfreeze(phase.groups)
        head, groups = model.head_parameters(), model.unfrozen_parameters()
        optimizer = self.optimizer(head, groups, phase.lr, phase.backbone_lr)
        if previous is not None:
            carry_optimizer_state(previous, optimizer)
        self.begun(index, optimizer)
        pipeline = InputPipeline(FABRIC, self.module, DATA, self.augment, self.residency)
        wrapped: Any = FABRIC.setup_optimizers(optimizer)
        schedule = make_schedule(self.schedule, optimizer, phase.epochs, self.batches)
        return PhaseSetup(
            pipeline, wrapped, schedule, self.graph(model, wrapped), self.graph(model, None)
        )


def train(
    model: FineTuneModel,
    phases: Sequence[Phase],
    *,
    steps: StepOptions | None = None,
    options: LoopOptions | None = None,
    state: dict[str, Any] | None = None,
    on_epoch: Callable[[EpochResult], None] = lambda epoch: None,
    on_best: Callable[[EpochResult], None] = lambda epoch: None,
    on_phase: Callable[[dict[str, Any]], None] = lambda state: None,
    save: Callable[[dict[str, Any]], None] | None = None,
    **how: Any,
) -> EpochResult | None:
    """Train the model through its phases as `tvf.job.run` does; the best epoch, None if it pauses.

    `save` gets the state after every batch and epoch, `on_phase` at the end of each phase but the
    last; `how` goes to SmallPhases.
    """
    steps = steps or StepOptions(8, seed=1)

    def save_state() -> None:
        if save:
            save(loop.state_dict())

    builder = SmallPhases(model, phases, batch_size=steps.batch_size, **how)
    loop = TrainingLoop(FABRIC, model, builder, steps, options, state, save_state)

    def tell_best() -> None:
        assert loop.best is not None
        with steps.averaged():
            on_best(loop.best)

    if loop.is_best:
        tell_best()
    for epoch in loop:
        on_epoch(epoch)
        save_state()
        if loop.is_best:
            tell_best()
        if loop.phase_is_over and not loop.is_over:
            on_phase(loop.state_dict())
    return loop.best if loop.is_over else None


def _constant(optimizer: Optimizer) -> ConstantLR:
    return ConstantLR(optimizer, 1.0)
