"""The sentence about how much a score flatters because the same images made choices by it."""

from collections.abc import Sequence

from tvf.report.configuration import Configuration
from tvf.report.evidence import Evidence

SMALL = 0.0005  # rounds to 0.000


def describe_optimism(evidence: Evidence, chosen: Configuration, is_best: bool) -> list[str]:
    """How optimistic the score of the chosen configuration is, and which choices make it so.

    Choosing between configurations flatters the best one only. Empty if nothing is known.
    """
    if not is_best or evidence.optimism is None:
        return describe_epoch_optimism(chosen)
    text = (
        "It was chosen by these images, so its score is too high on average: by "
        f"{_about(evidence.optimism)} for the choice between configurations"
    )
    if evidence.epoch_optimism is not None:
        epochs = _about(evidence.epoch_optimism).removeprefix("about ")
        text += f" and {epochs} for the choice of each job's epoch"
    elif _choose_epochs(evidence.configurations):
        text += "; what the choice of each job's epoch adds is unknown"
    return [f"{text}."]


def describe_epoch_optimism(configuration: Configuration) -> list[str]:
    """How much the choice of each job's epoch flatters one configuration; empty if unknown."""
    if configuration.epoch_optimism is None:
        return []
    return [
        "Each job's epoch was chosen by these images, which makes its score too high on average: "
        f"by {_about(configuration.epoch_optimism)}."
    ]


def _choose_epochs(configurations: Sequence[Configuration]) -> bool:
    """Whether any job had more than one epoch to choose from."""
    return any(len(job["history"]) > 1 for group in configurations for job in group.done)


def _about(optimism: float) -> str:
    return "less than 0.001" if optimism < SMALL else f"about {optimism:.3f}"
