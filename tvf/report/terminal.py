"""A sweep in the terminal: the table of its jobs, its result, and what to do next."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from tvf.config import explain_error, method_of
from tvf.files import LAST_CHECKPOINT
from tvf.metrics import METRICS
from tvf.records import (
    DROPPED,
    NOT_STARTED,
    TRIAL,
    Row,
    confirmed_sweep,
    count_trials_left,
    is_halving,
    is_stopped_by_race,
    is_tracked,
    job_holder,
    read_status,
    read_sweep,
    summary_mode,
    sync_command,
    varied_overrides,
)
from tvf.report.commands import confirm_command
from tvf.report.comparison import Comparison
from tvf.report.comparison import compare as compare_jobs
from tvf.report.configuration import name_trainings, training_of
from tvf.report.formats import render_report, write_files
from tvf.report.model_card import jobs_of_choice, write_cards
from tvf.report.notes import UNFINISHED
from tvf.report.sentences import summarise
from tvf.report.wandb_summary import log_summary

LOG_FILE_WIDTH = 200  # of tables in pipes and files, where lines need no wrapping


def print_result(
    folder: Path, jobs: frozenset[str], track: bool = False, compare: bool = True
) -> bool:
    """Print the result of the sweep in `folder`, write its report, and say what to do next.

    `jobs` are the names of the job folders that should exist. With `track`, the comparison is also
    logged as a separate run; without `compare` there is none. Returns whether any of `jobs` is
    neither done, paused nor pruned.
    """
    rows = read_sweep(folder)
    started = [row for row in rows if row["state"] not in NOT_STARTED]
    if started:
        _console().print(jobs_table(started))
    compare = compare and bool(started)
    if compare and (confirmed := confirmed_sweep(folder)):  # whose report quotes the confirmation
        tracked = track and any(row["wandb_run_id"] for row in started)
        _compare(confirmed, read_sweep(confirmed), tracked, ())
        _print_sync_commands(confirmed, [])
    elif compare:
        waiting = {row["folder"] for row in rows if row["state"] == "waiting"}
        listed = [state for state in UNFINISHED if state != "waiting" or waiting <= jobs]
        _compare(folder, rows, track, listed)
    _print_sync_commands(folder, started)
    paused = [row for row in started if row["state"] == "paused"]
    pruned = sum(row["state"] == "pruned" for row in started)
    stopped = {row["folder"] for row in rows if is_stopped_by_race(row)}
    unfinished = [
        row
        for row in started
        if row["state"] not in ("done", "paused", "pruned") and row["folder"] not in stopped
    ]
    for row in unfinished:
        print(_describe_failure(folder, row))
    if paused:
        print(f"paused: {len(paused)} of {len(rows)} jobs")
    if pruned:
        print(f"pruned by the search: {pruned} of {len(rows)} jobs")
    if stopped:
        print(f"stopped by the race: {len(stopped)} of {len(rows)} jobs")
    missing = jobs - stopped - {row["folder"] for row in started}
    if missing:
        print(f"never started: {', '.join(sorted(missing))}")
    left = [row for row in unfinished if row[TRIAL] != "failed"]  # a search is told only once
    halted = is_halving(folder) and any(not row[DROPPED] for row in paused)
    if missing or left or halted or count_trials_left(folder):
        print(f"to finish the sweep: tvf resume {shlex.quote(str(folder))}")
    return bool(missing or any(row["folder"] in jobs for row in unfinished))


def print_status(folder: Path) -> None:
    """Print the current table of the sweep in `folder`, including jobs that are waiting.

    Below it, where the running ones run.
    """
    rows = read_sweep(folder)
    _console().print(jobs_table(rows))
    running = [row for row in rows if row["state"] == "running"]
    holders = {row["name"]: job_holder(folder / row["folder"]) for row in running}
    if where := [f"{name} ({holder})" for name, holder in holders.items() if holder]:
        print(f"running: {', '.join(where)}")


def watch_status(folder: Path) -> Live:
    """Show the same table in a terminal, updated until the caller stops it."""
    live = Live(get_renderable=lambda: status_table(folder), refresh_per_second=0.5, transient=True)
    live.start()
    return live


def status_table(folder: Path) -> Table:
    """The table of all jobs of a sweep, from their files, including jobs that have not started."""
    return jobs_table(read_sweep(folder))


def jobs_table(rows: Sequence[Row]) -> Table:
    """One row per job: what it trains, its scores, and its cost."""
    # One that is about to begin has no config yet.
    trainings = [training_of(row) for row in rows if row.get("config")]
    names = name_trainings(trainings) if len(set(trainings)) > 1 else {}
    metrics = {"accuracy", *(row["metric"] for row in rows)}
    scores = [
        f"{split}_{key}"
        for metric, key in METRICS.items()
        if metric in metrics
        for split in ("val", "test")
    ]
    unfinished = any(row["state"] != "done" for row in rows)
    varied = varied_overrides(rows)
    methods = [method_of((row.get("config") or {}).get("model") or {}) for row in rows]
    told = any(method.label for method in methods)  # else the fraction says it all
    table = Table()
    table.add_column("fraction", justify="right")
    if told:
        table.add_column("model")
    if names:
        divided = len({training.division for training in trainings}) > 1
        table.add_column("training" if divided else "seed", justify="right")
    for heading in ("layer groups", "trainable", *scores, "seconds"):
        table.add_column(heading, justify="right")
    tracked = any(map(is_tracked, rows))
    for heading in ("state", "W&B name") if tracked else ("state",):
        table.add_column(heading, overflow="fold")
    if unfinished:
        table.add_column("epoch", justify="right")
        table.add_column("left", justify="right")
    if any(varied):
        table.add_column("overrides", overflow="fold")
    for row, method, overrides in zip(rows, methods, varied, strict=True):
        cells = [_number(row["pct_unfreeze"], "g")]
        if told:
            cells.append(method.choice if row.get("config") else "")
        if names:
            cells.append(names.get(training_of(row), ""))
        groups = row["unfrozen_groups"]
        cells.append("" if groups is None else str(len(groups)))
        cells.append(_number(row["trainable_params"], ",d"))
        cells += [_number(_score(row, key), ".3f") for key in scores]
        cells += [_number(row["train_seconds"], ".1f"), row["state"]]
        if tracked:
            cells.append(escape(row["name"]))
        if unfinished:
            cells += [row["epoch"] or "", _duration(row["left"])]
        if any(varied):
            cells.append(escape(" ".join(overrides)))
        table.add_row(*cells)
    return table


def result_location(folder: Path, summary: dict[str, Any]) -> str:
    """Where the results of a single job are."""
    lines = [f"results: {folder}"]
    if command := sync_command([shlex.quote(str(folder))], summary["wandb_mode"]):
        lines.append(f"W&B: {summary['wandb_mode']}; to upload: {command}")
    elif summary["wandb_url"]:
        lines.append(f"W&B: {summary['wandb_url']}")
    return "\n".join(lines)


def resume_hint(folder: Path) -> str:
    """How to resume a single job that stopped before it was done."""
    path = shlex.quote(str(folder))
    lines = [f"log: {folder / 'job.log'}"]
    if (folder / LAST_CHECKPOINT).exists():
        lines.append(f"to resume from its checkpoint, repeat the command with hydra.run.dir={path}")
    if command := sync_command([path], read_status(folder).get("wandb_mode")):
        lines.append(f"to upload the rest to W&B: {command}")
    return "\n".join(lines)


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else LOG_FILE_WIDTH)


def _compare(folder: Path, rows: Sequence[Row], track: bool, listed: Sequence[str]) -> None:
    comparisons = _print_recommendations(folder, rows, listed)
    _write_reports(folder, rows, comparisons)
    _write_cards(folder, comparisons or ())
    if track:
        _log_summary(folder)


def _print_recommendations(
    folder: Path, rows: Sequence[Row], listed: Sequence[str]
) -> list[Comparison] | None:
    """Print what the comparison says, each thing once, and return it; None if it fails.

    Jobs in the states `listed` are not counted: they are named below.
    """
    try:
        comparisons = compare_jobs(rows)
        for line in summarise(comparisons, listed):
            print(line)
        if command := confirm_command(folder, comparisons):
            print(f"to check the choice on fresh divisions and seeds: {command}")
        return comparisons
    except Exception as error:  # the jobs are done even if a file is damaged
        print(_report_failure(folder, error))
        return None


def _write_reports(
    folder: Path, rows: Sequence[Row], comparisons: Sequence[Comparison] | None
) -> None:
    """Write results.csv and report.html, and print where they are."""
    for kind, label in (("csv", "results"), ("html", "report")):
        try:
            path, *_ = write_files(
                render_report([folder], rows, kind, comparisons=comparisons), folder
            )
            print(f"{label}: {path}")
        except OSError as error:
            print(f"{error.filename or folder} cannot be written: {error.strerror}")
        except Exception as error:
            print(_report_failure(folder, error))


def _write_cards(folder: Path, comparisons: Sequence[Comparison]) -> None:
    """Write the model card of the best job of what is recommended, and print where it is."""
    try:
        for path in write_cards(folder, comparisons):
            print(f"model card: {path}")
        if len(comparisons) == 1 and jobs_of_choice(comparisons[0]):
            print(f"to classify images: tvf predict {shlex.quote(str(folder))} IMAGES")
    except OSError as error:
        print(f"{error.filename or folder} cannot be written: {error.strerror}")
    except Exception as error:
        print(f"no model card ({type(error).__name__}: {error})")


def _report_failure(folder: Path, error: Exception) -> str:
    command = f"tvf report {shlex.quote(str(folder))}"
    return f"no report ({type(error).__name__}: {error}); for details: {command}"


def _log_summary(folder: Path) -> None:
    try:
        log_summary(folder)
    except KeyboardInterrupt:
        print("interrupted: the sweep's summary was not logged.")
    except Exception as error:  # a rejected login, a full disk: the jobs are done regardless
        print(f"the sweep's summary was not logged: {explain_error(error)}")


def _print_sync_commands(folder: Path, rows: Sequence[Row]) -> None:
    """Print the commands that upload runs still missing in W&B."""
    summary = summary_mode(folder)
    for mode in ("offline", "unsynced"):
        local = [row for row in rows if row["wandb_mode"] == mode]
        if local and len(local) == len(rows):
            paths = [f"{shlex.quote(str(folder))}/*"]
        else:
            paths = [shlex.quote(f"{folder}/{row['folder']}") for row in local]
        if summary == mode:
            paths.append(shlex.quote(str(folder)))
        if paths:
            print(f"W&B: {mode}; to upload: {sync_command(paths, mode)}")


def _describe_failure(folder: Path, row: Row) -> str:
    """A job that is not done: its state, the first and last line of its error, and its log."""
    lines = str(row["error"] or "").strip().splitlines()
    reason = " … ".join(lines if len(lines) < 2 else (lines[0], lines[-1]))
    cause = f": {reason}" if reason not in ("", row["state"]) else ""
    return f"{row['name']} {row['state']}{cause} ({folder / row['folder'] / 'job.log'})"


def _score(row: Row, key: str) -> float | None:
    """A job's score, or its latest epoch's if the job has none yet."""
    if row[key] is None and row["history"]:
        return row["history"][-1].get(key)
    return row[key]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _duration(seconds: float | None) -> str:
    return "" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
