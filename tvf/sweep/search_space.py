"""The space that hydra/sweeper=optuna searches, read from the overrides of the sweep's command."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from tvf.config import REPETITIONS
from tvf.errors import InputError
from tvf.sweep.composing import parse

STEP_DIGITS = 10  # after the point, of values with a step: 0.1 + 0.2 is 0.3


@dataclass(frozen=True)
class Dimension:
    """An option that is searched: its key and override as given, and what it is drawn from.

    `element` is the key with a leading +, if it was given so.
    """

    key: str
    element: str
    line: str
    distribution: BaseDistribution

    def round(self, value: Any) -> Any:
        """A drawn value as the job gets it: a float with few digits, inside its interval.

        The interval has at least a hundred such values; logarithmic ones keep three digits.
        """
        drawn = self.distribution
        if not isinstance(drawn, FloatDistribution):
            return value
        if drawn.step is not None:
            return round(value, STEP_DIGITS)
        digits = 3 - math.ceil(math.log10(drawn.high - drawn.low))
        if drawn.log:
            digits = max(digits, 2 - math.floor(math.log10(value)))
        return min(max(round(value, digits), drawn.low), drawn.high)

    def override(self, value: Any) -> str:
        """The override that gives a job this value."""
        return f"{self.element}={value if isinstance(value, str) else repr(value)}"

    def probes(self) -> list[Any]:
        """The values that are checked before the search: all choices, or the ends."""
        drawn = self.distribution
        if isinstance(drawn, CategoricalDistribution):
            return list(drawn.choices)
        assert isinstance(drawn, IntDistribution | FloatDistribution)
        return [drawn.low, drawn.high]


@dataclass(frozen=True)
class Space:
    """What a search draws, by key, and the overrides of its command, by key.

    `repeated` are overrides that list seeds and divisions: each trial is trained on all of them.
    """

    dimensions: dict[str, Dimension]
    overrides: dict[str, str]
    repeated: dict[str, str]

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """What to draw each option from."""
        return {key: dimension.distribution for key, dimension in self.dimensions.items()}

    def lines(self, values: Mapping[str, Any]) -> list[str]:
        """The overrides of one trial, in the command's order; those that repeat it list values."""
        drawn = {
            dimension.element: dimension.override(values[key])
            for key, dimension in self.dimensions.items()
        }
        return [drawn.get(element, line) for element, line in self.overrides.items()]

    def probes(self) -> list[dict[str, Any]]:
        """Values to check before the search: first ones, then every other one in their midst."""
        first = {key: dimension.probes()[0] for key, dimension in self.dimensions.items()}
        others = [
            first | {key: value}
            for key, dimension in self.dimensions.items()
            for value in dimension.probes()[1:]
        ]
        return [first, *others]


def read_space(lines: Sequence[str]) -> Space:
    """Read the space from a sweep's overrides; the last one of a key counts.

    Raises InputError for an interval that cannot be searched, or if nothing is to be searched.
    """
    space = Space({}, {}, {})
    for line, override in zip(lines, parse(lines), strict=True):
        key, element = override.key_or_group, override.get_key_element()
        space.overrides[element] = line
        space.dimensions.pop(key, None)
        space.repeated.pop(key, None)
        if not override.is_sweep_override():
            continue
        if key in REPETITIONS:
            _require_list(line, override)
            space.repeated[key] = line
        else:
            space.dimensions[key] = Dimension(key, element, line, _distribution(line, override))
    if not space.dimensions:
        raise InputError(
            "hydra/sweeper=optuna has nothing to search: give an option an interval or several "
            "values, as in 'optimizer.lr=tag(log,interval(1e-4,1e-2))' recipe=direct,lp_ft. "
            f"{', '.join(REPETITIONS)} repeat each trial and are not searched."
        )
    return space


def _require_list(line: str, override: Any) -> None:
    if not override.is_discrete_sweep():
        raise InputError(
            f"{line} must list values, as in {override.key_or_group}=1,2,3: they repeat each "
            "trial, whose score is the mean over all of them, and are not searched."
        )


def _distribution(line: str, override: Any) -> BaseDistribution:
    value = override.value()
    if override.is_interval_sweep():
        return _interval(line, value.start, value.end, value.tags)
    texts = list(dict.fromkeys(override.sweep_string_iterator()))
    if not texts:
        raise InputError(f"{line} has no values: a range ends before its second number.")
    if not override.is_range_sweep():
        return CategoricalDistribution(texts)
    numbers = sorted(value.range())
    low, step = numbers[0], abs(value.step)
    if all(isinstance(number, int) for number in numbers):
        return IntDistribution(low, numbers[-1], step=step)
    high = round(low + (len(numbers) - 1) * step, STEP_DIGITS)
    return FloatDistribution(float(low), high, step=float(step))


def _interval(line: str, start: float, end: float, tags: set[str]) -> BaseDistribution:
    """What to draw an interval's values from: whole numbers if its ends are, by int(...)."""
    if unknown := sorted(tags - {"log"}):
        raise InputError(f"{line} has the tag {unknown[0]}, but the only tag is log.")
    if not (math.isfinite(start) and math.isfinite(end)):
        raise InputError(f"{line} must have finite ends.")
    if start >= end:
        raise InputError(f"{line} must begin with the smaller end, as in interval(0.1, 0.9).")
    log = "log" in tags
    if log and start <= 0:
        raise InputError(
            f"{line} must have a lower end above 0, because log draws from its logarithm."
        )
    if isinstance(start, int) and isinstance(end, int):
        return IntDistribution(start, end, log=log)
    return FloatDistribution(start, end, log=log)
