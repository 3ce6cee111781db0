"""Compares tvf with two reference loops and writes bench/results.md. `make bench` takes an hour.

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
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from run_rows import COMMON, GRID, REFERENCE_EPOCHS, ROOT, ROWS, Kind, Measured, Row
from run_table import read_epochs, render_results


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


def has_bf16() -> bool:
    """Whether the processor computes in bfloat16."""
    flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split()
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags)


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
    if not arguments.rows and not has_bf16():
        print("This processor only emulates bf16, which takes hours: without the row bf16.")
        del rows["bf16"]
    work = Path(tempfile.mkdtemp(prefix="tvf-bench-"))
    try:
        arguments.out.write_text(render_results(rows, measure(rows, work), work))
        print(f"written: {arguments.out}")
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
