"""tvf against two reference loops, side by side: writes bench/results.md. `make bench` runs it, in about 40 minutes.

Each row of the table is a set of jobs. A reference loop shares nothing between jobs, so its time for a set is the sum
of its jobs': one of each kind runs for two epochs, and its time for more epochs is that of its start, so many times
its median epoch, and its test. (The tuned loop is measured two at a time as well, a thread each: a person who runs
many jobs may think of that.) tvf's time is that of the whole command from the shell, store and start included, with an
empty store unless the row says warm. Short rows are measured three times, the loops between; medians count.
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

import torch
from reference import split

from tvf.data.augment import FlipsAndCrops, ViewRows
from tvf.models.backbones import efficientnet_lite0

ROOT = Path(__file__).parent.parent
EPOCHS = 8
REFERENCE_EPOCHS = 2  # of each reference loop, of which the median stands for all
COMMON = ("data.image_size=128", "tracker=none")
FRACTIONS = (0.0, 0.25, 0.5, 1.0)
SEEDS, RATES = "seed=1,2,3", "optimizer.lr=3e-4,1e-3,3e-3"


@dataclass(frozen=True)
class Row:
    """A set of jobs: tvf's arguments, and how many jobs of each fraction the reference loops have to run.

    `run_epochs`: what tvf itself runs, where that is less; the rest is projected as it is for the loops.
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
        "head only, one job, views = epochs", ("model=transfer",), {0.0: 1}, (3, 2), rounds=3
    ),
    "none": Row(
        "head only, one job, augment=none",
        ("model=transfer", "augment=none"),
        {0.0: 1},
        (8, 5),
        "none",
        rounds=3,
    ),
    "nine": Row(
        "head only, 9 jobs (3 seeds × 3 rates)",
        ("-m", "model=transfer", SEEDS, RATES),
        {0.0: 9},
        (15, 9),
    ),
    "full": Row(
        "pct_unfreeze 1.0, one job", ("model.pct_unfreeze=1.0",), {1.0: 1}, (1.6, 1.0), run_epochs=2
    ),
    "quarter": Row(
        "fractions 0 and 0.25 × 3 seeds × 3 rates",
        ("-m", "model.pct_unfreeze=0,0.25", SEEDS, RATES),
        {0.0: 9, 0.25: 9},
        (8, 5),
    ),
    "sweep": Row(
        "fractions 0, 0.25, 0.5, 1.0 × 3 seeds",
        ("-m", "model.pct_unfreeze=0,0.25,0.5,1.0", SEEDS),
        dict.fromkeys(FRACTIONS, 3),
        (3.5, 2.2),
        epochs=4,
    ),
    "bf16": Row(
        "fractions 0, 0.25, 0.5, 1.0 × 1 seed, bf16",
        ("-m", "model.pct_unfreeze=0,0.25,0.5,1.0", "seed=1", "fabric.precision=bf16-mixed"),
        dict.fromkeys(FRACTIONS, 1),
        None,
        epochs=2,
        bf16=True,
    ),
}

Kind = tuple[str, float, str, bool]  # of a reference run: style, fraction, augment, bf16


@dataclass
class Measured:
    """Seconds of tvf's commands by row, and what the reference loops printed."""

    tvf: dict[str, list[float]] = field(default_factory=dict)
    warm: dict[str, list[float]] = field(default_factory=dict)
    references: dict[Kind, list[dict[str, Any]]] = field(default_factory=dict)
    pairs: dict[Kind, list[dict[str, Any]]] = field(
        default_factory=dict
    )  # two at once, a thread each


def run_reference(kind: Kind, epochs: int, at_once: int = 1) -> list[dict[str, Any]]:
    """Reference runs as processes of their own: one with all cores, or several at once that share them."""
    style, fraction, augment, bf16 = kind
    threads = max(1, (os.cpu_count() or 1) // at_once)
    command = [
        sys.executable,
        str(ROOT / "bench" / "reference.py"),
        style,
        "--fraction",
        str(fraction),
    ]
    command += [
        "--augment",
        augment,
        "--epochs",
        str(epochs),
        "--threads",
        str(threads),
        *(["--bf16"] if bf16 else []),
    ]
    start = time.perf_counter()
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(at_once)
    ]
    printed = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError(f"{' '.join(command)} failed")
    found = [json.loads(text.splitlines()[-1]) for text in printed]
    for run in found:
        own = (run["start_seconds"], *run["epoch_seconds"], run["test_seconds"])
        run["exit_seconds"] = max(0.0, time.perf_counter() - start - sum(own))
    print(f"{kind}{f' {at_once} at once' if at_once > 1 else ''}: {found}", flush=True)
    return found


