"""A running average of the weights, which is validated, kept and tested in place of the last ones."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tvf.errors import require_number

STEPS = "steps"  # in a state, beside the values


@dataclass(frozen=True)
class ExponentialMovingAverage:
    """An exponential moving average, still to be given the model: after each step d * average + (1 - d) * weights, and
    BatchNorm statistics as well (Polyak & Juditsky 1992; `torch.optim.swa_utils`).

    d is `decay`, or less in the first steps, (1 + n) / (10 + n) after n of them, so that what training began with is
    soon forgotten.
    """

    decay: float = 0.99

    def __post_init__(self) -> None:
        require_number("average.decay", self.decay, 0, 0.99999)

    def __call__(self, model: nn.Module) -> "WeightAverage":
        """The average of this model, which begins where it stands."""
        return WeightAverage(model, self.decay)


class WeightAverage:
    """The average of `model`'s weights and buffers."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model, self._decay = model, decay
        self.reset()

    def reset(self) -> None:
        """Begin anew where the model stands."""
        self._average = AveragedModel(self._model, multi_avg_fn=self._blend, use_buffers=True)
        self._average.n_averaged.fill_(1)  # torch only copies the first; here the beginning is that

    def update(self) -> None:
        """A step was made."""
        self._average.update_parameters(self._model)
        for averaged, value in zip(
            self._average.module.buffers(), self._model.buffers(), strict=True
        ):
            if not value.is_floating_point():  # a count, of which there is no mean
                averaged.copy_(value)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averaged weights in here, and its own again afterwards."""
        own, averaged = _values(self._model), _values(self._average.module)
        kept = [value.clone() for value in own]
        _set_values(own, averaged)
        try:
            yield
        finally:
            _set_values(own, kept)

    def state_dict(self) -> dict[str, Any]:
        """The averaged values, and after how many steps."""
        return self._average.module.state_dict() | {STEPS: self._average.n_averaged}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from these."""
        self._average.module.load_state_dict(
            {name: value for name, value in state.items() if name != STEPS}
        )
        self._average.n_averaged.copy_(state[STEPS])

    def _blend(self, averaged: Any, values: Any, steps: Tensor | int) -> None:
        n = int(steps) - 1
        get_ema_multi_avg_fn(min(self._decay, (1 + n) / (10 + n)))(averaged, values, steps)


def no_average() -> None:
    """The weights as they are."""


def _values(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


@torch.no_grad()
def _set_values(values: list[Tensor], new: list[Tensor]) -> None:
    for value, other in zip(values, new, strict=True):
        value.copy_(other)
