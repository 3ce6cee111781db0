"""What `bench/run.py` measures: sets of jobs, and what was found."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