def run_tvf(row: Row, store: Path, folder: Path) -> float:
    """Seconds of one tvf command."""
    place, epochs = (
        f"hydra.{'sweep' if '-m' in row.arguments else 'run'}.dir={folder}",
        row.run_epochs or row.epochs,
    )
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        *row.arguments,
        *COMMON,
        f"epochs={epochs}",
        place,
    ]
    start = time.perf_counter()
    subprocess.run(
        command,
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"TVF_STORE": str(store)},
    )
    seconds = time.perf_counter() - start
    print(f"tvf {row.name}: {seconds:.1f} s", flush=True)
    if row.run_epochs:
        epoch = median(each["epoch_seconds"] for each in metrics(folder))
        seconds += (row.epochs - row.run_epochs) * epoch
    return seconds


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The epochs of a job."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def measure(rows: dict[str, Row], work: Path) -> Measured:
    """Run it all: in each round of a row its loops, as far as they are not known yet, and tvf."""
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
                    if (
                        style == "tuned"
                        and sum(row.jobs.values()) > 1
                        and kind not in measured.pairs
                    ):
                        measured.pairs[kind] = run_reference(kind, REFERENCE_EPOCHS, at_once=2)
            store = work / key / f"store-{number}"
            measured.tvf.setdefault(key, []).append(
                run_tvf(row, store, work / key / f"cold-{number}")
            )
            if row.rounds > 1:
                measured.warm.setdefault(key, []).append(
                    run_tvf(row, store, work / key / f"warm-{number}")
                )
    return measured


def projected(runs: list[dict[str, Any]], epochs: int) -> float:
    """Seconds of a reference loop for so many epochs."""
    once = sum(
        median(run[key] for run in runs)
        for key in ("start_seconds", "test_seconds", "exit_seconds")
    )
    return once + epochs * median(seconds for run in runs for seconds in run["epoch_seconds"])


def reference_seconds(row: Row, style: str, measured: Measured) -> float:
    """Seconds of a reference loop for all jobs of a row, one after another."""
    runs = {
        fraction: measured.references[style, fraction, row.augment, row.bf16]
        for fraction in row.jobs
    }
    return sum(
        count * projected(runs[fraction], row.epochs) for fraction, count in row.jobs.items()
    )


def paired_seconds(row: Row, measured: Measured) -> float:
    """Seconds of the tuned loop for all jobs of a row, two at a time."""
    runs = {
        fraction: measured.pairs["tuned", fraction, row.augment, row.bf16] for fraction in row.jobs
    }
    return sum(
        count * projected(runs[fraction], row.epochs) / 2 for fraction, count in row.jobs.items()
    )


def jobs_of(folder: Path, fraction: float) -> list[dict[str, Any]]:
    """The summaries of a sweep's jobs with this fraction, with their epochs as `history`."""
    found = []
    for path in sorted(folder.glob("*/summary.json")):
        summary = json.loads(path.read_text())
        if summary["pct_unfreeze"] == fraction:
            found.append(summary | {"history": metrics(path.parent)})
    return found


def scores(folder: Path, measured: Measured) -> list[str]:
    """Validation accuracy, best of the first epochs: the sweep's three seeds against one of each loop."""
    lines = [
        "| fraction | tvf, mean ± sd of 3 seeds | plain, 1 seed | tuned, 1 seed |",
        "|---|---|---|---|",
    ]
    for fraction in FRACTIONS:
        own = [
            max(e["val_acc"] for e in job["history"][:REFERENCE_EPOCHS])
            for job in jobs_of(folder, fraction)
        ]
        others = [
            measured.references[style, fraction, "flips", False][0]["val_acc"]
            for style in ("plain", "tuned")
        ]
        lines.append(
            f"| {fraction:g} | {mean(own):.3f} ± {stdev(own):.3f} | {others[0]:.3f} | {others[1]:.3f} |"
        )
    return lines


def prefix_rate() -> float:
    """Images a second that all cores together push through EfficientNet-Lite0 without its head, for evaluation."""
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


def suffix_rates(row: Row, work: Path) -> dict[float, tuple[float, float]]:
    """Seconds an image, training and evaluating, of a job by itself with one thread and a store that has everything."""
    rates = {}
    for fraction in row.jobs:
        folder = work / f"alone-{fraction}"
        command = [
            sys.executable,
            str(ROOT / "train.py"),
            f"model.pct_unfreeze={fraction}",
            *COMMON,
            "threads=1",
        ]
        command += ["epochs=1", "seed=1", f"hydra.run.dir={folder}"]
        environment = os.environ | {"TVF_STORE": str(work / "sweep" / "store-0")}
        subprocess.run(command, check=True, capture_output=True, env=environment)
        summary = json.loads((folder / "summary.json").read_text())
        rates[fraction] = (
            1 / metrics(folder)[0]["images_per_second"],
            summary["test_seconds"] / len(split()[2][2]),
        )
    return rates


