"""The comparison's tables, as rows of plain values with a heading, a format and a meaning for each column."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from tvf.metrics import METRICS
from tvf.records import Row
from tvf.report.comparison import Comparison
from tvf.report.recommend import Configuration

NEARLY = 0.95  # of its best score: when a job has come so far, the rest is slow


@dataclass(frozen=True)
class Column:
    """A column: its key in the rows, what it is headed, how its values are written, and what it means."""

    key: str
    heading: str
    form: str = ""
    meaning: str = ""

    def text(self, row: dict[str, Any]) -> str:
        """A row's value, written out; nothing if it has none."""
        value = row.get(self.key)
        if value is None:
            return ""
        return str(value) if isinstance(value, str) else format(value, self.form)


SWEEP = Column("sweep", "sweep")  # before JOBS, where there are several
JOBS = (
    Column("label", "pct_unfreeze"),
    Column("seed", "seed"),
    Column("state", "state"),
    Column("val", "validation", ".3f", "score of the epoch that validation chose"),
    Column("test", "test", ".3f", "score of the same epoch, looked at once"),
    Column("best_epoch", "best epoch"),
    Column("epochs", "epochs"),
    Column(
        "train_seconds",
        "all seconds",
        ".1f",
        "of training, with frozen layers where the job computed them",
    ),
    Column("name", "W&B run"),
)
COSTS = (
    Column("label", "pct_unfreeze"),
    Column(
        "seconds",
        "own seconds",
        ".1f",
        "median of training, without frozen layers that the store keeps for all",
    ),
    Column(
        "prefix_seconds",
        "shared seconds",
        ".1f",
        "sum in frozen layers: whoever comes first computes for all",
    ),
    Column("images_per_second", "images/s", ".0f", "median, in training"),
    Column("peak_memory_mb", "memory, MiB", ".0f", "most in use, of all seeds"),
    Column("trainable_params", "trainable", ",d", "parameters"),
)
DIFFERENCES = (
    Column("a", "pct_unfreeze"),
    Column("b", "minus that of"),
    Column("n", "seeds", "", "that both have"),
    Column("mean", "difference", "+.4f", "mean over the seeds"),
    Column("low", "95 % from", "+.4f", "of this pair by itself"),
    Column("high", "95 % to", "+.4f"),
    Column("p", "p", ".3g", "paired t-test, two-sided"),
    Column("p_holm", "p (Holm)", ".3g", "corrected for all pairs here"),
)


def overview_columns(comparison: Comparison) -> list[Column]:
    """Of the table of configurations."""
    return [
        Column("label", "pct_unfreeze", "", "fraction of the groups that trains"),
        Column("n", "seeds"),
        Column("val", f"validation {comparison.word}", ".3f", "mean over seeds"),
        Column("sd", "sd", ".3f", "sample standard deviation over seeds"),
        Column("low", "95 % from", ".3f", "Student's t"),
        Column("high", "95 % to", ".3f"),
        Column(
            "test",
            "test",
            ".3f",
            "mean over seeds, of the epochs that validation chose; nothing is chosen by it",
        ),
        Column("test_sd", "test sd", ".3f"),
        Column("best_epoch", "best epoch", "g", "median"),
        Column(
            "nearly",
            "epochs to 95 %",
            "g",
            "median epoch that first reaches 95 % of the best score",
        ),
        Column("gap", "overfitting", "+.3f", "training minus validation accuracy, last epoch"),
        Column("loss_gap", "loss gap", "+.3f", "validation minus training loss, last epoch"),
    ]


def overview(comparison: Comparison) -> list[dict[str, Any]]:
    """One row for each configuration: scores over seeds, learning dynamics, cost."""
    return [_overview(each, comparison) for each in comparison.configurations]


