"""Which configuration to choose: the cheapest that is very likely good enough.

One rule for folds, random splits and a single split. Good enough means: at most a stated margin
below the truly best, whichever that is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from tvf.report.images import ImageDifference, compare_scores
from tvf.report.split_scores import Scores, contrast_variance
from tvf.report.statistics import ROUNDING

MARGIN = 0.01  # differences of scores up to this do not matter
EVIDENCE = 0.1  # the largest probability of being worse by more than the margin
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
        """Whether the chosen is shown to be good enough, and all cheaper ones not to be."""
        if self.worse is None or self.worse[self.chosen] > EVIDENCE:
            return False
        return not self.open


def decide(scores: Scores, costs: Sequence[Cost], margin: float = MARGIN) -> Decision:
    """Choose the cheapest configuration that is shown to be within the margin of the best.

    Shown means a probability of at most `EVIDENCE` to be more than `margin` worse than the truly
    best (a region of practical equivalence: Corani, Benavoli, Demšar, Mangili and Zaffalon 2017).
    Where no configuration reaches that, or the spread is unknown, the highest mean is chosen and
    the decision stays open. So weak evidence never picks the cheap one. With the opposite burden of
    proof (the cheapest that is *not* shown to be worse), one simulated pick in three was more than
    0.01 worse than the best; with this rule one in forty, as often as with the highest mean.

    Costs within 10 % of the lowest are equal; then fewer trained parameters win, then the first.
    Raises ValueError if `margin` is negative.
    """
    best = int(scores.means.argmax())
    worse = probability_worse(scores, margin) if len(scores.means) > 1 else None
    if worse is None:
        return Decision(best, best, worse=None, difference=None, open=())
    good = [position for position, chance in enumerate(worse) if chance <= EVIDENCE]
    chosen = cheapest(good, costs) if good else best
    rival = best if chosen != best else runner_up(scores, chosen)
    difference = compare_scores(scores, chosen, rival, margin)
    return Decision(
        chosen, best, worse, difference, _open_questions(scores, costs, margin, chosen, worse)
    )


def runner_up(scores: Scores, chosen: int) -> int:
    """The position of the highest mean besides `chosen`.

    Passes over a second name for the same trainings, such as another learning rate of the backbone
    where none of it trains, unless there are no others.
    """
    ranking = np.argsort(-scores.means, kind="stable").tolist()
    others = [position for position in ranking if position != chosen]
    return next((other for other in others if not are_same(scores, other, chosen)), others[0])


def are_same(scores: Scores, a: int, b: int) -> bool:
    """Whether two configurations classified every image alike in every training."""
    differing = contrast_variance(scores.images_covariance, a, b)
    return bool(scores.means[a] == scores.means[b] and differing <= ROUNDING**2)


def probability_worse(scores: Scores, margin: float = MARGIN) -> tuple[float, ...] | None:
    """The probability of each configuration to be more than `margin` worse than the truly best.

    From draws of all means at once (multivariate t, flat prior), so that a configuration that is
    best by luck counts as doubtful too. None if the spread of any difference is unknown. Raises
    ValueError if `margin` is negative.
    """
    number = len(scores.means)
    pairs = [compare_scores(scores, a, 0, margin) for a in range(1, number)]
    # A single pair without spread is two names for the same training.
    if all(pair.worse is None for pair in pairs):
        return None
    rng = np.random.default_rng(0)
    values, vectors = np.linalg.eigh(scores.covariance)
    normal = rng.standard_normal((DRAWS, number)) @ (vectors * np.sqrt(np.maximum(values, 0))).T
    scale = np.sqrt(rng.chisquare(scores.df, DRAWS) / scores.df)
    means = scores.means + normal / scale[:, None]
    gaps = means.max(axis=1, keepdims=True) - means
    return tuple((gaps > margin).mean(axis=0).tolist())


def cheapest(positions: Sequence[int], costs: Sequence[Cost]) -> int:
    """The fastest of some configurations; of about as fast ones, that with fewest parameters.

    Configurations without known seconds count only where none has any.
    """
    seconds = {position: costs[position].seconds for position in positions}
    fastest = min((value for value in seconds.values() if value is not None), default=None)
    near = [
        position
        for position, value in seconds.items()
        if fastest is None or (value is not None and value <= fastest * (1 + COST_TOLERANCE))
    ]
    return min(near, key=lambda position: (costs[position].parameters, position))


def _is_cheaper(one: Cost, other: Cost) -> bool:
    """Whether `one` costs less, by seconds or, if these are about the same, by parameters."""
    if one.seconds is not None and other.seconds is not None:
        low, high = sorted((one.seconds, other.seconds))
        if high > low * (1 + COST_TOLERANCE):
            return one.seconds < other.seconds
    return one.parameters < other.parameters


def rounds_to_decide(scores: Scores, a: int, b: int, margin: float = MARGIN) -> int | None:
    """How many further rounds would likely show on which side of -`margin` a - b lies.

    A round is one training on each fold, or one random split. Assumes the difference measured so
    far is true, and asks for 80 % power at `EVIDENCE` with the normal approximation. None if no
    number is enough: the uncertainty about other images stays. Cautious where each image was
    validated once, since the noise of that one training then counts as the image's own.
    """
    floor = contrast_variance(scores.images_covariance, a, b)
    by_round = (contrast_variance(scores.covariance, a, b) - floor) * scores.rounds
    allowed = _variance_that_decides(scores, a, b, margin)
    if allowed <= floor:
        return None
    return max(ceil(by_round / (allowed - floor) - scores.rounds), 1)


def images_to_decide(scores: Scores, a: int, b: int, margin: float = MARGIN) -> float | None:
    """How many times as many images would likely decide, with as many trainings as now.

    Assumptions as in `rounds_to_decide`. None if no number is enough: retraining alone varies too
    much.
    """
    over_images = contrast_variance(scores.images_covariance, a, b)
    retraining = contrast_variance(scores.covariance, a, b) - over_images
    allowed = _variance_that_decides(scores, a, b, margin)
    if allowed <= retraining:
        return None
    return max(over_images / (allowed - retraining), 1.0)


def _variance_that_decides(scores: Scores, a: int, b: int, margin: float) -> float:
    from scipy.special import ndtri  # slow to import

    gap = float(scores.means[a] - scores.means[b]) + margin
    return (gap / float(ndtri(1 - EVIDENCE) + ndtri(POWER))) ** 2


def _open_questions(
    scores: Scores,
    costs: Sequence[Cost],
    margin: float,
    chosen: int,
    worse: Sequence[float],
) -> tuple[int, ...]:
    still_open = []
    for position, chance in enumerate(worse):
        if position == chosen:
            continue
        if _is_cheaper(costs[position], costs[chosen]):
            undecided = chance < 1 - EVIDENCE  # may be good enough, and costs less
        else:
            behind = compare_scores(scores, chosen, position, margin).worse
            undecided = worse[chosen] > EVIDENCE and behind is not None and behind > EVIDENCE
        if undecided:
            still_open.append(position)
    return tuple(still_open)
