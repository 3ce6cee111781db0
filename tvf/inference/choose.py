"""Which jobs of a sweep are the model: those of the configuration that its report recommends."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tvf.errors import InputError
from tvf.files import printable
from tvf.records import read_sweep

if TYPE_CHECKING:
    from tvf.report import Comparison


@dataclass(frozen=True)
class Chosen:
    """The folders of a configuration's jobs, the best by validation first, and its name.

    `recommended` is false if the sweep has not decided; then it is the best so far.
    """

    folders: list[Path]
    name: str
    recommended: bool


def choose_jobs(sweep: Path) -> Chosen:
    """The finished jobs of the recommended configuration, or else of the best so far.

    Raises InputError if no job is done, or if the jobs are not comparable.
    """
    from tvf.report import (
        compare,
        jobs_of_choice,
    )  # with the terminal's libraries, which a job does not need

    comparisons = [found for found in compare(read_sweep(sweep)) if _finished(found)]
    if not comparisons:
        raise InputError(f"{printable(sweep)}: none of its jobs is done yet.")
    if len(comparisons) > 1:
        titles = "; ".join(comparison.title for comparison in comparisons)
        best = [printable(jobs_of_choice(each)[0]["path"]) for each in comparisons]
        raise InputError(
            f"{printable(sweep)}: its jobs are not comparable ({titles}), so none is the best. "
            f"Name the folder of a job; the best of each kind: {', '.join(best)}."
        )
    (comparison,) = comparisons
    choice = comparison.choice
    chosen = choice.chosen or choice.best
    decided = choice.decided is True
    return Chosen([Path(job["path"]) for job in jobs_of_choice(comparison)], str(chosen), decided)


def _finished(comparison: "Comparison") -> bool:
    return any(each.val for each in comparison.candidates)
