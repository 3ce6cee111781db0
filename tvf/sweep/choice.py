"""Which configuration a sweep recommends: the cheapest that validation cannot tell from the best, in words.

The one-standard-error rule (Breiman et al. 1984), with seconds of training for what is simplest.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tvf.metrics import WORDS
from tvf.sweep.records import Row
from tvf.sweep.statistics import Difference, Estimate, within_one_error

MORE_SEEDS = "seed=1,2,3"


@dataclass(frozen=True, eq=False)
class Configuration:
    """Jobs that differ in their seed alone.

    `label` begins with the fraction. `done` are the jobs that count, one a seed; of them are `scores`, by seed, in
    validation, the estimates, and the median of their own seconds of training.
    """

    label: str
    fraction: float
    jobs: list[Row]
    done: list[Row]
    scores: dict[int, float]
    val: Estimate | None
    test: Estimate | None
    seconds: float | None

    def __str__(self) -> str:
        return f"pct_unfreeze={self.label}"


@dataclass(frozen=True)
class Choice:
    """What validation recommends, if it can: `text` says it, or why not, in sentences to be read aloud."""

    text: str
    chosen: Configuration | None = None
    best: Configuration | None = None


def choose(made: Sequence[Configuration], differences: Sequence[Difference], metric: str) -> Choice:
    """The cheapest configuration within one standard error of the best; none where there is too little evidence."""
    scored = {each: each.val for each in made if each.val}
    several = {each: val for each, val in scored.items() if val.n > 1}
    if not scored:
        return Choice("No job is done yet: there is nothing to compare.")
    if not several:
        best = max(scored, key=lambda each: scored[each].mean)
        return Choice(
            f"{best} has the highest validation {WORDS[metric]}, {scored[best].mean:.3f}, but with one seed there is "
            f"no uncertainty to report, and so nothing to choose by. Run the sweep with {MORE_SEEDS}.",
            best=best,
        )
    alone = [str(each) for each in scored if each not in several]
    left_out = f" Left out, for want of a second seed: {'; '.join(alone)}." if alone else ""
    if len(several) == 1:
        (only,) = several
        return Choice(f"There is nothing to compare {_scored(only, metric)} with.{left_out}", best=only)
    named = {each.label: each for each in several}
    top, near = within_one_error({each.label: val for each, val in several.items()})
    best, chosen = named[top], min((named[label] for label in near), key=_cost)
    sentences = [_first_sentence(best, chosen, several, metric)]
    ranked = sorted(several, key=lambda each: -several[each].mean)
    rival = best if chosen is not best else next(each for each in ranked if each is not best)
    if chosen is best:
        sentences.append(f"The runner-up is {rival} with {several[rival].mean:.3f}{_seconds(rival, chosen, ', at ')}.")
    sentences += _paired(chosen, rival, differences)
    if len(near) == len(several):
        sentences.append("All are within one standard error of the best: these seeds cannot tell them apart.")
    if several[best].n == 2:
        sentences.append(f"Two seeds are little evidence: the standard error itself is hardly known. Run {MORE_SEEDS}.")
    return Choice(" ".join(sentences) + left_out, chosen, best)


def _first_sentence(
    best: Configuration, chosen: Configuration, several: dict[Configuration, Estimate], metric: str
) -> str:
    error = f"one standard error ({several[best].error:.3f})"
    if chosen is best:
        return f"Train {_scored(best, metric)}: it is the best, and nothing cheaper is within {error} of it."
    cost = _seconds(best, chosen, ", which takes ") or ", and is the cheaper one"
    return (
        f"Train {_scored(chosen, metric)}: it is within {error} of the best, {several[best].mean:.3f} of {best}{cost}."
    )


def _paired(chosen: Configuration, rival: Configuration, differences: Sequence[Difference]) -> list[str]:
    pair = next((each for each in differences if {each.a, each.b} == {chosen.label, rival.label}), None)
    if pair is None or pair.estimate.low is None or pair.estimate.high is None:
        return []
    sign = 1 if pair.a == chosen.label else -1
    low, high = sorted((sign * pair.estimate.low, sign * pair.estimate.high))
    difference = f"{sign * pair.estimate.mean:+.3f} (95 % interval {low:+.3f} to {high:+.3f})"
    return [f"Paired by seed, its difference to {rival} is {difference}."]


def _cost(configuration: Configuration) -> tuple[float, float, float]:
    seconds = configuration.seconds
    trainable = configuration.done[0]["trainable_params"] or 0
    # Seconds that differ in their third digit are no difference.
    return (float("inf") if seconds is None else float(f"{seconds:.1e}"), trainable, configuration.fraction)


def _scored(configuration: Configuration, metric: str) -> str:
    val = configuration.val
    assert val is not None and val.low is not None and val.high is not None, "of more than one seed"
    interval = f"95 % interval {val.low:.3f} to {val.high:.3f}, {val.n} seeds"
    return f"{configuration}, with a validation {WORDS[metric]} of {val.mean:.3f} ({interval})"


def _seconds(one: Configuration, other: Configuration, before: str) -> str:
    if not one.seconds or not other.seconds:
        return ""
    ratio = f"{one.seconds / other.seconds:.2g} times the seconds"
    return f"{before}{ratio} ({one.seconds:.3g} instead of {other.seconds:.3g} a job)"
