"""What a comparison leaves open, and what would decide it, in sentences."""

from collections.abc import Sequence

from tvf.report.decide import Decision, are_same, images_to_decide, rounds_to_decide
from tvf.report.evidence import Evidence
from tvf.report.words import enumerate_words, percent

FOLDS = "data.folds=5 data.fold=0,1,2,3,4"
MANY = 20  # times as many images, or further rounds: beyond, a number would only seem exact
FEW = 4  # configurations are named one by one


def describe_open_questions(
    evidence: Evidence, decision: Decision, margin: float, more: str | None
) -> list[str]:
    """What is left open, and what would decide it."""
    if decision.decided or decision.worse is None:
        return []
    sentences = _name_open(evidence, decision, decision.worse, margin)
    if more:
        sentences.append(f"To decide, add {more} to the sweep.")
    elif decision.open:
        factors = [
            images_to_decide(evidence.scores, position, decision.chosen, margin)
            for position in decision.open
        ]
        known = [factor for factor in factors if factor is not None and factor < MANY]
        many = f", about {max(known):.2g} times as many" if len(known) == len(factors) else ""
        sentences.append(
            f"More trainings on these images would hardly decide it. That takes more images{many}."
        )
    return sentences


def overrides_to_decide(evidence: Evidence, decision: Decision, margin: float) -> str | None:
    """The overrides that would likely decide what is open; None if nothing would, or nothing is."""
    if decision.decided or decision.worse is None or not decision.open:
        return None
    job = evidence.configurations[0].done[0]
    if evidence.divisions == 1:
        return None if job["config"]["data"].get("validate_on") == "test" else FOLDS
    rounds = [
        rounds_to_decide(evidence.scores, position, decision.chosen, margin)
        for position in decision.open
    ]
    known = [number for number in rounds if number is not None and number <= MANY]
    if len(known) < len(rounds):
        return FOLDS if evidence.scores.unit == "split" else None
    further = max(known)
    name = "split_seed" if evidence.scores.unit == "split" else "seed"
    trainings = [training for group in evidence.configurations for training in group.scores]
    used = sorted({value for each in trainings if isinstance(value := getattr(each, name), int)})
    first = max(used, default=0) + 1
    values = ",".join(map(str, [*used, *range(first, first + further)]))
    return f"{'data.' if name == 'split_seed' else ''}{name}={values}"


def _name_open(
    evidence: Evidence, decision: Decision, worse: Sequence[float], margin: float
) -> list[str]:
    """Which configurations may do as well, likely ones first; each set of trainings once."""
    scores = evidence.scores
    distinct: list[int] = []
    for position in sorted(decision.open, key=lambda position: worse[position]):
        if not any(are_same(scores, position, other) for other in (decision.chosen, *distinct)):
            distinct.append(position)
    groups = evidence.configurations
    named = [(groups[position], percent(1 - worse[position])) for position in distinct]
    if len(named) == 1:
        ((group, chance),) = named
        return [
            f"{group} may do as well: the probability that it is at most {margin:g} worse than "
            f"the best is {chance}."
        ]
    if not named:
        return []
    texts = [f"{group} ({chance})" for group, chance in named[:FEW]]
    if more := len(named) - len(texts):
        texts.append(f"{more} other{'s' if more > 1 else ''}")
    return [
        f"{enumerate_words(texts)} may do as well; in brackets the probability of being at most "
        f"{margin:g} worse than the best."
    ]