def bound(row: Row, work: Path, seconds: float) -> list[str]:
    """The docs' formula from rates measured here, each by itself: of the prefix, and of each fraction's suffix."""
    train, val, test = map(len, split()[2])
    workers, rate, suffix = os.cpu_count() or 1, prefix_rate(), suffix_rates(row, work)
    rows = ViewRows(FlipsAndCrops(horizontal=0.5), train)
    images = sum(len(rows.new_samples(view + 1)) for view in range(row.epochs)) + val + test
    suffixes = 0.0
    for fraction, count in row.jobs.items():
        training, evaluating = suffix[fraction]
        suffixes += count * (row.epochs * (train * training + val * evaluating) + test * evaluating)
    least = images / rate + suffixes / workers
    shown = ", ".join(
        f"{fraction:g}: {1 / training:.0f}" for fraction, (training, _) in suffix.items()
    )
    return [
        f"{images:.0f} images through the prefix, at {rate:.0f} a second on all cores: {images / rate:.0f} s. "
        f"Suffixes, training (images a second on one core, by fraction: {shown}), validation and test: "
        f"{suffixes:.0f} s on one core.",
        f"So {workers} workers need at least {least:.0f} s. The command took {seconds:.0f} s: {least / seconds:.0%} "
        "of the bound.",
    ]


def report(rows: dict[str, Row], measured: Measured, work: Path) -> str:
    """bench/results.md."""
    lines = [
        "# tvf against two reference loops",
        "",
        "Written by `bench/run.py`: ELPV at 128 pixels, EfficientNet-Lite0, batch 32, float32 unless a row says bf16; "
        "every epoch with its validation, every job with its test.",
        f"Machine: {processor()}, {os.cpu_count()} cores, Python {platform.python_version()}, torch "
        f"{torch.__version__}, {torch.backends.cpu.get_cpu_capability()}.",
        f"Reference loops: {REFERENCE_EPOCHS} epochs of each kind, projected (start + epochs × median epoch + test) "
        "and summed over the jobs; in brackets two of the tuned loop at a time, a thread each. tvf: whole commands, "
        "cold store; median where there are several.",
        "",
        "| work | epochs | plain, s | tuned, s | tvf, s (each) | over plain | aim | over tuned | aim |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for key, row in rows.items():
        tuned, own = reference_seconds(row, "tuned", measured), median(measured.tvf[key])
        plain = None if row.bf16 else reference_seconds(row, "plain", measured)
        aims = [f"≥ {aim:g}" for aim in row.aims] if row.aims else ["", ""]
        seconds, over = ("", "") if plain is None else (f"{plain:.0f}", f"{plain / own:.1f}")
        each = ", ".join(f"{one:.0f}" for one in measured.tvf[key]) if row.rounds > 1 else ""
        shown = f"{own:.0f}" + (f" ({each})" if each else "")
        shown += f", from {row.run_epochs} epochs" if row.run_epochs else ""
        paired = paired_seconds(row, measured) if sum(row.jobs.values()) > 1 else None
        both = [f"{tuned:.0f}", f"{tuned / own:.1f}"]
        if paired is not None:
            both = [f"{both[0]} ({paired:.0f})", f"{both[1]} ({paired / own:.1f})"]
        cells = [
            row.name,
            str(row.epochs),
            seconds,
            both[0],
            shown,
            over,
            aims[0],
            both[1],
            aims[1],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    warm = [f"{rows[key].name} {median(seconds):.0f} s" for key, seconds in measured.warm.items()]
    if warm:
        lines += ["", f"With a warm store: {', '.join(warm)}."]
    if "sweep" in rows:
        folder = work / "sweep" / "cold-0"
        lines += ["", "## Scores after two epochs (validation accuracy, the better epoch)", ""]
        lines += [*scores(folder, measured), "", "## The sweep and its bound", ""]
        lines += bound(rows["sweep"], work, measured.tvf["sweep"][0])
    lines += [
        "",
        "## Reference runs",
        "",
        "| loop | fraction | augment | start, s | epochs, s | test, s |",
        "|---|---|---|---|---|---|",
    ]
    listed = [(kind, "", runs) for kind, runs in measured.references.items()]
    listed += [(kind, ", two at once", runs) for kind, runs in measured.pairs.items()]
    for (style, fraction, augment, bf16), note, runs in listed:
        columns = [
            [run["start_seconds"] for run in runs],
            [e for run in runs for e in run["epoch_seconds"]],
        ]
        columns.append([run["test_seconds"] for run in runs])
        shown = " | ".join(", ".join(f"{seconds:.1f}" for seconds in column) for column in columns)
        lines.append(
            f"| {style}{', bf16' if bf16 else ''}{note} | {fraction:g} | {augment} | {shown} |"
        )
    return "\n".join(lines) + "\n"


def processor() -> str:
    """The processor's name, where the system tells."""
    names = [
        line
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return names[0].partition(":")[2].strip() if names else platform.machine()


def main() -> None:
    """Measure the chosen rows and write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", help=f"some of {', '.join(ROWS)} (default: all)")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results.md")
    arguments = parser.parse_args()
    if unknown := [row for row in arguments.rows if row not in ROWS]:
        parser.error(f"{unknown[0]} is not a row: choose from {', '.join(ROWS)}")
    rows, work = (
        {key: ROWS[key] for key in arguments.rows or ROWS},
        Path(tempfile.mkdtemp(prefix="tvf-bench-")),
    )
    try:
        arguments.out.write_text(report(rows, measure(rows, work), work))
        print(f"written: {arguments.out}")
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
