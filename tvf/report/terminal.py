"""A sweep in the terminal: the table of its jobs, while they run and at their end, and what to do next."""

import shlex
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from tvf.config import explain_error
from tvf.files import LAST_CHECKPOINT
from tvf.metrics import METRICS
from tvf.records import (
    DROPPED,
    Row,
    is_halving,
    read_status,
    read_sweep,
    summary_mode,
    sync_command,
    varied_overrides,
)


def print_result(folder: Path, jobs: frozenset[str], track: bool = False) -> bool:
    """Print the table of the sweep in `folder`, write what compares its jobs; whether any of its jobs is not done.

    `jobs` are the names of the job folders that should be there; one that is paused is as it should be. With `track`
    the comparison becomes a run of its own.
    """
    rows = read_sweep(folder)
    begun = [row for row in rows if row["state"] != "waiting"]
    # Where nobody looks (a pipe, a log file) a line may be as long as it needs.
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(jobs_table(begun))
    print(*_compared(folder, rows), sep="\n")
    if track:
        _track(folder)
    tracked = summary_mode(folder)
    for mode in ("offline", "unsynced"):
        kept = [
            shlex.quote(f"{folder}/{row['folder']}") for row in begun if row["wandb_mode"] == mode
        ]
        every = [f"{shlex.quote(str(folder))}/*"] if kept and len(kept) == len(begun) else kept
        if kept or tracked == mode:
            every += [shlex.quote(str(folder))] if tracked == mode else []
            print(f"W&B: {mode}; to send it: {sync_command(every, mode)}")
    paused = [row for row in begun if row["state"] == "paused"]
    unfinished = [row for row in begun if row["state"] not in ("done", "paused")]
    for row in unfinished:
        log = folder / row["folder"] / "job.log"
        lines = str(row["error"] or "").strip().splitlines()
        reason = " … ".join(lines if len(lines) < 2 else (lines[0], lines[-1]))
        print(
            f"{row['name']} {row['state']}{f': {reason}' if reason not in ('', row['state']) else ''} ({log})"
        )
    if paused:
        print(f"paused: {len(paused)} of {len(rows)} jobs")
    missing = jobs - {row["folder"] for row in begun}
    if missing:
        print(f"never started: {', '.join(sorted(missing))}")
    if missing or unfinished or (is_halving(folder) and any(not row[DROPPED] for row in paused)):
        print(f"to go on with what is not done: tvf resume {shlex.quote(str(folder))}")
    return bool(missing or any(row["folder"] in jobs for row in unfinished))


def _compared(folder: Path, rows: list[Row]) -> list[str]:
    """Write results.csv and report.html; what they say in short, and where they are."""
    from tvf.report.comparison import about_halving, compare
    from tvf.report.formats import render_report, write_files

    lines = []
    for kind in ("words", "csv", "html"):
        try:
            if kind == "words":
                for each in compare(rows):
                    lines.append(f"{each.title}: {each.choice.text}".removeprefix(": "))
                    lines += filter(None, [about_halving(each.configurations)])
                continue
            first, *_ = write_files(render_report([folder], rows, kind), folder)
            lines.append(f"{'results' if kind == 'csv' else 'report'}: {first}")
        except OSError as error:
            lines.append(f"{error.filename or folder} cannot be written: {error.strerror}")
        except Exception as error:  # the jobs are done, whatever somebody has put into their files
            lines.append(
                f"no report ({type(error).__name__}: {error}): tvf report {shlex.quote(str(folder))} tells more"
            )
    return lines


def _track(folder: Path) -> None:
    from tvf.report.wandb_summary import log_summary

    try:
        log_summary(folder)
    except KeyboardInterrupt:
        print("interrupted: the sweep's summary is not logged.")
    except (
        Exception
    ) as error:  # a login that is refused, a disk that is full: the jobs are done all the same
        print(f"the sweep's summary is not logged: {explain_error(error)}")


def print_status(folder: Path) -> None:
    """Print the table of the sweep in `folder` as it stands, waiting jobs included."""
    Console(width=None if sys.stdout.isatty() else 200).print(status_table(folder))


def watch_status(folder: Path) -> Live:
    """The same table in a terminal, kept up to date until it is stopped."""
    live = Live(get_renderable=lambda: status_table(folder), refresh_per_second=0.5, transient=True)
    live.start()
    return live


def status_table(folder: Path) -> Table:
    """The table of all jobs that have begun, by what their files say, and of those that have not."""
    return jobs_table(read_sweep(folder))


def jobs_table(rows: list[Row]) -> Table:
    """The rows for a person: what trained, how well it did, what it took."""
    shown = Table()
    seeds = len({row["seed"] for row in rows}) > 1
    for heading in ("fraction", *(["seed"] if seeds else []), "groups", "trainable"):
        shown.add_column(heading, justify="right")
    metrics = [
        key
        for metric, key in METRICS.items()
        if metric == "accuracy" or metric in {r["metric"] for r in rows}
    ]
    scores = [f"{part}_{key}" for key in metrics for part in ("val", "test")]
    for heading in (*scores, "seconds"):
        shown.add_column(heading, justify="right")
    for heading in ("state", "W&B name"):
        shown.add_column(heading, overflow="fold")
    unfinished = any(row["state"] != "done" for row in rows)
    for heading in ("epoch", "left") if unfinished else ():
        shown.add_column(heading, justify="right")
    varied = varied_overrides(rows)
    if any(varied):
        shown.add_column("overrides", overflow="fold")
    for row, others in zip(rows, varied, strict=True):
        groups = row["unfrozen_groups"]
        shown.add_row(
            _number(row["pct_unfreeze"], "g"),
            *([_number(row["seed"], "d")] if seeds else []),
            "" if groups is None else str(len(groups)),
            _number(row["trainable_params"], ",d"),
            *(_number(_score(row, key), ".3f") for key in scores),
            _number(row["train_seconds"], ".1f"),
            row["state"],
            escape(row["name"]),
            *((row["epoch"] or "", _duration(row["left"])) if unfinished else ()),
            *([escape(" ".join(others))] if any(varied) else []),
        )
    return shown


def result_location(folder: Path, summary: dict[str, Any]) -> str:
    """Where a single job's results lie."""
    if command := sync_command([shlex.quote(str(folder))], summary["wandb_mode"]):
        return f"results: {folder}\nW&B: {summary['wandb_mode']}; to send it: {command}"
    return f"results: {folder}" + (f"\nW&B: {summary['wandb_url']}" if summary["wandb_url"] else "")


def resume_hint(folder: Path) -> str:
    """What to do about a single job that has ended before it was done."""
    lines = [f"log: {folder / 'job.log'}"]
    if (folder / LAST_CHECKPOINT).exists():
        lines.append(
            f"to go on from its checkpoint, give its command again with hydra.run.dir={shlex.quote(str(folder))}"
        )
    if command := sync_command([shlex.quote(str(folder))], read_status(folder).get("wandb_mode")):
        lines.append(f"what W&B has not got: {command}")
    return "\n".join(lines)


def _score(row: Row, key: str) -> float | None:
    """A job's score; of one that still trains the last epoch's."""
    return row["history"][-1].get(key) if row[key] is None and row["history"] else row[key]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _duration(seconds: float | None) -> str:
    return "" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
