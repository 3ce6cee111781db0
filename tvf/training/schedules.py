"""How learning rates change over a phase: torch's schedulers, built for the phase's length.

A scheduler in a config is a function of an optimizer and the phase's length, in epochs and in
batches per epoch. A scheduler from torch, which takes only an optimizer, works too: it is stepped
after every epoch.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)

from tvf.errors import require_count, require_number

WARMUP_START = 0.01  # a warm-up begins at this fraction of the learning rate


@dataclass(frozen=True)
class Schedule:
    """A scheduler and when it is stepped: after every batch or after every epoch."""

    scheduler: LRScheduler
    every_batch: bool = False

    def after_batch(self) -> None:
        """Step the scheduler if it is stepped every batch."""
        if self.every_batch:
            self.scheduler.step()

    @property
    def follows_scores(self) -> bool:
        """Whether the scheduler needs validation scores."""
        return isinstance(self.scheduler, ReduceLROnPlateau)

    def after_epoch(self, score: float | None) -> None:
        """Step the scheduler if it is stepped every epoch; a higher `score` is better."""
        if isinstance(self.scheduler, ReduceLROnPlateau):
            assert score is not None, "a schedule that follows scores gets them"
            self.scheduler.step(score)
        elif not self.every_batch:
            self.scheduler.step()


def make_schedule(
    make: Callable[..., Any], optimizer: Optimizer, epochs: int, batches: int
) -> Schedule:
    """Build the schedule of a phase: `epochs` epochs of `batches` batches each."""
    if {"epochs", "batches"} <= inspect.signature(make).parameters.keys():
        made = make(optimizer, epochs, batches)
    else:
        made = make(optimizer)
    return made if isinstance(made, Schedule) else Schedule(made)


def cosine(optimizer: Optimizer, epochs: int, batches: int, warmup: float = 0.0) -> Schedule:
    """Learning rates fall to zero along a cosine (Loshchilov & Hutter 2017), epoch by epoch.

    With `warmup`, a fraction of the phase, they first rise over that fraction (Goyal et al. 2017),
    and all changes are batch by batch.
    """
    require_number("scheduler.warmup", warmup, 0, 0.9)
    steps = epochs * batches
    rising = min(round(warmup * steps), steps - 1)
    if not rising:
        return Schedule(CosineAnnealingLR(optimizer, epochs))
    rise = LinearLR(optimizer, start_factor=WARMUP_START, end_factor=1.0, total_iters=rising)
    fall = CosineAnnealingLR(optimizer, steps - rising)
    return Schedule(SequentialLR(optimizer, [rise, fall], [rising]), every_batch=True)


def one_cycle(
    optimizer: Optimizer,
    epochs: int,
    batches: int,
    rising: float = 0.3,
    start: float = 25.0,
    end: float = 1e4,
) -> Schedule:
    """One cycle, batch by batch (Smith & Topin 2018).

    Learning rates rise to the optimizer's over a fraction `rising` of the phase, then fall. They
    begin at the optimizer's divided by `start`, and end at the initial one divided by `end`.
    """
    require_number("scheduler.rising", rising, 0, 0.9, above=True)
    require_number("scheduler.start", start, 1)
    require_number("scheduler.end", end, 1)
    # One step more than there are batches, because torch raises on the step after the last one.
    # It also divides by the number of rising steps minus one, so there must be more than one.
    steps = epochs * batches + 1
    scheduler = OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=steps,
        pct_start=max(rising, 1.5 / steps),
        div_factor=start,
        final_div_factor=end,
        cycle_momentum=False,
    )
    return Schedule(scheduler, every_batch=True)


def plateau(
    optimizer: Optimizer,
    epochs: int,
    batches: int,
    factor: float = 0.1,
    patience: int = 2,
    min_delta: float = 0.0,
) -> Schedule:
    """Multiply learning rates by `factor` once validation stops improving.

    Improvement has stopped after more than `patience` epochs in a row whose score does not exceed
    the best one by more than `min_delta`.
    """
    require_number("scheduler.factor", factor, 0, 0.99, above=True)
    require_count("scheduler.patience", patience, 0)
    require_number("scheduler.min_delta", min_delta, 0)
    scheduler = ReduceLROnPlateau(
        optimizer,
        mode="max",
        factor=factor,
        patience=patience,
        threshold=min_delta,
        threshold_mode="abs",
    )
    return Schedule(scheduler)
