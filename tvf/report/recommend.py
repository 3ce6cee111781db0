"""Which configuration a sweep recommends, why, and how sure that is, in sentences.

The rule is in `decide`; this module says what it found.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tvf.metrics import WORDS
from tvf.report.configuration import Configuration
from tvf.report.decide import (
    COST_TOLERANCE,
    EVIDENCE,
    Cost,
    Decision,
    decide,
    runner_up,
)
from tvf.report.evidence import Evidence
from tvf.report.open_questions import FEW, FOLDS, describe_open_questions, overrides_to_decide
from tvf.report.optimism import describe_epoch_optimism, describe_optimism
from tvf.report.raced import describe_duels, is_settled, rival_of, winner_of
from tvf.report.searched import describe_search
from tvf.report.statistics import ROUNDING
from tvf.report.words import enumerate_words, percent, signed

MORE_FRACTIONS = "To compare, sweep model.pct_unfreeze=0,0.25,0.5,1.0"


@dataclass(frozen=True)
class Recommendation:
    """The configuration that validation recommends, if any.

    `text` states it with the reason, or why there is none, in full sentences. `decision` is what
    the rule found; None if there was too little evidence for it. `more` are the overrides that
    would likely decide an open question.
    """

    text: str
    chosen: Configuration | None = None
    best: Configuration | None = None
    decision: Decision | None = None
    more: str | None = None
    settled: bool | None = None  # of a race, which has no `decision`
    rival: Configuration | None = None  # that came closest to the winner of a race

    @property
    def decided(self) -> bool | None:
        """Whether the choice is decided; None if there was too little evidence for the rule."""
        return self.decision.decided if self.decision else self.settled


def recommend(
    configurations: Sequence[Configuration],
    evidence: Evidence | None,
    metric: str,
    margin: float,
    *,
    all_sizes: bool = True,
) -> Recommendation:
    """Choose the cheapest configuration that is shown to be within the margin of the best.

    Chooses none if there is too little evidence: a single configuration, or one training of each.
    `all_sizes` says that no others were trained on fewer images.
    """
    scored = [group for group in configurations if group.val]
    if not scored:
        return Recommendation("No job has finished yet: there is nothing to compare.")
    dropped = [group for group in configurations if group.dropped]
    unfinished = [group for group in configurations if not group.val and not group.dropped]
    excluded = [*describe_search(configurations), *_excluded(unfinished, dropped, evidence)]
    if winner := winner_of(configurations):
        return _describe_winner(winner, configurations, metric, margin)
    if len(scored) == 1:
        which = "" if all_sizes else " with the most training images"
        return _describe_only(scored[0], which, dropped, unfinished, metric, excluded)
    if evidence is None:
        return _decline(scored, metric, excluded)
    return _apply_rule(evidence, metric, margin, excluded)


def _excluded(
    unfinished: Sequence[Configuration],
    dropped: Sequence[Configuration],
    evidence: Evidence | None,
) -> list[str]:
    sentences = []
    if unfinished:
        sentences.append(f"Excluded (no finished job): {_join(unfinished)}.")
    if evidence and evidence.excluded:
        sentences.append(f"Excluded (too few finished jobs): {_join(evidence.excluded)}.")
    if halved := [group for group in dropped if not group.pruned]:
        sentences.append(f"Dropped by successive halving: {_join(halved)}.")
    if pruned := [group for group in dropped if group.pruned]:
        sentences.append(f"Pruned by the search: {_join(pruned)}.")
    for group in evidence.configurations if evidence else ():
        if missing := len(group.jobs) - len(group.done):
            jobs = f"{missing} of {len(group.jobs)} jobs"
            sentences.append(f"Not counted (not done): {jobs} of {group}.")
    return sentences


def _describe_only(
    only: Configuration,
    which: str,
    dropped: Sequence[Configuration],
    unfinished: Sequence[Configuration],
    metric: str,
    excluded: Sequence[str],
) -> Recommendation:
    score = _describe_score(only, metric)
    if dropped and not unfinished:
        by = "the search" if dropped[0].pruned else "successive halving"
        text = (
            f"Train {only}, the only configuration that {by} kept, with a validation "
            f"{score}. Dropped after fewer epochs: {_join(dropped)}."
        )
        text = " ".join([text, *describe_search([only, *dropped])])
        return Recommendation(text, chosen=only, best=only)
    text = f"Only one configuration{which} has finished jobs: {only}, with a validation {score}."
    more = f" and {FOLDS}" if len(only.done) == 1 else ""
    sentences = [text, *describe_epoch_optimism(only), f"{MORE_FRACTIONS}{more}.", *excluded]
    return Recommendation(" ".join(sentences), best=only)


def _describe_winner(
    winner: Configuration, configurations: Sequence[Configuration], metric: str, margin: float
) -> Recommendation:
    settled = is_settled(configurations)
    lead = "Train" if settled else "Not decided; best so far is"
    how = "the winner of a race" if settled else "ahead in a race"
    text = f"{lead} {winner}, {how}, with a validation "
    text += f"{_describe_score(winner, metric)}."
    sentences = [
        text,
        *describe_duels(configurations, margin),
        *describe_epoch_optimism(winner),
        *_describe_failed(configurations),
    ]
    rival = rival_of(winner, configurations)
    return Recommendation(" ".join(sentences), winner, winner, settled=settled, rival=rival)


def _describe_failed(configurations: Sequence[Configuration]) -> list[str]:
    return [
        f"Not counted (failed): {failed} of {len(group.jobs)} jobs of {group}."
        for group in configurations
        if (failed := sum(job["state"] == "failed" for job in group.jobs))
    ]


def _decline(
    scored: Sequence[Configuration], metric: str, excluded: Sequence[str]
) -> Recommendation:
    top = max(group.val.mean for group in scored if group.val)
    best = [group for group in scored if group.val and group.val.mean >= top - ROUNDING]
    verb = "share" if len(best) > 1 else "has"
    if max(len(group.done) for group in scored) > 1:
        reason = (
            "too few trainings of the configurations match (same seed, same division) to compare "
            "them, so nothing is recommended. Train all of them with the same seeds or folds"
        )
    else:
        reason = (
            "a single training of each configuration does not show how much another training "
            f"would change the scores, so nothing is recommended. Run the sweep with {FOLDS}"
        )
    names = enumerate_words([*map(str, best)])
    text = f"{names} {verb} the highest validation {WORDS[metric]}, {top:.3f}, but {reason}."
    # By parameters alone: the seconds of single trainings vary too much.
    first = min(best, key=lambda group: group.parameters)
    return Recommendation(" ".join([text, *excluded]), best=first)


def _apply_rule(
    evidence: Evidence, metric: str, margin: float, excluded: Sequence[str]
) -> Recommendation:
    groups = evidence.configurations
    costs = [Cost(group.seconds, group.parameters) for group in groups]
    decision = decide(evidence.scores, costs, margin)
    chosen, best = groups[decision.chosen], groups[decision.best]
    more = overrides_to_decide(evidence, decision, margin)
    sentences = [
        _name_choice(evidence, decision, metric),
        *_give_reason(evidence, decision, margin),
        *_describe_difference(evidence, decision),
        *describe_optimism(evidence, chosen, is_best=chosen is best),
        *describe_open_questions(evidence, decision, margin, more),
        *excluded,
    ]
    return Recommendation(" ".join(sentences), chosen, best, decision, more)


def _name_choice(evidence: Evidence, decision: Decision, metric: str) -> str:
    """What to train, with its score; what it was measured on comes first if that is one split."""
    chosen = evidence.configurations[decision.chosen]
    verb = "train"
    if not decision.decided:
        kind = (
            "the cheapest shown to be good enough" if decision.chosen != decision.best else "best"
        )
        verb = f"not decided; {kind} so far is"
    images = "" if evidence.images is None else f" ({evidence.images:,} images"
    if evidence.groups is not None:
        images += f" of {evidence.groups} groups"
    images += ")" if images else ""
    score = f"{verb} {chosen}, with a validation {_describe_score(chosen, metric)}"
    if evidence.divisions == 1:
        return f"By a single validation split{images}: {score}."
    return f"{score[0].upper()}{score[1:]}, over {evidence.divisions} validation splits{images}."


def _give_reason(evidence: Evidence, decision: Decision, margin: float) -> list[str]:
    groups, means, worse = evidence.configurations, evidence.scores.means, decision.worse
    chosen, best = groups[decision.chosen], groups[decision.best]
    if worse is None:
        return [_explain_unknown_spread(evidence)]
    doubt = percent(worse[decision.chosen])
    if worse[decision.chosen] > EVIDENCE:
        doubt += f", above the limit of {percent(EVIDENCE)}"
    scale = f"more than {margin:g} worse than the best"
    if decision.chosen != decision.best:
        return [
            f"It is the cheapest that is shown to be good enough: the probability that it is "
            f"{scale} is {doubt}. The highest score is {means[decision.best]:.3f} of {best}"
            f"{_compare_cost(best, chosen)}."
        ]
    rival = runner_up(evidence.scores, decision.chosen)
    shares = f"shares the highest score with {groups[rival]}"
    has = shares if means[rival] >= means[decision.best] - ROUNDING else "has the highest score"
    text = f"It {has}; the probability that it is {scale} is {doubt}."
    return [
        text,
        f"The runner-up is {groups[rival]} with {means[rival]:.3f}"
        f"{_compare_cost(groups[rival], chosen)}.",
    ]


def _explain_unknown_spread(evidence: Evidence) -> str:
    if evidence.scores.df >= 1:
        reason = "all repetitions score the same"
    elif evidence.groups is not None:
        reason = f"{evidence.groups} groups of validation images are too few to estimate it"
    else:
        reason = "too few images were validated to estimate it"
    return (
        f"It has the highest mean, but the spread is unknown ({reason}), so this is no evidence "
        "for other trainings or images."
    )


def _describe_difference(evidence: Evidence, decision: Decision) -> list[str]:
    """The difference between the chosen and the best, or the runner-up if it is the best."""
    if decision.difference is None:
        return []
    interval = decision.difference.interval
    if interval.low is None or interval.high is None:
        return []
    groups, rival = evidence.configurations, decision.best
    if rival == decision.chosen:
        rival = runner_up(evidence.scores, decision.chosen)
    about = "repeated training" if evidence.images is None else "other images and trainings"
    return [
        f"{groups[decision.chosen].label} minus {groups[rival].label} is "
        f"{signed(interval.mean)} (95 % interval {signed(interval.low)} to "
        f"{signed(interval.high)}, {about})."
    ]


def _describe_score(configuration: Configuration, metric: str) -> str:
    val = configuration.val
    assert val is not None, "it has a finished job"
    errors = f" ({val.errors})" if val.errors else " (one training)" if val.trainings == 1 else ""
    return f"{WORDS[metric]} of {val.mean:.3f}{errors}"


def _compare_cost(one: Configuration, other: Configuration) -> str:
    """How long `one` takes relative to `other`; empty if unknown."""
    if not one.seconds or not other.seconds:
        return ""
    ratio = one.seconds / other.seconds
    seconds = f"({one.seconds:.3g} s and {other.seconds:.3g} s per job)"
    if 1 / (1 + COST_TOLERANCE) <= ratio <= 1 + COST_TOLERANCE:
        return f", which takes about as long {seconds}"
    return f", which takes {ratio:.2g} times as long {seconds}"


def _join(configurations: Sequence[Configuration]) -> str:
    texts = [*map(str, configurations[:FEW])]
    if more := len(configurations) - len(texts):
        texts.append(f"and {more} other{'s' if more > 1 else ''}")
    return "; ".join(texts)
