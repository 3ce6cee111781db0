"""Sentences about configurations that a search found (hydra/sweeper=optuna), for every format."""

from collections.abc import Sequence

from tvf.records import TRIALS
from tvf.report.configuration import Configuration


def count_trials(configurations: Sequence[Configuration]) -> int:
    """The trials of the searches that found these configurations; 0 if none was searched."""
    jobs = [job for group in configurations for job in group.jobs]
    return sum({job["sweep"]: job[TRIALS] for job in jobs if job[TRIALS]}.values())


def describe_search(configurations: Sequence[Configuration]) -> list[str]:
    """How the search flatters the choice; empty without a search."""
    trials = count_trials(configurations)
    if not trials:
        return []
    return [
        f"The configurations were found by a search of {_count(trials)} on the same validation "
        "images, so the highest scores are optimistic."
    ]


def describe_search_errors(configurations: Sequence[Configuration]) -> list[str]:
    """What the intervals leave out; empty without a search."""
    trials = count_trials(configurations)
    if not trials:
        return []
    return [
        "Intervals and p-values take the configurations as given, but they were searched: "
        f"{_count(trials)} on the same validation images."
    ]


def about_pruning(configurations: Sequence[Configuration]) -> str | None:
    """How many configurations the search pruned, and what that means; None if it pruned none."""
    pruned = [group for group in configurations if group.pruned]
    if not pruned:
        return None
    return (
        f"The search pruned {len(pruned)} of {len(configurations)} configurations "
        f"{dropped_after(pruned)}. A slow starter might have won."
    )


def dropped_after(configurations: Sequence[Configuration]) -> str:
    """When and by what configurations were dropped: "after 2 to 6 of 30 epochs, by ..."."""
    jobs = [job for group in configurations for job in group.jobs]
    rungs = sorted({job["dropped"] for job in jobs if job["dropped"]})
    after = f"{rungs[0]}{f' to {rungs[-1]}' if len(rungs) > 1 else ''}"
    epochs = max(job["epochs"] or 0 for job in jobs)
    return f"after {after} of {epochs} epochs, by their validation scores at that point"


def _count(trials: int) -> str:
    return "1 trial" if trials == 1 else f"{trials:,} trials"
