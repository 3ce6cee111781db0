"""Which configuration to choose: the cheapest that is very likely good enough.

One rule for folds, random splits and a single split. Good enough means: at most a stated margin
below the truly best, whichever that is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, inf

import numpy as np

from tvf.report.images import ImageDifference, Scores, compare_scores, contrast_variance

MARGIN = 0.01  # differences of scores up to this do not matter
EVIDENCE = 0.05  # the largest probability of being worse by more than the margin
POWER = 0.8
COST_TOLERANCE = 0.1  # costs within this fraction of each other are equal
DRAWS = 4000


@dataclass(frozen=True)
class Cost:
    """Median training seconds, None if unknown, and the number of trained parameters."""

    seconds: float | None
    parameters: int


@dataclass(frozen=True)
class Decision:
    """The configuration to choose, by its position, and how sure the choice is.

    `best` has the highest mean score. `worse` holds for each configuration the probability that it
    is more than the margin worse than the truly best; None if unknown. `difference` is the chosen
    minus the best, or minus the runner-up where they are the same. `open` are the configurations
    that may still change the choice: cheaper ones that may be good enough, and, if the chosen one
    is not shown to be good enough, those that may be better by more than the margin.
    """

    chosen: int
    best: int
    worse: tuple[float, ...] | None
    difference: ImageDifference | None
    open: tuple[int, ...]

    @property
    def decided(self) -> bool:
        """Whether nothing measured so far leaves the choice open."""
        return self.worse is not None and not self.open


