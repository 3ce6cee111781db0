"""Writes what `bench/run.py` has measured as tables in Markdown."""

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np
import torch
from reference import split
from run_rows import COMMON, FRACTIONS, REFERENCE_EPOCHS, ROOT, Measured, Row

from tvf.data import FlipsAndCrops, ViewRows
from tvf.models import efficientnet_lite0


def read_epochs(folder: Path) -> list[dict[str, Any]]:
    """The epochs of a job, from its metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def project_seconds(runs: list[dict[str, Any]], epochs: int) -> float:
    """Seconds of a reference loop for this number of epochs."""
    once = sum(
        median(run[key] for run in runs)
        for key in ("start_seconds", "test_seconds", "exit_seconds")
    )
    return once + epochs * median(seconds for run in runs for seconds in run["epoch_seconds"])


def reference_seconds(row: Row, style: str, measured: Measured) -> float:
    """Seconds of a reference loop for all jobs of a row, run one after another."""
    runs = {
        fraction: measured.references[style, fraction, row.augment, row.bf16]
        for fraction in row.jobs
    }
    return sum(
        count * project_seconds(runs[fraction], row.epochs) for fraction, count in row.jobs.items()
    )


def paired_seconds(row: Row, measured: Measured) -> float:
    """Seconds of the tuned loop for all jobs of a row, run two at a time."""
    runs = {
        fraction: measured.pairs["tuned", fraction, row.augment, row.bf16] for fraction in row.jobs
    }
    return sum(
        count * project_seconds(runs[fraction], row.epochs) / 2
        for fraction, count in row.jobs.items()
    )


def read_summaries(folder: Path, fraction: float) -> list[dict[str, Any]]:
    """The summaries of a sweep's jobs at this fraction, with their epochs as `history`."""
    summaries = []
    for path in sorted(folder.glob("*/summary.json")):
        summary = json.loads(path.read_text())
        if summary["pct_unfreeze"] == fraction:
            summaries.append(summary | {"history": read_epochs(path.parent)})
    return summaries


def score_lines(folder: Path, measured: Measured) -> list[str]:
    """Best validation accuracy of the first epochs: the sweep's seeds against one of each loop."""
    lines = [
        "| fraction | tvf, mean ± sd of 3 seeds | plain, 1 seed | tuned, 1 seed |",
        "|---|---|---|---|",
    ]
    for fraction in FRACTIONS:
        own = [
            max(epoch["val_acc"] for epoch in job["history"][:REFERENCE_EPOCHS])
            for job in read_summaries(folder, fraction)
        ]
        plain, tuned = (
            measured.references[style, fraction, "flips", False][0]["val_acc"]
            for style in ("plain", "tuned")
        )
        lines.append(
            f"| {fraction:g} | {mean(own):.3f} ± {stdev(own):.3f} | {plain:.3f} | {tuned:.3f} |"
        )
    return lines


def prefix_speed() -> float:
    """Images per second through EfficientNet-Lite0 without its head, in eval mode on all cores."""
    network: Any = efficientnet_lite0(2).module.eval().to(memory_format=torch.channels_last)
    images = torch.rand(32, 3, 128, 128).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        network.forward_features(images)
        times = []
        for _ in range(15):
            start = time.perf_counter()
            network.forward_features(images)
            times.append(time.perf_counter() - start)
    return len(images) / median(times)


def suffix_seconds(row: Row, work: Path) -> dict[float, tuple[float, float]]:
    """Seconds per image in training and in evaluation, by fraction.

    Each comes from a single job with one thread, whose prefix is entirely in the store.
    """
    seconds = {}
    for fraction in row.jobs:
        folder = work / f"alone-{fraction}"
        command = [
            sys.executable,
            str(ROOT / "train.py"),
            f"model.pct_unfreeze={fraction}",
            *COMMON,
            "threads=1",
            "epochs=1",
            "seed=1",
            f"hydra.run.dir={folder}",
        ]
        environment = os.environ | {"TVF_STORE": str(work / "sweep" / "store-0")}
        subprocess.run(command, check=True, capture_output=True, env=environment)
        summary = json.loads((folder / "summary.json").read_text())
        seconds[fraction] = (
            1 / read_epochs(folder)[0]["images_per_second"],
            summary["test_seconds"] / len(split()[2][2]),
        )
    return seconds


