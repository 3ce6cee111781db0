"""The sweep's own run at its tracker: what compares the jobs, beside their runs and in their group."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from tvf.config import build
from tvf.files import finite
from tvf.records import SUMMARY, Run, note_summary, read_sweep, summary_run_id
from tvf.report import tables
from tvf.report.comparison import Comparison, compare


def log_summary(folder: Path) -> None:
    """Log tables, statistics and the figure as one run, if a job is done and has a run itself.

    A sweep that goes on logs to the same run again; of two processes that end one sweep the later knows all.
    """
    with FileLock(folder / ".summary.lock"):
        rows = read_sweep(folder)
        trackers = [
            row["config"]["tracker"]
            for row in rows
            if row["wandb_run_id"] and row["config"].get("tracker")
        ]
        if not trackers or not any(row["state"] == "done" for row in rows):
            return
        comparisons = compare(rows)
        config = {"recommendations": [each.choice.text for each in comparisons], "jobs": len(rows)}
        tracker = build(trackers[0], "tracker")
        with tracker.start(
            folder, SUMMARY, folder.name, config, summary_run_id(folder), job_type=SUMMARY
        ) as run:
            if run.id:
                _log(run, comparisons)
        note_summary(folder, run.mode)


def _log(run: Run, comparisons: Sequence[Comparison]) -> None:
    from tvf.report.figure import draw_figure

    with tempfile.TemporaryDirectory() as temporary:
        figure = Path(temporary) / "comparison.png"
        figure.write_bytes(draw_figure(comparisons, "png"))
        run.log_media(
            {
                "configurations": _table(comparisons, tables.overview),
                "differences": _table(comparisons, tables.differences),
                "jobs": _table(comparisons, _jobs),
            },
            {"comparison": figure},
        )
    told = {"recommendation": "\n".join(each.choice.text for each in comparisons)}
    if len(comparisons) == 1 and (chosen := comparisons[0].choice.chosen):
        told |= {"pct_unfreeze": chosen.fraction, "configuration": chosen.label}
        told |= {"score": chosen.val.mean} if chosen.val else {}
    run.set_summary(told)


def _table(comparisons: Sequence[Comparison], rows: Any) -> list[dict[str, Any]]:
    return [{"data": each.title, **finite(row)} for each in comparisons for row in rows(each)]


def _jobs(comparison: Comparison) -> list[dict[str, Any]]:
    keys = [column.key for column in tables.JOBS]
    return [{key: row[key] for key in (*keys, "wandb_url")} for row in tables.jobs(comparison)]
