"""How the rates change over a phase: torch's schedulers, given the phase's length and stepped when each should be.

A scheduler of a config is a function of an optimizer and a phase's length, in epochs and in batches an epoch. One of
torch's own that takes an optimizer alone will do too: it is stepped after each epoch.
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

START = 0.01  # of a rate, at the beginning of a warm-up


@dataclass(frozen=True)
class Schedule:
    """A scheduler and when it is stepped: after each batch, or else after each epoch."""

    scheduler: LRScheduler
    every_batch: bool = False

    def after_batch(self) -> None:
        """A batch of training is over."""
        if self.every_batch:
            self.scheduler.step()

    def after_epoch(self, score: float) -> None:
        """An epoch is over, and this its validation score, of which more is better."""
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(score)
        elif not self.every_batch:
            self.scheduler.step()


def make_schedule(
    make: Callable[..., Any], optimizer: Optimizer, epochs: int, batches: int
) -> Schedule:
    """The schedule that `make` stands for, at the beginning of a phase."""
    parameters = inspect.signature(make).parameters
    made = (
        make(optimizer, epochs, batches)
        if {"epochs", "batches"} <= parameters.keys()
        else make(optimizer)
    )
    return made if isinstance(made, Schedule) else Schedule(made)


def cosine(optimizer: Optimizer, epochs: int, batches: int, warmup: float = 0.0) -> Schedule:
    """The rates fall to zero along a cosine (Loshchilov & Hutter 2017), epoch by epoch.

    With a `warmup`, the share of the phase in which they rise first (Goyal et al. 2017), batch by batch.
    """
    require_number("scheduler.warmup", warmup, 0, 0.9)
    steps = epochs * batches
    rising = min(round(warmup * steps), steps - 1)
    if not rising:
        return Schedule(CosineAnnealingLR(optimizer, epochs))
    rise = LinearLR(optimizer, START, 1.0, rising)
    return Schedule(
        SequentialLR(optimizer, [rise, CosineAnnealingLR(optimizer, steps - rising)], [rising]),
        True,
    )


def one_cycle(
    optimizer: Optimizer,
    epochs: int,
    batches: int,
    rising: float = 0.3,
    start: float = 25.0,
    end: float = 1e4,
) -> Schedule:
    """One cycle, batch by batch (Smith & Topin 2018): up to the rates over a share `rising` of the phase, then down.

    It begins at a `start`-th of the rates, and ends at an `end`-th of where it began.
    """
    require_number("scheduler.rising", rising, 0, 0.9, above=True)
    require_number("scheduler.start", start, 1)
    require_number("scheduler.end", end, 1)
    rates = [group["lr"] for group in optimizer.param_groups]
    # One step more than there are: torch refuses the step after the last, which nobody trains with. And it divides by
    # the steps of the rise, less one, so that these must be more than one.
    steps = epochs * batches + 1
    rising = max(rising, 1.5 / steps)
    return Schedule(
        OneCycleLR(
            *(optimizer, rates, steps),
            **{
                "pct_start": rising,
                "div_factor": start,
                "final_div_factor": end,
                "cycle_momentum": False,
            },
        ),
        True,
    )


def plateau(
    optimizer: Optimizer,
    epochs: int,
    batches: int,
    factor: float = 0.1,
    patience: int = 2,
    min_delta: float = 0.0,
) -> Schedule:
    """The rates are multiplied by `factor` when more than `patience` epochs in a row brought no better score than the
    best by `min_delta`.
    """
    require_number("scheduler.factor", factor, 0, 0.99, above=True)
    require_count("scheduler.patience", patience, 0)
    require_number("scheduler.min_delta", min_delta, 0)
    return Schedule(ReduceLROnPlateau(optimizer, "max", factor, patience, min_delta, "abs"))