def bound_lines(row: Row, work: Path, seconds: float) -> list[str]:
    """The formula of docs/performance.md, with prefix and suffixes measured separately."""
    places = split()[2]
    train, val, test = map(len, places)
    workers, speed, suffix = os.cpu_count() or 1, prefix_speed(), suffix_seconds(row, work)
    rows = ViewRows(FlipsAndCrops(horizontal=0.5), train + val + test)
    shown = [rows.rows_of_view(view)[places[0]] for view in range(1, row.epochs + 1)]
    images = len(np.unique(np.concatenate([*shown, places[1], places[2]])))
    suffixes = 0.0
    for fraction, count in row.jobs.items():
        training, evaluating = suffix[fraction]
        suffixes += count * (row.epochs * (train * training + val * evaluating) + test * evaluating)
    least = images / speed + suffixes / workers
    rates = ", ".join(
        f"{fraction:g}: {1 / training:.0f}" for fraction, (training, _) in suffix.items()
    )
    return [
        f"{images:.0f} images through the prefix, at {speed:.0f} per second on all cores: "
        f"{images / speed:.0f} s. Suffixes, training (images per second on one core, by fraction: "
        f"{rates}), validation and test: {suffixes:.0f} s on one core.",
        f"So {workers} workers need at least {least:.0f} s. The command took {seconds:.0f} s: "
        f"the bound is {least / seconds:.0%} of that.",
    ]


def work_line(key: str, row: Row, measured: Measured) -> str:
    """A row of the main table: seconds, and the speed-ups over both loops."""
    tuned, own = reference_seconds(row, "tuned", measured), median(measured.tvf[key])
    plain = None if row.bf16 else reference_seconds(row, "plain", measured)
    aims = [f"≥ {aim:g}" for aim in row.aims] if row.aims else ["", ""]
    tuned_text, tuned_factor = f"{tuned:.0f}", f"{tuned / own:.1f}"
    if sum(row.jobs.values()) > 1:
        paired = paired_seconds(row, measured)
        tuned_text += f" ({paired:.0f})"
        tuned_factor += f" ({paired / own:.1f})"
    own_text = f"{own:.0f}"
    if row.rounds > 1:
        own_text += f" ({', '.join(f'{seconds:.0f}' for seconds in measured.tvf[key])})"
    if row.run_epochs:
        own_text += f", from {row.run_epochs} epochs"
    cells = [
        row.name,
        str(row.epochs),
        "" if plain is None else f"{plain:.0f}",
        tuned_text,
        own_text,
        "" if plain is None else f"{plain / own:.1f}",
        aims[0],
        tuned_factor,
        aims[1],
    ]
    return f"| {' | '.join(cells)} |"


def reference_lines(measured: Measured) -> list[str]:
    """The table of all reference runs."""
    lines = [
        "| loop | fraction | augment | start, s | epochs, s | test, s |",
        "|---|---|---|---|---|---|",
    ]
    listed = [(kind, "", runs) for kind, runs in measured.references.items()]
    listed += [(kind, ", two at once", runs) for kind, runs in measured.pairs.items()]
    for (style, fraction, augment, bf16), note, runs in listed:
        columns = [
            [run["start_seconds"] for run in runs],
            [seconds for run in runs for seconds in run["epoch_seconds"]],
            [run["test_seconds"] for run in runs],
        ]
        shown = " | ".join(", ".join(f"{seconds:.1f}" for seconds in column) for column in columns)
        loop = f"{style}{', bf16' if bf16 else ''}{note}"
        lines.append(f"| {loop} | {fraction:g} | {augment} | {shown} |")
    return lines


def render_results(rows: dict[str, Row], measured: Measured, work: Path) -> str:
    """The text of bench/results.md."""
    lines = [
        "# tvf against two reference loops",
        "",
        "Written by `bench/run.py`: ELPV at 128 pixels, EfficientNet-Lite0, batch 32, float32 "
        "unless a row says bf16; every epoch includes its validation, every job its test.",
        f"Machine: {processor_name()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}.",
        f"Reference loops: {REFERENCE_EPOCHS} epochs of each kind of job, projected (start + "
        "epochs × median epoch + test) and summed over the jobs; in brackets, two jobs of the "
        "tuned loop at a time, one thread each. tvf: whole commands with an empty store; the "
        "median where there are several.",
        "",
        "| work | epochs | plain, s | tuned, s | tvf, s (each) | over plain | aim | over tuned "
        "| aim |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [work_line(key, row, measured) for key, row in rows.items()]
    warm = [f"{rows[key].name} {median(seconds):.0f} s" for key, seconds in measured.warm.items()]
    if warm:
        lines += ["", f"With a warm store: {', '.join(warm)}."]
    if measured.ways:
        grid = median(measured.tvf["folds"])
        ways = [
            f"{way} {seconds:.0f} s ({seconds / grid:.0%})"
            for way, seconds in measured.ways.items()
        ]
        lines += ["", f"Instead of the grid of 5 folds: {', '.join(ways)}."]
    if "sweep" in rows:
        folder = work / "sweep" / "cold-0"
        lines += ["", "## Scores after two epochs (validation accuracy, the better epoch)", ""]
        lines += [*score_lines(folder, measured), "", "## The sweep and its bound", ""]
        lines += bound_lines(rows["sweep"], work, measured.tvf["sweep"][0])
    lines += ["", "## Reference runs", "", *reference_lines(measured)]
    return "\n".join(lines) + "\n"


def processor_name() -> str:
    """The processor's name, or its architecture if the name is unknown."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line for line in lines if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else platform.machine()