def _overview(configuration: Configuration, comparison: Comparison) -> dict[str, Any]:
    done = configuration.done
    last = [row["history"][-1] for row in done if row["history"]]
    row: dict[str, Any] = {
        "label": configuration.label,
        "fraction": configuration.fraction,
        "n": len(done),
    }
    if configuration.val:
        val = configuration.val
        row |= {"val": val.mean, "sd": val.sd, "low": val.low, "high": val.high}
    if configuration.test:
        row |= {"test": configuration.test.mean, "test_sd": configuration.test.sd}
    return row | {
        "best_epoch": _over(median, [each["best_epoch"] for each in done]),
        "nearly": _over(median, [_nearly(each["history"], comparison.score_key) for each in done]),
        "gap": _over(fmean, [_minus(epoch, "train_acc", "val_acc") for epoch in last]),
        "loss_gap": _over(fmean, [_minus(epoch, "val_loss", "train_loss") for epoch in last]),
        "seconds": configuration.seconds,
        "prefix_seconds": _over(sum, [each["prefix_seconds"] for each in done]),
        "images_per_second": _over(median, [each["images_per_second"] for each in done]),
        "peak_memory_mb": _over(max, [each["peak_memory_mb"] for each in done]),
        "trainable_params": _over(max, [each["trainable_params"] for each in done]),
    }


def _nearly(history: Sequence[dict[str, Any]], key: str) -> int | None:
    scores = [(epoch["epoch"], epoch[key]) for epoch in history if epoch.get(key) is not None]
    best = max((score for _, score in scores), default=0.0)
    return next((number for number, score in scores if score >= NEARLY * best), None)


def _minus(epoch: dict[str, Any], a: str, b: str) -> float | None:
    return None if epoch.get(a) is None or epoch.get(b) is None else epoch[a] - epoch[b]


def _over(function: Callable[[list[Any]], Any], values: Sequence[Any]) -> Any:
    known = [value for value in values if value is not None]
    return function(known) if known else None


def jobs(comparison: Comparison) -> list[dict[str, Any]]:
    """One row for each job, whatever its state."""
    key = METRICS[comparison.metric]
    return [
        row | {"label": each.label, "val": row[f"val_{key}"], "test": row[f"test_{key}"]}
        for each in comparison.configurations
        for row in each.jobs
    ]


def differences(comparison: Comparison) -> list[dict[str, Any]]:
    """One row for each pair of configurations that was compared."""
    return [
        {"a": each.a, "b": each.b, "p": each.p, "p_holm": each.p_holm}
        | {key: getattr(each.estimate, key) for key in ("n", "mean", "sd", "low", "high")}
        for each in comparison.differences
    ]


def by_class(configuration: Configuration) -> list[dict[str, Any]]:
    """For each part, scores by class: means over seeds, and the confusion matrix summed over them."""
    found = []
    for part, name in (("val", "validation"), ("test", "test")):
        summaries = [
            row["summary"] for row in configuration.done if row["summary"].get(f"{part}_recall")
        ]
        if not summaries:
            continue
        matrices = [each.get(f"{part}_confusion") for each in summaries]
        sizes = {len(each[f"{part}_recall"]) for each in summaries} | {
            len(m) for m in matrices if m
        }
        sizes |= {len(row) for m in matrices for row in m or ()} | {
            len(each.get("classes") or ()) for each in summaries
        }
        if len(sizes - {0}) > 1:  # the folders of classes have changed between jobs
            continue
        recalls = list(zip(*(each[f"{part}_recall"] for each in summaries), strict=True))
        found.append(
            {
                "part": name,
                "classes": summaries[0].get("classes")
                or [str(index) for index in range(len(recalls))],
                "scores": {
                    word: _over(fmean, [each.get(f"{part}_{key}") for each in summaries])
                    for word, key in (
                        ("accuracy", "acc"),
                        ("macro F1", "macro_f1"),
                        ("AUROC", "auroc"),
                    )
                },
                "recall": [_over(fmean, values) for values in recalls],
                "confusion": _sum(matrices) if all(matrices) else None,
            }
        )
    return found


def _sum(matrices: Sequence[Any]) -> list[list[int]]:
    return [
        [sum(cells) for cells in zip(*rows, strict=True)] for rows in zip(*matrices, strict=True)
    ]


def epochs(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One row for each epoch of each job, with what tells the job: tidy data for a program of statistics."""
    told = ("sweep", "folder", "name", "seed", "pct_unfreeze")
    return [{key: row[key] for key in told} | epoch for row in rows for epoch in row["history"]]
