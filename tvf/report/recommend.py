"""Which configuration a sweep recommends, and why: the cheapest that is close to the best.

The one-standard-error rule (Breiman et al. 1984), with training seconds in place of complexity.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tvf.metrics import WORDS
from tvf.report.configuration import Configuration
from tvf.report.statistics import ROUNDING, Difference, Estimate, within_one_error

MORE_SEEDS = "seed=1,2,3"
MORE_FRACTIONS = "To compare, sweep model.pct_unfreeze=0,0.25,0.5,1.0"


@dataclass(frozen=True)
class Recommendation:
    """The configuration that validation recommends, if any.

    `text` states it with the reason, or why there is none, in full sentences.
    """

    text: str
    chosen: Configuration | None = None
    best: Configuration | None = None


def recommend(
    configurations: Sequence[Configuration], differences: Sequence[Difference], metric: str
) -> Recommendation:
    """Choose the cheapest configuration within one standard error of the best.

    Chooses none if there is too little evidence: a single configuration, or one seed each.
    """
    scored = {group: group.val for group in configurations if group.val}
    if not scored:
        return Recommendation("No job has finished yet: there is nothing to compare.")
    repeated = {group: val for group, val in scored.items() if val.n > 1}
    dropped = [group for group in configurations if group.dropped]
    unfinished = [group for group in configurations if not group.val and not group.dropped]
    excluded = _excluded(unfinished, dropped)
    if len(scored) == 1:
        (only,) = scored
        if dropped and not unfinished:
            return _recommend_survivor(only, dropped, metric)
        if not repeated:
            return _decline_one_job(only, metric, excluded)
    if not repeated:
        return _decline_one_seed(scored, metric, excluded)
    if single := [group for group in scored if group not in repeated]:
        excluded.append(f"Excluded (one seed only): {_join(single)}.")
    if len(repeated) == 1:
        (only,) = repeated
        text = (
            "Only one configuration has results from more than one seed: "
            f"{only}, with a validation {_describe_score(only, metric)}. {MORE_FRACTIONS}."
        )
        return Recommendation(" ".join([text, *excluded]), best=only)
    return _apply_one_error_rule(repeated, differences, metric, excluded)


def _excluded(unfinished: Sequence[Configuration], dropped: Sequence[Configuration]) -> list[str]:
    sentences = []
    if unfinished:
        sentences.append(f"Excluded (no finished job): {_join(unfinished)}.")
    if dropped:
        sentences.append(f"Dropped by successive halving: {_join(dropped)}.")
    return sentences


def _recommend_survivor(
    only: Configuration, dropped: Sequence[Configuration], metric: str
) -> Recommendation:
    """Recommend the only configuration that successive halving kept."""
    text = (
        f"Train {only}, the only configuration that successive halving kept, with a validation "
        f"{_describe_score(only, metric)}. Dropped after fewer epochs: {_join(dropped)}."
    )
    return Recommendation(text, chosen=only, best=only)


def _decline_one_job(only: Configuration, metric: str, excluded: Sequence[str]) -> Recommendation:
    text = (
        f"Only one configuration has a finished job: {only}, with a validation "
        f"{_describe_score(only, metric)}. {MORE_FRACTIONS} and {MORE_SEEDS}."
    )
    return Recommendation(" ".join([text, *excluded]), best=only)


def _decline_one_seed(
    scored: Mapping[Configuration, Estimate], metric: str, excluded: Sequence[str]
) -> Recommendation:
    top = max(val.mean for val in scored.values())
    best = [group for group, val in scored.items() if val.mean >= top - ROUNDING]
    verb = "share" if len(best) > 1 else "has"
    text = (
        f"{_join(best)} {verb} the highest validation {WORDS[metric]}, {top:.3f}, but one seed "
        "gives no estimate of uncertainty, so nothing is recommended. "
        f"Run the sweep with {MORE_SEEDS}."
    )
    return Recommendation(" ".join([text, *excluded]), best=best[0])


def _apply_one_error_rule(
    estimates: Mapping[Configuration, Estimate],
    differences: Sequence[Difference],
    metric: str,
    excluded: Sequence[str],
) -> Recommendation:
    """Choose among configurations with at least two seeds."""
    by_label = {group.label: group for group in estimates}
    best_label, near = within_one_error({group.label: val for group, val in estimates.items()})
    best, chosen = by_label[best_label], _cheapest([by_label[label] for label in near])
    ranked = sorted(estimates, key=lambda group: -estimates[group].mean)
    rival = best if chosen is not best else next(group for group in ranked if group is not best)
    sentences = [
        *_give_reason(best, chosen, rival, estimates, metric),
        *_describe_difference(chosen, rival, differences),
    ]
    if len(near) == len(estimates):
        sentences.append(
            "All configurations are within one standard error of the best: "
            "these seeds cannot tell them apart."
        )
    if estimates[best].sd == 0:
        sentences.append(
            f"All seeds of {best} score the same: without a spread, the one-standard-error rule "
            "does not apply."
        )
    sentences += _limits_of_evidence(list(dict.fromkeys((chosen, best, rival))), estimates)
    return Recommendation(" ".join([*sentences, *excluded]), chosen, best)


def _give_reason(
    best: Configuration,
    chosen: Configuration,
    rival: Configuration,
    estimates: Mapping[Configuration, Estimate],
    metric: str,
) -> list[str]:
    error = f"one standard error ({estimates[best].error:.3f})"
    train = f"Train {chosen}: its validation {_describe_score(chosen, metric)}"
    if abs(estimates[chosen].mean - estimates[rival].mean) <= ROUNDING:
        duration = _compare_duration(rival, chosen)
        cost = f"which takes {duration}" if duration else "which trains more"
        return [f"{train} ties with {rival}, {cost}. No other configuration scores higher."]
    if chosen is best:
        if _cheapest(list(estimates)) is best:
            cost = "it is also the cheapest"
        else:
            cost = f"no cheaper configuration is within {error} of it"
        duration = _compare_duration(rival, chosen)
        runner_up = f"The runner-up is {rival} with {estimates[rival].mean:.3f}"
        if duration:
            runner_up += f", which takes {duration}"
        return [f"{train} is the best, and {cost}.", f"{runner_up}."]
    duration = _compare_duration(best, chosen)
    cost = f"which takes {duration}" if duration else "which is no cheaper"
    top = f"{estimates[best].mean:.3f} of {best}"
    return [f"{train} is within {error} of the best, {top}, {cost}."]


def _describe_difference(
    chosen: Configuration, rival: Configuration, differences: Sequence[Difference]
) -> list[str]:
    """The paired difference of the two with its interval, if known."""
    labels = {chosen.label, rival.label}
    pair = next((pair for pair in differences if {pair.a, pair.b} == labels), None)
    if pair is None or pair.estimate.low is None or pair.estimate.high is None:
        return []
    sign = 1 if pair.a == chosen.label else -1
    low, high = sorted((sign * pair.estimate.low, sign * pair.estimate.high))
    same_seeds = chosen.scores.keys() == rival.scores.keys()
    scope = "Paired by seed" if same_seeds else f"Over the {pair.estimate.n} seeds that both have"
    difference = _signed(sign * pair.estimate.mean)
    sentence = (
        f"{scope}, {chosen.label} minus {rival.label} is {difference} "
        f"(95 % interval {_signed(low)} to {_signed(high)})"
    )
    if low <= 0 <= high:
        sentence += ", which includes 0: these seeds cannot tell the two apart"
    return [f"{sentence}."]


def _limits_of_evidence(
    named: Sequence[Configuration], estimates: Mapping[Configuration, Estimate]
) -> list[str]:
    """Weaknesses in the evidence for the configurations named in the recommendation."""
    sentences = []
    if two_seeds := [group for group in named if estimates[group].n == 2]:
        sentences.append(
            f"With two seeds ({_join(two_seeds)}), the standard error itself is very uncertain. "
            f"Run {MORE_SEEDS}."
        )
    for group in named:
        if missing := len(group.jobs) - len(group.done):
            jobs = f"{missing} of {len(group.jobs)} jobs"
            sentences.append(f"Not counted (not done): {jobs} of {group}.")
    return sentences


def _cheapest(configurations: Sequence[Configuration]) -> Configuration:
    """The fastest; if others are about as fast, the one with the fewest trainable parameters."""
    timed = [group for group in configurations if group.seconds_range]
    fastest = min(timed or configurations, key=lambda group: group.seconds or 0.0)
    slowest_run = fastest.seconds_range[1] if fastest.seconds_range else 0.0
    overlapping = [
        group for group in timed if group.seconds_range and group.seconds_range[0] <= slowest_run
    ]
    return min(
        overlapping or configurations,
        key=lambda group: (group.done[0]["trainable_params"] or 0, group.fraction),
    )


def _describe_score(configuration: Configuration, metric: str) -> str:
    val = configuration.val
    assert val is not None, "it has a finished job"
    score = f"{WORDS[metric]} of {val.mean:.3f}"
    if val.low is None or val.high is None:
        return f"{score} (one seed)"
    return f"{score} (95 % interval {val.low:.3f} to {val.high:.3f}, {val.n} seeds)"


def _compare_duration(one: Configuration, other: Configuration) -> str:
    """How long `one` takes relative to `other`; empty if unknown."""
    if not one.seconds or not other.seconds:
        return ""
    ratio = f"{one.seconds / other.seconds:.2g}"
    if ratio == "1":
        return f"about as long ({one.seconds:.3g} s and {other.seconds:.3g} s per job)"
    return f"{ratio} times as long ({one.seconds:.3g} s instead of {other.seconds:.3g} s per job)"


def _signed(value: float) -> str:
    text = f"{value:+.3f}"
    return "0.000" if float(text) == 0 else text


def _join(configurations: Iterable[Configuration]) -> str:
    return "; ".join(map(str, configurations))
