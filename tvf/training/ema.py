"""A running average of the weights, validated, kept and tested instead of the last weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tvf.errors import require_number

STEPS = "steps"  # the key of the step count in a state, next to the averaged values


@dataclass(frozen=True)
class ExponentialMovingAverage:
    """Builds the exponential moving average of a model: d * average + (1 - d) * weights every step.

    BatchNorm statistics are averaged as well (Polyak & Juditsky 1992).
    After n steps, d is the smaller of `decay` and (1 + n) / (10 + n), so that the initial weights
    are soon forgotten.
    """

    decay: float = 0.99

    def __post_init__(self) -> None:
        require_number("average.decay", self.decay, 0, 0.99999)

    def __call__(self, model: nn.Module) -> "WeightAverage":
        """The average of this model, starting from its current weights."""
        return WeightAverage(model, self.decay)


class WeightAverage:
    """The average of `model`'s weights and buffers.

    Not `torch.optim.swa_utils.AveragedModel`, which reads its count of steps from the device at
    every step.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model, self._decay = model, decay
        self.reset()

    def reset(self) -> None:
        """Restart from the model's current weights."""
        self._average, self._steps = deepcopy(self._model), 1

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the model's weights after a training step."""
        n = self._steps - 1
        decay = min(self._decay, (1 + n) / (10 + n))
        kinds: dict[tuple[torch.dtype, torch.device], tuple[list[Tensor], list[Tensor]]] = {}
        for averaged, value in zip(_tensors(self._average), _tensors(self._model), strict=True):
            if value.is_floating_point():
                group = kinds.setdefault((value.dtype, value.device), ([], []))
                group[0].append(averaged.detach())
                group[1].append(value.detach())
            else:  # a count, which has no mean
                averaged.copy_(value)
        for averages, values in kinds.values():
            torch._foreach_lerp_(averages, values, 1 - decay)  # type: ignore[reportPrivateImportUsage]
        self._steps += 1

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the model the averaged weights inside the context; restore its own afterwards."""
        own, averaged = _tensors(self._model), _tensors(self._average)
        kept = [value.clone() for value in own]
        _copy_into(own, averaged)
        try:
            yield
        finally:
            _copy_into(own, kept)

    def state_dict(self) -> dict[str, Any]:
        """The averaged values and the number of steps."""
        return self._average.state_dict() | {STEPS: torch.tensor(self._steps)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state."""
        values = {name: value for name, value in state.items() if name != STEPS}
        self._average.load_state_dict(values)
        self._steps = int(state[STEPS])


def no_average() -> None:
    """Validate and keep the weights as they are."""


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


@torch.no_grad()
def _copy_into(targets: list[Tensor], sources: list[Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)
