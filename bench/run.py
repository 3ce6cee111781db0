"""tvf against two reference loops, side by side: writes bench/results.md. `make bench` runs it, in about 40 minutes.

Each row of the table is a set of jobs. A reference loop shares nothing between jobs, so its time for a set is the sum
of its jobs': each kind of job runs once as a process of its own, and its time for EPOCHS epochs is that of its start,
EPOCHS times its median epoch, and its test. tvf's time is that of the whole command from the shell, store and start
included, with an empty store unless the row says warm.
"""

import argparse
import csv
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

import torch

ROOT = Path(__file__).parent.parent
EPOCHS = 8
REFERENCE_EPOCHS = 2  # of a reference run, of which the median stands for all
COMMON = ("data.image_size=128", "tracker=none")
FRACTIONS = (0.0, 0.25, 0.5, 1.0)
SEEDS, RATES = "seed=1,2,3", "optimizer.lr=3e-4,1e-3,3e-3"


@dataclass(frozen=True)
class Row:
    """A set of jobs: tvf's arguments, and how many jobs of each fraction the reference loops have to run."""

    name: str
    arguments: tuple[str, ...]
    jobs: dict[float, int]
    aims: tuple[float, float] | None
    augment: str = "flips"
    epochs: int = EPOCHS
    bf16: bool = False


ROWS = {
    "head": Row("head only, one job, views = epochs", ("model=transfer",), {0.0: 1}, (3, 2)),
    "none": Row("head only, one job, augment=none", ("model=transfer", "augment=none"), {0.0: 1}, (8, 5), "none"),
    "nine": Row("head only, 9 jobs (3 seeds × 3 rates)", ("-m", "model=transfer", SEEDS, RATES), {0.0: 9}, (15, 9)),
    "sweep": Row(
        "fractions 0, 0.25, 0.5, 1.0 × 3 seeds",
        ("-m", "model.pct_unfreeze=0,0.25,0.5,1.0", SEEDS),
        dict.fromkeys(FRACTIONS, 3),
        (3.5, 2.2),
    ),
    "quarter": Row(
        "fractions 0 and 0.25 × 3 seeds × 3 rates",
        ("-m", "model.pct_unfreeze=0,0.25", SEEDS, RATES),
        {0.0: 9, 0.25: 9},
        (8, 5),
    ),
    "full": Row("pct_unfreeze 1.0, one job", ("model.pct_unfreeze=1.0",), {1.0: 1}, (1.6, 1.0)),
}
BF16 = Row(
    "fractions 0, 0.25, 0.5, 1.0 × 1 seed, bf16",
    ("-m", "model.pct_unfreeze=0,0.25,0.5,1.0", "seed=1", "fabric.precision=bf16-mixed"),
    dict.fromkeys(FRACTIONS, 1),
    None,
    bf16=True,
)


@dataclass
class Measured:
    """Seconds of tvf's commands by row, and what the reference loops printed by (style, fraction, augment, bf16)."""

    tvf: dict[str, float] = field(default_factory=dict)
    warm: dict[str, float] = field(default_factory=dict)
    references: dict[tuple[str, float, str, bool], dict[str, Any]] = field(default_factory=dict)


def run_reference(style: str, fraction: float, augment: str, bf16: bool) -> dict[str, Any]:
    """One reference run, as a process of its own."""
    command = [sys.executable, str(ROOT / "bench" / "reference.py"), style, "--fraction", str(fraction)]
    command += ["--augment", augment, "--epochs", str(REFERENCE_EPOCHS), *(["--bf16"] if bf16 else [])]
    start = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    found["exit_seconds"] = (
        time.perf_counter() - start - sum((found["start_seconds"], *found["epoch_seconds"], found["test_seconds"]))
    )
    print(f"{style} {fraction} {augment}{' bf16' if bf16 else ''}: {found}", flush=True)
    return found


def run_tvf(row: Row, store: Path, folder: Path) -> float:
    """Seconds of one tvf command."""
    place = f"hydra.{'sweep' if '-m' in row.arguments else 'run'}.dir={folder}"
    command = [sys.executable, str(ROOT / "train.py"), *row.arguments, *COMMON, f"epochs={row.epochs}", place]
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | {"TVF_STORE": str(store)})
    seconds = time.perf_counter() - start
    print(f"tvf {row.name}: {seconds:.1f} s", flush=True)
    return seconds


def projected(found: dict[str, Any], epochs: int) -> float:
    """Seconds of a reference run of so many epochs."""
    once = found["start_seconds"] + found["test_seconds"] + found["exit_seconds"]
    return once + epochs * median(found["epoch_seconds"])


def reference_seconds(row: Row, style: str, measured: Measured) -> float:
    """Seconds of a reference loop for all jobs of a row."""
    runs = {f: measured.references[style, f, row.augment, row.bf16] for f in row.jobs}
    return sum(count * projected(runs[fraction], row.epochs) for fraction, count in row.jobs.items())


