"""Successive halving against the full grid: is the choice the same, and at what share of the cost?

Each repetition divides the images into folds of its own (data.split_seed) and runs two sweeps in
fresh folders, the full grid and then halving. Both read a store that an earlier sweep filled, so
neither includes its cost. Prints the table of docs/halving.md. The grid chooses the configuration
with the best mean validation score among all jobs trained to their end; halving chooses among those
that it kept.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from tvf.metrics import METRICS
from tvf.records import Row, read_sweep

ROOT = Path(__file__).parent.parent
FRACTION = "model.pct_unfreeze"


@dataclass(frozen=True)
class Outcome:
    """The choice of a sweep, by swept key, with its epochs and its training seconds."""

    chosen: dict[str, Any]
    score: float
    epochs: int
    seconds: float

    def __str__(self) -> str:
        return f"{', '.join(f'{value:g}' for value in self.chosen.values())} ({self.score:.3f})"


def run_sweep(arguments: Sequence[str], folder: Path, store: Path) -> None:
    """Run a sweep; SystemExit with its output if a job is not done."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "-m", *arguments, f"hydra.sweep.dir={folder}"],
        env=os.environ | {"TVF_STORE": str(store)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)


def option_value(row: Row, key: str) -> float:
    """The job's value of an option, by its dotted key."""
    node: Any = row["config"]
    for name in key.split("."):
        node = node[name]
    return float(node)


def training_seconds(row: Row) -> float:
    """Training seconds; for a dropped job, which has no summary, the sum over its epochs."""
    seconds = row["train_seconds"]
    if seconds is None:
        return sum(epoch["epoch_seconds"] for epoch in row["history"])
    return seconds


def read_outcome(folder: Path, keys: Sequence[str]) -> Outcome:
    """The choice of a finished sweep among the values of `keys`, by mean over folds; its cost."""
    rows, scores = read_sweep(folder), defaultdict(list)
    for row in rows:
        if row["state"] == "done":
            values = tuple(option_value(row, key) for key in keys)
            scores[values].append(row[f"val_{METRICS[row['metric']]}"])
    chosen = max(scores, key=lambda values: fmean(scores[values]))
    return Outcome(
        chosen=dict(zip(keys, chosen, strict=True)),
        score=fmean(scores[chosen]),
        epochs=sum(len(row["history"]) for row in rows),
        seconds=sum(map(training_seconds, rows)),
    )


def parse_arguments() -> argparse.Namespace:
    """The options of this script, and the overrides for both sweeps."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--eta", type=int, default=2)
    parser.add_argument("--fractions", default="0,0.25,0.5,1.0")
    parser.add_argument("--rates", default="1e-4,3e-4", help="learning rates of the backbone")
    parser.add_argument("overrides", nargs="*", help="for both sweeps, such as data.limit=64")
    return parser.parse_args()


def main() -> None:
    """Run all repetitions and print a Markdown table."""
    options = parse_arguments()
    swept = {FRACTION: options.fractions, "optimizer.backbone_lr": options.rates}
    common = [f"{key}={values}" for key, values in swept.items()]
    common += [f"epochs={options.epochs}", "tracker=none", *options.overrides]
    halving = ("hydra/sweeper=halving", f"hydra.sweeper.eta={options.eta}")
    print(
        f"| repetition | full grid: {', '.join(swept)} (score) | halving | same fraction | epochs "
        "| seconds |"
    )
    print("|---|---|---|---|---|---|", flush=True)
    shares: list[tuple[bool, float, float]] = []
    with tempfile.TemporaryDirectory(prefix="tvf-halving-") as name:
        work = Path(name)
        store = work / "store"
        folds = f"data.fold={','.join(map(str, range(options.folds)))}"
        common += [f"data.folds={options.folds}", folds]
        run_sweep(common, work / "first", store)
        for repetition in range(options.repetitions):
            division = f"data.split_seed={1 + repetition}"
            run_sweep([*common, division], work / f"full-{repetition}", store)
            run_sweep([*common, division, *halving], work / f"halving-{repetition}", store)
            full = read_outcome(work / f"full-{repetition}", [*swept])
            half = read_outcome(work / f"halving-{repetition}", [*swept])
            same = full.chosen[FRACTION] == half.chosen[FRACTION]
            epochs, cost = half.epochs / full.epochs, half.seconds / full.seconds
            shares.append((same, epochs, cost))
            verdict = f"{'yes' if same else 'no'} | {epochs:.0%} | {cost:.0%}"
            print(f"| {repetition + 1} | {full} | {half} | {verdict} |", flush=True)
    agreed, epochs, cost = zip(*shares, strict=True)
    print(f"| all | | | {sum(agreed)} of {len(agreed)} | {fmean(epochs):.0%} | {fmean(cost):.0%} |")


if __name__ == "__main__":
    main()
