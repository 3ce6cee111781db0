"""Successive halving against the full grid: does it choose the same fraction, and at what share of the cost?

Each repetition has seeds of its own, and sweeps in fresh folders: the full grid, then halving, one after the other, by
the same store, which a first sweep fills, so that neither pays for it. docs/halving.md has the table that
`python bench/halving.py` prints. The grid's choice is the configuration with the best mean validation score, of all
those trained to their end; halving's is the best of those that it has left.
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
from tvf.records.rows import Row, read_sweep

ROOT = Path(__file__).parent.parent
FRACTION = "model.pct_unfreeze"


@dataclass(frozen=True)
class Outcome:
    """Of a sweep: what it chose, by the keys that were swept; its epochs, and its seconds of training."""

    chosen: dict[str, Any]
    score: float
    epochs: int
    seconds: float

    def __str__(self) -> str:
        return f"{', '.join(f'{value:g}' for value in self.chosen.values())} ({self.score:.3f})"


def sweep(arguments: Sequence[str], folder: Path, store: Path) -> None:
    """Run it; SystemExit with what it printed if a job is not done."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "-m", *arguments, f"hydra.sweep.dir={folder}"],
        env=os.environ | {"TVF_STORE": str(store)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)


def value(row: Row, key: str) -> float:
    """What the job has for a dotted key of its config."""
    node: Any = row["config"]
    for each in key.split("."):
        node = node[each]
    return float(node)


def seconds(row: Row) -> float:
    """Of training: a job that was dropped has no summary, but its epochs' seconds, with validation and all."""
    told = row["train_seconds"]
    return sum(epoch["epoch_seconds"] for epoch in row["history"]) if told is None else told


def read(folder: Path, keys: Sequence[str]) -> Outcome:
    """What a finished sweep has chosen among the values of `keys`, by means over seeds, and what it took."""
    rows, scores = read_sweep(folder), defaultdict(list)
    for row in rows:
        if row["state"] == "done":
            scores[tuple(value(row, key) for key in keys)].append(
                row[f"val_{METRICS[row['metric']]}"]
            )
    chosen = max(scores, key=lambda each: fmean(scores[each]))
    return Outcome(
        dict(zip(keys, chosen, strict=True)),
        fmean(scores[chosen]),
        sum(len(row["history"]) for row in rows),
        sum(map(seconds, rows)),
    )


def main() -> None:
    """Run both as often as wanted, and print a table in Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument(
        "--seeds", type=int, default=2, help="of each configuration, in each repetition"
    )
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--eta", type=int, default=2)
    parser.add_argument("--fractions", default="0,0.25,0.5,1.0")
    parser.add_argument("--rates", default="1e-4,3e-4", help="of the backbone")
    parser.add_argument("overrides", nargs="*", help="of both sweeps: data.limit=64")
    options = parser.parse_args()
    swept = {FRACTION: options.fractions, "optimizer.backbone_lr": options.rates}
    common = [f"{key}={values}" for key, values in swept.items()]
    common += [f"epochs={options.epochs}", "tracker=none", *options.overrides]
    halving = ("hydra/sweeper=halving", f"hydra.sweeper.eta={options.eta}")
    print(
        f"| repetition | full grid: {', '.join(swept)} (score) | halving | same fraction | epochs | seconds |"
    )
    print("|---|---|---|---|---|---|", flush=True)
    shares: list[tuple[bool, float, float]] = []
    with tempfile.TemporaryDirectory(prefix="tvf-halving-") as name:
        work = Path(name)
        sweep([*common, "seed=0"], work / "first", work / "store")
        for number in range(options.repetitions):
            first = 1 + number * options.seeds
            seeds = f"seed={','.join(str(first + each) for each in range(options.seeds))}"
            sweep([*common, seeds], work / f"full-{number}", work / "store")
            sweep([*common, seeds, *halving], work / f"halving-{number}", work / "store")
            full, half = (read(work / f"{kind}-{number}", [*swept]) for kind in ("full", "halving"))
            same = full.chosen[FRACTION] == half.chosen[FRACTION]
            shares.append((same, half.epochs / full.epochs, half.seconds / full.seconds))
            _, epochs, cost = shares[-1]
            told = f"{'yes' if same else 'no'} | {epochs:.0%} | {cost:.0%}"
            print(f"| {number + 1} | {full} | {half} | {told} |", flush=True)
    agreed, epochs, cost = zip(*shares, strict=True)
    print(f"| all | | | {sum(agreed)} of {len(agreed)} | {fmean(epochs):.0%} | {fmean(cost):.0%} |")


if __name__ == "__main__":
    main()
