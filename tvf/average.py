"""A running average of the weights, which is validated, kept and tested in place of the last ones."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tvf.errors import require_number


@dataclass(frozen=True)
class Ema:
    """An exponential moving average (Polyak & Juditsky 1992, as `torch.optim.swa_utils` has it), still to be given the
    model: after each step decay * average + (1 - decay) * weights, BatchNorm statistics as well.
    """

    decay: float = 0.99

    def __post_init__(self) -> None:
        require_number("average.decay", self.decay, 0, 0.99999)

    def __call__(self, model: nn.Module) -> "Average":
        """The average of this model, which begins where it stands."""
        return Average(model, self.decay)


class Average:
    """The average of `model`'s weights and buffers."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model, self._decay = model, decay
        self.reset()

    def reset(self) -> None:
        """Begin anew where the model stands."""
        self._average = AveragedModel(self._model, multi_avg_fn=get_ema_multi_avg_fn(self._decay), use_buffers=True)
        self._average.n_averaged.fill_(1)  # else the first step would only be copied

    def update(self) -> None:
        """A step was made."""
        self._average.update_parameters(self._model)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averaged weights in here, and its own again afterwards."""
        own, averaged = _values(self._model), _values(self._average.module)
        kept = [value.clone() for value in own]
        _set(own, averaged)
        try:
            yield
        finally:
            _set(own, kept)

    def state_dict(self) -> dict[str, Any]:
        """The averaged values."""
        return self._average.module.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from these."""
        self._average.module.load_state_dict(state)


def none() -> None:
    """The weights as they are."""


def _values(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


@torch.no_grad()
def _set(values: list[Tensor], new: list[Tensor]) -> None:
    for value, other in zip(values, new, strict=True):
        value.copy_(other)
