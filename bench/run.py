"""Compares tvf with two reference loops and writes bench/results.md. `make bench` takes 40 minutes.

Each row of the table is a set of jobs. A reference loop shares nothing between jobs, so its time
for a set is the sum over its jobs. One job of each kind runs for two epochs; its time for more
epochs is projected as start + epochs × median epoch + test. (The tuned loop is also measured two at
a time, with one thread each, as someone with many jobs might run it.) tvf's time is that of the
whole command from the shell, with start-up and an empty store, unless the row says warm. Short rows
are measured three times, alternating with the loops, and the median is reported.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np
import torch
from reference import split

from tvf.data import FlipsAndCrops, ViewRows
from tvf.models import efficientnet_lite0

ROOT = Path(__file__).parent.parent
EPOCHS = 8
REFERENCE_EPOCHS = 2  # measured per reference loop; their median is used for every epoch
COMMON = ("data.image_size=128", "data.split_by=cell", "tracker=none")
FRACTIONS = (0.0, 0.25, 0.5, 1.0)
SEEDS, RATES = "seed=1,2,3", "optimizer.lr=3e-4,1e-3,3e-3"
GRID = ("-m", "model.pct_unfreeze=0,0.25,0.5,1.0", "data.folds=5", "data.fold=0,1,2,3,4")


@dataclass(frozen=True)
class Row:
    """A set of jobs: tvf's arguments, and the number of jobs per fraction for the reference loops.

    `aims` are the target speed-ups over the plain and the tuned loop. `run_epochs` is the number of
    epochs that tvf itself runs, if that is fewer; the rest is projected as for the loops.
    """

    name: str
    arguments: tuple[str, ...]
    jobs: dict[float, int]
    aims: tuple[float, float] | None
    augment: str = "flips"
    epochs: int = EPOCHS
    run_epochs: int | None = None
    rounds: int = 1
    bf16: bool = False


ROWS = {
    "head": Row(
        name="head only, one job, views = epochs",
        arguments=("model=transfer",),
        jobs={0.0: 1},
        aims=(3, 2),
        rounds=3,
    ),
    "none": Row(
        name="head only, one job, augment=none",
        arguments=("model=transfer", "augment=none"),
        jobs={0.0: 1},
        aims=(8, 5),
        augment="none",
        rounds=3,
    ),
    "nine": Row(
        name="head only, 9 jobs (3 seeds × 3 learning rates)",
        arguments=("-m", "model=transfer", SEEDS, RATES),
        jobs={0.0: 9},
        aims=(15, 9),
    ),
    "full": Row(
        name="pct_unfreeze 1.0, one job",
        arguments=("model.pct_unfreeze=1.0",),
        jobs={1.0: 1},
        aims=(1.6, 1.0),
        run_epochs=2,
    ),
    "quarter": Row(
        name="fractions 0 and 0.25 × 3 seeds × 3 learning rates",
        arguments=("-m", "model.pct_unfreeze=0,0.25", SEEDS, RATES),
        jobs={0.0: 9, 0.25: 9},
        aims=(8, 5),
    ),
    "sweep": Row(
        name="fractions 0, 0.25, 0.5, 1.0 × 3 seeds",
        arguments=("-m", "model.pct_unfreeze=0,0.25,0.5,1.0", SEEDS),
        jobs=dict.fromkeys(FRACTIONS, 3),
        aims=(3.5, 2.2),
        epochs=4,
    ),
    "folds": Row(
        name="fractions 0, 0.25, 0.5, 1.0 × 5 folds",
        arguments=GRID,
        jobs=dict.fromkeys(FRACTIONS, 5),
        aims=None,
        epochs=4,
    ),
    "heads": Row(
        name="head only, 200 jobs (20 seeds × 10 learning rates)",
        arguments=(
            "-m",
            "model=transfer",
            f"seed={','.join(map(str, range(1, 21)))}",
            f"optimizer.lr={','.join(f'{1e-4 * 2**power:g}' for power in range(10))}",
        ),
        jobs={0.0: 200},
        aims=None,
        epochs=3,
    ),
    "bf16": Row(
        name="fractions 0, 0.25, 0.5, 1.0 × 1 seed, bf16",
        arguments=(
            "-m",
            "model.pct_unfreeze=0,0.25,0.5,1.0",
            "seed=1",
            "fabric.precision=bf16-mixed",
        ),
        jobs=dict.fromkeys(FRACTIONS, 1),
        aims=None,
        epochs=2,
        bf16=True,
    ),
}

Kind = tuple[str, float, str, bool]  # a kind of reference run: style, fraction, augment, bf16


@dataclass
class Measured:
    """Seconds of tvf's commands by row, and the output of the reference loops by kind.

    `pairs` are runs of two loops at once, with one thread each. `ways` are seconds of commands that
    say which fraction to train without the grid of the row "folds".
    """

    tvf: dict[str, list[float]] = field(default_factory=dict)
    warm: dict[str, list[float]] = field(default_factory=dict)
    references: dict[Kind, list[dict[str, Any]]] = field(default_factory=dict)
    pairs: dict[Kind, list[dict[str, Any]]] = field(default_factory=dict)
    ways: dict[str, float] = field(default_factory=dict)


def run_reference(kind: Kind, epochs: int, at_once: int = 1) -> list[dict[str, Any]]:
    """Run a reference loop in a process that uses all cores, or several at once that share them."""
    style, fraction, augment, bf16 = kind
    threads = max(1, (os.cpu_count() or 1) // at_once)
    command = [
        sys.executable,
        str(ROOT / "bench" / "reference.py"),
        style,
        "--fraction",
        str(fraction),
        "--augment",
        augment,
        "--epochs",
        str(epochs),
        "--threads",
        str(threads),
    ]
    if bf16:
        command.append("--bf16")
    start = time.perf_counter()
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(at_once)
    ]
    printed = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError(f"{' '.join(command)} failed")
    runs = [json.loads(text.splitlines()[-1]) for text in printed]
    for run in runs:
        measured = run["start_seconds"] + sum(run["epoch_seconds"]) + run["test_seconds"]
        run["exit_seconds"] = max(0.0, time.perf_counter() - start - measured)
    print(f"{kind}{f' {at_once} at once' if at_once > 1 else ''}: {runs}", flush=True)
    return runs


def run_tvf(row: Row, store: Path, folder: Path) -> float:
    """Run one tvf command; return its seconds, projected to all epochs if it ran fewer."""
    mode = "sweep" if "-m" in row.arguments else "run"
    epochs = f"epochs={row.run_epochs or row.epochs}"
    command = ["train", *row.arguments, *COMMON, epochs, f"hydra.{mode}.dir={folder}"]
    seconds = time_tvf(command, store)
    print(f"tvf {row.name}: {seconds:.1f} s", flush=True)
    if row.run_epochs:
        epoch_seconds = median(epoch["epoch_seconds"] for epoch in read_epochs(folder))
        seconds += (row.epochs - row.run_epochs) * epoch_seconds
    return seconds


def time_tvf(arguments: list[str], store: Path) -> float:
    """Seconds of a whole tvf command that uses this store."""
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "tvf", *arguments],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"TVF_STORE": str(store)},
    )
    return time.perf_counter() - start


def time_ways(epochs: int, work: Path) -> dict[str, float]:
    """Seconds of a race instead of the grid, and of advice, each with an empty store."""
    race = ["train", *GRID, "hydra/sweeper=race", f"hydra.sweep.dir={work / 'race'}"]
    shared = [*COMMON, f"epochs={epochs}"]
    return {
        "`hydra/sweeper=race`": time_tvf([*race, *shared], work / "store-race"),
        "`tvf advise`": time_tvf(["advise", "data.folds=5", *shared], work / "store-advise"),
    }


def read_epochs(folder: Path) -> list[dict[str, Any]]:
    """The epochs of a job, from its metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def measure(rows: dict[str, Row], work: Path) -> Measured:
    """Run everything: in each round of a row, the loops that are still needed, then tvf."""
    measured = Measured()
    for key, row in rows.items():
        for number in range(row.rounds):
            for fraction in row.jobs:
                for style in ("tuned",) if row.bf16 else ("plain", "tuned"):
                    kind = (style, fraction, row.augment, row.bf16)
                    runs = measured.references.setdefault(kind, [])
                    if not runs:
                        runs += run_reference(kind, REFERENCE_EPOCHS)
                    elif number == 1:  # a short row's loops once more, between its commands
                        runs += run_reference(kind, 1)
                    several = sum(row.jobs.values()) > 1
                    if style == "tuned" and several and kind not in measured.pairs:
                        measured.pairs[kind] = run_reference(kind, REFERENCE_EPOCHS, at_once=2)
            store = work / key / f"store-{number}"
            cold = run_tvf(row, store, work / key / f"cold-{number}")
            measured.tvf.setdefault(key, []).append(cold)
            if row.rounds > 1:
                warm = run_tvf(row, store, work / key / f"warm-{number}")
                measured.warm.setdefault(key, []).append(warm)
    if "folds" in rows:
        measured.ways = time_ways(rows["folds"].epochs, work)
    return measured


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


def main() -> None:
    """Measure the chosen rows and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", help=f"some of {', '.join(ROWS)} (default: all)")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results.md")
    arguments = parser.parse_args()
    if unknown := [row for row in arguments.rows if row not in ROWS]:
        parser.error(f"{unknown[0]} is not a row: choose from {', '.join(ROWS)}")
    rows = {key: ROWS[key] for key in arguments.rows or ROWS}
    work = Path(tempfile.mkdtemp(prefix="tvf-bench-"))
    try:
        arguments.out.write_text(render_results(rows, measure(rows, work), work))
        print(f"written: {arguments.out}")
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
