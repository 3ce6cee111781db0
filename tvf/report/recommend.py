"""Which configuration a sweep recommends: the cheapest that validation cannot tell from the best, in words.

The one-standard-error rule (Breiman et al. 1984), with seconds of training for what is simplest.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tvf.metrics import WORDS
from tvf.records import Row
from tvf.report.statistics import Difference, Estimate, within_one_error

MORE_SEEDS = "seed=1,2,3"
MORE_FRACTIONS = "To compare, sweep model.pct_unfreeze=0,0.25,0.5,1.0"
ROUNDING = 1e-12  # of means of the same numbers in another order


@dataclass(frozen=True, eq=False)
class Configuration:
    """Jobs that differ in their seed alone.

    `label` begins with the fraction. `done` are the jobs that count, one a seed; of them are `scores`, by seed, in
    validation, the estimates, and the median, least and most of their own seconds of training.
    """

    label: str
    fraction: float
    jobs: list[Row]
    done: list[Row]
    scores: dict[int, float]
    val: Estimate | None
    test: Estimate | None
    seconds: float | None
    seconds_range: tuple[float, float] | None

    @property
    def dropped(self) -> bool:
        """Whether successive halving has dropped it before its end."""
        return not self.done and any(row["dropped"] for row in self.jobs)

    def __str__(self) -> str:
        return f"pct_unfreeze={self.label}"


@dataclass(frozen=True)
class Recommendation:
    """What validation recommends, if it can: `text` says it, or why not, in sentences to be read aloud."""

    text: str
    chosen: Configuration | None = None
    best: Configuration | None = None


def recommend(
    made: Sequence[Configuration], differences: Sequence[Difference], metric: str
) -> Recommendation:
    """The cheapest configuration within one standard error of the best; none where there is too little evidence."""
    scored = {each: each.val for each in made if each.val}
    several = {each: val for each, val in scored.items() if val.n > 1}
    dropped = [each for each in made if each.dropped]
    undone = [each for each in made if each not in scored and each not in dropped]
    left_out = [f"Left out, for want of a done job: {_listed(undone)}."] if undone else []
    left_out += [f"Dropped by successive halving: {_listed(dropped)}."] if dropped else []
    if not scored:
        return Recommendation("No job is done yet: there is nothing to compare.")
    if len(scored) == 1 and dropped and not undone:
        return _survivor(next(iter(scored)), dropped, metric)
    if not several and len(scored) == 1:
        ((only, val),) = scored.items()
        text = f"Only one configuration has a done job: {only}, with a validation {WORDS[metric]} of {val.mean:.3f}"
        return Recommendation(
            " ".join([f"{text} and one seed. {MORE_FRACTIONS}, and {MORE_SEEDS}.", *left_out]),
            best=only,
        )
    if not several:
        top = max(val.mean for val in scored.values())
        best = [each for each, val in scored.items() if val.mean >= top - ROUNDING]
        advice = f"nothing to choose by. Run the sweep with {MORE_SEEDS}."
        text = f"{_listed(best)} has the highest validation {WORDS[metric]}, {top:.3f}, but with one seed there is no "
        text = text.replace(" has ", " share ", 1) if len(best) > 1 else text
        return Recommendation(
            " ".join([f"{text}uncertainty to report, and so {advice}", *left_out]), best=best[0]
        )
    if len(several) < len(scored):
        alone = _listed(each for each in scored if each not in several)
        left_out.append(f"Left out, for want of a second seed: {alone}.")
    if len(several) == 1:
        (only,) = several
        text = f"Only one configuration can be judged: {_scored(only, metric)}. {MORE_FRACTIONS}."
        return Recommendation(" ".join([text, *left_out]), best=only)
    named = {each.label: each for each in several}
    top, near = within_one_error({each.label: val for each, val in several.items()})
    best, chosen = named[top], _cheapest([named[label] for label in near])
    ranked = sorted(several, key=lambda each: -several[each].mean)
    rival = best if chosen is not best else next(each for each in ranked if each is not best)
    sentences = _first_sentences(best, chosen, rival, several, metric) + _paired(
        chosen, rival, differences
    )
    if len(near) == len(several):
        sentences.append(
            "All are within one standard error of the best: these seeds cannot tell them apart."
        )
    if several[best].sd == 0:
        sentences.append(
            "All its seeds score the same: without a spread the rule of one standard error says nothing."
        )
    if few := [each for each in dict.fromkeys((chosen, best, rival)) if several[each].n == 2]:
        told = f"Two seeds ({_listed(few)}) are little evidence"
        sentences.append(f"{told}: the standard error itself is hardly known. Run {MORE_SEEDS}.")
    sentences += [
        f"Of {each}, {len(each.jobs) - len(each.done)} of {len(each.jobs)} jobs do not count: they are not done."
        for each in dict.fromkeys((chosen, best, rival))
        if len(each.done) < len(each.jobs)
    ]
    return Recommendation(" ".join(sentences + left_out), chosen, best)


def _survivor(only: Configuration, dropped: Sequence[Configuration], metric: str) -> Recommendation:
    """What successive halving has left of several configurations."""
    assert only.val is not None, "it has a done job"
    told = f"{only}, with a validation {WORDS[metric]} of {only.val.mean:.3f} and one seed"
    told = _scored(only, metric) if only.val.n > 1 else told
    text = f"Train {told}: it is what successive halving has left. Dropped, after fewer epochs: {_listed(dropped)}."
    return Recommendation(text, only, only)


def _first_sentences(
    best: Configuration,
    chosen: Configuration,
    rival: Configuration,
    several: dict[Configuration, Estimate],
    metric: str,
) -> list[str]:
    error = f"one standard error ({several[best].error:.3f})"
    if abs(several[chosen].mean - several[rival].mean) <= ROUNDING:
        cost = _seconds(rival, chosen, ", which takes ") or ", which trains more"
        return [
            f"Train {_scored(chosen, metric)}: it ties with {rival}{cost}; no other scores higher."
        ]
    if chosen is best:
        cheapest = _cheapest(list(several)) is best
        nothing = "the cheapest" if cheapest else f"nothing cheaper is within {error} of it"
        return [
            f"Train {_scored(best, metric)}: it is the best, and {nothing}.",
            f"The runner-up is {rival} with {several[rival].mean:.3f}{_seconds(rival, chosen, ', at ')}.",
        ]
    cost = _seconds(best, chosen, ", which takes ") or ", which is no cheaper"
    return [
        f"Train {_scored(chosen, metric)}: it is within {error} of the best, {several[best].mean:.3f} of {best}{cost}."
    ]


def _paired(
    chosen: Configuration, rival: Configuration, differences: Sequence[Difference]
) -> list[str]:
    pair = next(
        (each for each in differences if {each.a, each.b} == {chosen.label, rival.label}), None
    )
    if pair is None or pair.estimate.low is None or pair.estimate.high is None:
        return []
    sign = 1 if pair.a == chosen.label else -1
    low, high = sorted((sign * pair.estimate.low, sign * pair.estimate.high))
    same = chosen.scores.keys() == rival.scores.keys()
    over = "Paired by seed" if same else f"Over the {pair.estimate.n} seeds that both have"
    between = f"{over}, {chosen.label} minus {rival.label} is {_signed(sign * pair.estimate.mean)}"
    includes = (
        ", which includes 0: these seeds do not tell the two apart" if low <= 0 <= high else ""
    )
    return [f"{between} (95 % interval {_signed(low)} to {_signed(high)}){includes}."]


def _signed(value: float) -> str:
    text = f"{value:+.3f}"
    return "0.000" if float(text) == 0 else text


def _listed(configurations: Iterable[Configuration]) -> str:
    return "; ".join(map(str, configurations))


def _cheapest(configurations: Sequence[Configuration]) -> Configuration:
    """The one that takes the fewest seconds; of those whose seconds overlap with its own, the one that trains least."""
    timed = [each for each in configurations if each.seconds_range]
    first = min(timed or configurations, key=lambda each: each.seconds or 0.0)
    limit = first.seconds_range[1] if first.seconds_range else 0.0
    alike = [
        each for each in timed if each.seconds_range and each.seconds_range[0] <= limit
    ] or configurations
    return min(alike, key=lambda each: (each.done[0]["trainable_params"] or 0, each.fraction))


def _scored(configuration: Configuration, metric: str) -> str:
    val = configuration.val
    assert val is not None and val.low is not None and val.high is not None, "of more than one seed"
    interval = f"95 % interval {val.low:.3f} to {val.high:.3f}, {val.n} seeds"
    return f"{configuration}, with a validation {WORDS[metric]} of {val.mean:.3f} ({interval})"


def _seconds(one: Configuration, other: Configuration, before: str) -> str:
    if not one.seconds or not other.seconds:
        return ""
    ratio = f"{one.seconds / other.seconds:.2g} times the seconds"
    if ratio.startswith("1 "):
        ratio = "about the same seconds"
    return f"{before}{ratio} ({one.seconds:.3g} instead of {other.seconds:.3g} a job)"
