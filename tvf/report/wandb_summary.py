"""The sweep's own tracker run, in the group of its jobs' runs: the comparison of the jobs."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tvf.config import build, modern_node
from tvf.files import finite
from tvf.lease import Lease
from tvf.records import SUMMARY, Run, note_summary, read_sweep, summary_run_id, tracker_group
from tvf.report import tables
from tvf.report.comparison import Comparison, compare


def log_summary(folder: Path) -> None:
    """Log tables, statistics and the figure as one run, if any finished job has a run.

    A resumed sweep logs to the same run again. If two processes finish the same sweep, a lease lets
    the later one, which sees all jobs, log last.
    """
    with Lease(folder / ".summary.lease"):
        rows = read_sweep(folder)
        trackers = [
            row["config"]["tracker"]
            for row in rows
            if row["wandb_run_id"] and row["config"].get("tracker")
        ]
        if not trackers or not any(row["state"] == "done" for row in rows):
            return
        comparisons = compare(rows)
        recommendations = [_conclusion(comparison) for comparison in comparisons]
        tracker = build(modern_node(trackers[0]), "tracker")
        with tracker.start(
            folder,
            SUMMARY,
            tracker_group(folder),
            {"recommendations": recommendations, "jobs": len(rows)},
            summary_run_id(folder),
            job_type=SUMMARY,
        ) as run:
            if run.id:
                _log_comparisons(run, comparisons)
        note_summary(folder, run.mode)


def _log_comparisons(run: Run, comparisons: Sequence[Comparison]) -> None:
    from tvf.report.pictures import draw_figure  # its libraries are slow to import

    with tempfile.TemporaryDirectory() as temporary:
        figure = Path(temporary) / "comparison.png"
        figure.write_bytes(draw_figure(comparisons, "png"))
        run.log_media(
            {
                "configurations": _table(comparisons, tables.overview),
                "differences": _table(comparisons, tables.differences),
                "jobs": _table(comparisons, _job_rows),
            },
            {"comparison": figure},
        )
    run.set_summary(_summary(comparisons))


def _summary(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """The recommendation and, if it is the only one, the chosen configuration."""
    texts = [_conclusion(comparison) for comparison in comparisons]
    values: dict[str, Any] = {"recommendation": "\n".join(texts)}
    if len(comparisons) == 1 and (chosen := comparisons[0].choice.chosen):
        values |= {"pct_unfreeze": chosen.fraction, "configuration": chosen.label}
        if chosen.val:
            values["score"] = chosen.val.mean
    return values


def _conclusion(comparison: Comparison) -> str:
    found = comparison.confirmation
    return f"{comparison.choice.text}\n{found.text}" if found else comparison.choice.text


def _table(
    comparisons: Sequence[Comparison], rows_of: Callable[[Comparison], list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    return [
        {"data": comparison.title, **finite(row)}
        for comparison in comparisons
        for row in rows_of(comparison)
    ]


def _job_rows(comparison: Comparison) -> list[dict[str, Any]]:
    keys = [*(column.key for column in tables.JOBS), "wandb_url"]
    return [{key: row[key] for key in keys} for row in tables.jobs(comparison)]
