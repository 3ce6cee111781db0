"""Training a small network through `fit` without a config: what several tests share."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning_fabric import Fabric
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR

from tvf.data.augment import FlipsAndCrops
from tvf.data.splits import DataSplits, Split
from tvf.frontier.inputs import InputPipeline
from tvf.models.finetune import FineTuneModel
from tvf.training.loop import fit
from tvf.training.optimizer import DiscriminativeOptimizer, carry_optimizer_state
from tvf.training.phases import Phase
from tvf.training.schedules import make_schedule
from tvf.training.state import EpochResult, PhaseSetup
from tvf.training.step import StepOptions

FABRIC = Fabric(accelerator="cpu", devices=1)


def part(count: int, seed: int) -> Split:
    """Images of three classes that differ in colour, somewhat."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 156, (count, 3, 16, 16), dtype=torch.uint8, generator=generator)
    labels = torch.arange(count) % 3
    images[torch.arange(count), labels] += 100
    return Split(images, labels)


DATA = DataSplits(("a", "b", "c"), part(33, 0), part(20, 1), part(20, 2))


def train(
    model: FineTuneModel,
    phases: Sequence[Phase],
    *,
    optimizer: DiscriminativeOptimizer | None = None,
    schedule: Callable[..., Any] | None = None,
    ways: StepOptions | None = None,
    augment: FlipsAndCrops | None = None,
    begun: Callable[[int, Optimizer], None] = lambda index, optimizer: None,
    **more: Any,
) -> EpochResult | None:
    """`fit` of the model on DATA, without a store; `begun` is told of each phase and its optimizer."""
    rates, ways = (
        optimizer or DiscriminativeOptimizer(torch.optim.Adam, 0.01, 0.001),
        ways or StepOptions(8),
    )
    make, batches = schedule or _constant, -(-len(DATA.train) // ways.batch_size)
    module: Any = FABRIC.setup_module(model)

    def begin(index: int, before: Optimizer | None) -> PhaseSetup:
        phase = phases[index]
        model.unfreeze(phase.groups)
        made = rates(
            model.head_parameters(), model.unfrozen_parameters(), phase.lr, phase.backbone_lr
        )
        if before is not None:
            carry_optimizer_state(before, made)
        begun(index, made)
        feed = InputPipeline(FABRIC, module, DATA, augment or FlipsAndCrops(horizontal=0.5))
        wrapped: Any = FABRIC.setup_optimizers(made)
        return PhaseSetup(feed, wrapped, make_schedule(make, made, phase.epochs, batches))

    return fit(
        FABRIC, model, phases, begin, ways, **({"seed": 1, "on_epoch": lambda epoch: None} | more)
    )


def _constant(optimizer: Optimizer) -> ConstantLR:
    return ConstantLR(optimizer, 1.0)