def scores(folder: Path, measured: Measured) -> list[str]:
    """Validation accuracy, best of the first epochs: the sweep's three seeds against one of each loop."""
    lines = ["| fraction | tvf, mean ± sd of 3 seeds | plain, 1 seed | tuned, 1 seed |", "|---|---|---|---|"]
    for fraction in FRACTIONS:
        own = []
        for summary in folder.glob("*/summary.json"):
            if json.loads(summary.read_text())["pct_unfreeze"] == fraction:
                epochs = [json.loads(line) for line in (summary.parent / "metrics.jsonl").read_text().splitlines()]
                own.append(max(epoch["val_acc"] for epoch in epochs[:REFERENCE_EPOCHS]))
        others = [measured.references[style, fraction, "flips", False]["val_acc"] for style in ("plain", "tuned")]
        spread = f"{mean(own):.3f} ± {stdev(own):.3f}"
        lines.append(f"| {fraction:g} | {spread} | {others[0]:.3f} | {others[1]:.3f} |")
    return lines


def bound(folder: Path) -> list[str]:
    """The sweep's own bound: prefix once, each suffix at the rate it trained at, on as many workers as there are."""
    rows = list(csv.DictReader((folder / "results.csv").read_text().splitlines()))
    summaries = [json.loads((folder / row["folder"] / "summary.json").read_text()) for row in rows]
    prefix = sum(summary["prefix_seconds"] for summary in summaries)
    trained = sum(summary["train_seconds"] + summary["test_seconds"] for summary in summaries) - prefix
    workers = os.cpu_count() or 1
    return [
        f"Prefix, all jobs together: {prefix:.0f} s. Suffixes with validation and test: {trained:.0f} s.",
        f"On {workers} workers no schedule takes less than {(prefix + trained) / workers:.0f} s.",
    ]


def report(rows: dict[str, Row], measured: Measured, sweep: Path) -> str:
    """bench/results.md."""
    lines = [
        "# tvf against two reference loops",
        "",
        f"Written by `bench/run.py`: ELPV at 128 pixels, EfficientNet-Lite0, batch 32, float32, {EPOCHS} epochs with "
        "validation, one test.",
        f"Machine: {os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, torch "
        f"{torch.__version__}, {torch.backends.cpu.get_cpu_capability()}.",
        f"Reference loops: from runs of {REFERENCE_EPOCHS} epochs (start + {EPOCHS} × median epoch + test), summed "
        "over the jobs. tvf: the whole command, cold store, once.",
        "",
        "| work | plain, s | tuned, s | tvf, s | over plain | aim | over tuned | aim |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key, row in rows.items():
        tuned, own = reference_seconds(row, "tuned", measured), measured.tvf[key]
        plain = None if row.bf16 else reference_seconds(row, "plain", measured)
        aims = [f"≥ {aim:g}" for aim in row.aims] if row.aims else ["", ""]
        seconds, over = ("", "") if plain is None else (f"{plain:.0f}", f"{plain / own:.1f}")
        cells = [row.name, seconds, f"{tuned:.0f}", f"{own:.0f}", over, aims[0], f"{tuned / own:.1f}", aims[1]]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "With a warm store: " + ", ".join(f"{rows[k].name} {s:.0f} s" for k, s in measured.warm.items()) + ".",
    ]
    if sweep.exists():
        lines += [
            "",
            "## Scores after two epochs (validation accuracy, the better epoch)",
            "",
            *scores(sweep, measured),
        ]
        lines += ["", "## The sweep and its bound", "", *bound(sweep), f"The sweep took {measured.tvf['sweep']:.0f} s."]
    lines += [
        "",
        "## Reference runs",
        "",
        "| loop | fraction | augment | start, s | epochs, s | test, s |",
        "|---|---|---|---|---|---|",
    ]
    for (style, fraction, augment, bf16), found in measured.references.items():
        epochs = ", ".join(f"{seconds:.1f}" for seconds in found["epoch_seconds"])
        name = f"{style}{', bf16' if bf16 else ''}"
        once = [f"{found[key]:.1f}" for key in ("start_seconds", "test_seconds")]
        lines.append(f"| {name} | {fraction:g} | {augment} | {once[0]} | {epochs} | {once[1]} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure the chosen rows, references before and between tvf's, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", help=f"some of {', '.join(ROWS)} (default: all)")
    parser.add_argument("--bf16", action="store_true", help="the sweep in bf16 too, one seed: about ten minutes more")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results.md")
    arguments = parser.parse_args()
    if unknown := [row for row in arguments.rows if row not in ROWS]:
        parser.error(f"{unknown[0]} is not a row: choose from {', '.join(ROWS)}")
    rows = {key: ROWS[key] for key in arguments.rows or ROWS} | ({"bf16": BF16} if arguments.bf16 else {})
    measured, work = Measured(), Path(tempfile.mkdtemp(prefix="tvf-bench-"))
    try:
        for key, row in rows.items():
            for fraction in row.jobs:
                for style in ("tuned",) if row.bf16 else ("plain", "tuned"):
                    kind = (style, fraction, row.augment, row.bf16)
                    if kind not in measured.references:
                        measured.references[kind] = run_reference(*kind)
            store = work / key / "store"
            measured.tvf[key] = run_tvf(row, store, work / key / "cold")
            if sum(row.jobs.values()) == 1 and 1.0 not in row.jobs:
                measured.warm[key] = run_tvf(row, store, work / key / "warm")
        arguments.out.write_text(report(rows, measured, work / "sweep" / "cold"))
        print(f"written: {arguments.out}")
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
