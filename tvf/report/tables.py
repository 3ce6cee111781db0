"""The comparison's tables: rows of plain values, and columns with heading, format and meaning."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from tvf.metrics import METRICS
from tvf.records import Row
from tvf.report.comparison import Comparison
from tvf.report.configuration import Configuration, name_trainings, training_of
from tvf.report.data_curves import DataCurves, train_limit
from tvf.report.data_sentences import count
from tvf.report.tested import DifferenceOnTest

CLOSE_TO_BEST = 0.95  # fraction of the best score; most progress is made before it


@dataclass(frozen=True)
class Column:
    """A column: its key in the rows, its heading, the format of its values, and what it means."""

    key: str
    heading: str
    form: str = ""
    meaning: str = ""

    def text(self, row: dict[str, Any]) -> str:
        """The formatted value of a row; empty if there is none."""
        value = row.get(self.key)
        if value is None:
            return ""
        return str(value) if isinstance(value, str) else format(value, self.form)


SWEEP = Column("sweep", "sweep")  # before JOBS, if there are several sweeps
JOBS = (
    Column("label", "pct_unfreeze"),
    Column("training", "training", "", "its seed, or what else differs between trainings"),
    Column("state", "state"),
    Column("val", "validation", ".3f", "score of the epoch that validation chose"),
    Column("test", "test", ".3f", "score of the same epoch, evaluated once"),
    Column("best_epoch", "best epoch"),
    Column("epochs", "epochs"),
    Column(
        "train_seconds",
        "total seconds",
        ".1f",
        "training, including frozen layers if the job computed them",
    ),
)
RUN = Column("name", "W&B run")  # after JOBS, if any job has one
COSTS = (
    Column("label", "pct_unfreeze"),
    Column(
        "seconds",
        "own seconds",
        ".1f",
        "median training time, excluding frozen layers that the store keeps for all jobs",
    ),
    Column(
        "prefix_seconds",
        "shared seconds",
        ".1f",
        "total time in frozen layers: the first job that needs a result computes it for all",
    ),
    Column("images_per_second", "images/s", ".0f", "median, in training"),
    Column("peak_memory_mb", "memory, MiB", ".0f", "peak over all trainings"),
    Column("trainable_params", "trainable", ",d", "parameters"),
)
DIFFERENCES = (
    Column("a", "pct_unfreeze"),
    Column("b", "minus"),
    Column("mean", "difference", "+.4f", "over the images that both validated"),
    Column("low", "95 % from", "+.4f", "interval for this pair alone"),
    Column("high", "95 % to", "+.4f"),
    Column("p", "p", ".3g", "two-sided, for no difference"),
    Column("p_holm", "p (Holm)", ".3g", "corrected for all pairs"),
    Column("test_mean", "test difference", "+.4f", "over the test images"),
    Column("test_low", "test, 95 % from", "+.4f"),
    Column("test_high", "test, 95 % to", "+.4f"),
    Column("only_a", "only first", "d", "test images that only the first classifies correctly"),
    Column("only_b", "only second", "d", "test images that only the second classifies correctly"),
    Column("test_p", "test p", ".3g", "McNemar's exact test, for this pair of networks alone"),
)


def overview_columns(comparison: Comparison) -> list[Column]:
    """Columns of the table of configurations, without those that are empty."""
    rows = overview(comparison)
    columns = [
        Column("label", "pct_unfreeze", "", "fraction of the layer groups that trains"),
        Column("n", "trainings"),
        Column("val", f"validation {comparison.word}", ".3f", "mean over trainings"),
        Column("retraining", "± retraining", ".3f", "half a 95 % interval, over seeds"),
        Column("images", "± other images", ".3f", "half a 95 % interval, over images or groups"),
        Column(
            "test",
            "test",
            ".3f",
            "mean over trainings, at the epochs that validation chose; no choice depends on it",
        ),
        Column("test_retraining", "test ± retraining", ".3f"),
        Column("test_images", "test ± other images", ".3f"),
        Column("sd", "sd", ".3f", "standard deviation between single trainings"),
        Column("best_epoch", "best epoch", "g", "median"),
        Column(
            "epochs_to_95_percent",
            "epochs to 95 %",
            "g",
            "first epoch that reaches 95 % of the best score, median",
        ),
        Column("gap", "overfitting", "+.3f", "training minus validation accuracy, last epoch"),
        Column("loss_gap", "loss gap", "+.3f", "validation minus training loss, last epoch"),
    ]
    return [column for column in columns if any(map(column.text, rows))]


def overview(comparison: Comparison) -> list[dict[str, Any]]:
    """One row per configuration: scores, learning dynamics, costs."""
    return [_overview_row(group, comparison.score_key) for group in comparison.configurations]


def _overview_row(configuration: Configuration, score_key: str) -> dict[str, Any]:
    done = configuration.done
    row: dict[str, Any] = {
        "label": configuration.label,
        "fraction": configuration.fraction,
        "n": len(done),
    }
    if val := configuration.val:
        row |= {"val": val.mean, "sd": val.sd, "low": val.low, "high": val.high}
        row |= {"retraining": val.retraining, "images": val.images}
        row |= {"epoch_optimism": configuration.epoch_optimism}
    if test := configuration.test:
        row |= {"test": test.mean, "test_sd": test.sd}
        row |= {"test_retraining": test.retraining, "test_images": test.images}
    last = [job["history"][-1] for job in done if job["history"]]
    close = [_first_epoch_close_to_best(job["history"], score_key) for job in done]
    gaps = [_subtract(epoch, "train_acc", "val_acc") for epoch in last]
    loss_gaps = [_subtract(epoch, "val_loss", "train_loss") for epoch in last]
    return row | {
        "best_epoch": _aggregate(median, [job["best_epoch"] for job in done]),
        "epochs_to_95_percent": _aggregate(median, close),
        "gap": _aggregate(fmean, gaps),
        "loss_gap": _aggregate(fmean, loss_gaps),
        "seconds": configuration.seconds,
        "prefix_seconds": _aggregate(sum, [job["prefix_seconds"] for job in done]),
        "images_per_second": _aggregate(median, [job["images_per_second"] for job in done]),
        "peak_memory_mb": _aggregate(max, [job["peak_memory_mb"] for job in done]),
        "trainable_params": _aggregate(max, [job["trainable_params"] for job in done]),
    }


def _first_epoch_close_to_best(history: Sequence[dict[str, Any]], key: str) -> int | None:
    scores = [(epoch["epoch"], epoch[key]) for epoch in history if epoch.get(key) is not None]
    best = max((score for _, score in scores), default=0.0)
    return next((epoch for epoch, score in scores if score >= CLOSE_TO_BEST * best), None)


def _subtract(epoch: dict[str, Any], a: str, b: str) -> float | None:
    if epoch.get(a) is None or epoch.get(b) is None:
        return None
    return epoch[a] - epoch[b]


def _aggregate(function: Callable[[list[Any]], Any], values: Sequence[Any]) -> Any:
    """Apply `function` to the values that are not None; None if there are none."""
    known = [value for value in values if value is not None]
    return function(known) if known else None


def jobs(comparison: Comparison) -> list[dict[str, Any]]:
    """One row per job, in any state."""
    key = METRICS[comparison.metric]
    every = [job for group in comparison.configurations for job in group.jobs]
    names = name_trainings([training_of(job) for job in every])
    return [
        job
        | {
            "label": group.label,
            "training": names[training_of(job)],
            "val": job[f"val_{key}"],
            "test": job[f"test_{key}"],
        }
        for group in comparison.configurations
        for job in group.jobs
    ]


def differences(comparison: Comparison) -> list[dict[str, Any]]:
    """One row per compared pair of configurations: their validation and test difference.

    Single trainings have only the latter.
    """
    validated: dict[tuple[str, str], dict[str, float | None]] = {
        (pair.a, pair.b): {
            "p": pair.p,
            "p_holm": pair.p_holm,
            "mean": pair.mean,
            "low": pair.low,
            "high": pair.high,
        }
        for pair in comparison.differences
    }
    nothing: dict[str, float | None] = dict.fromkeys(("p", "p_holm", "mean", "low", "high"))
    return [
        {"a": a, "b": b, **validated.get((a, b), nothing), **_tested(comparison.tested.get((a, b)))}
        for a, b in validated.keys() or comparison.tested.keys()
    ]


def data_columns(data: DataCurves) -> list[Column]:
    """Columns of the table of scores by the number of training images."""
    return [
        Column("label", "pct_unfreeze"),
        *(Column(f"images_{size.limit}", count(size.images)) for size in data.sizes),
    ]


def data_rows(data: DataCurves) -> list[dict[str, Any]]:
    """One row per curve; its scores are text, with halves of 95 % intervals for other images."""
    rows = []
    for curve in data.curves:
        row: dict[str, Any] = {"label": curve.label, "fraction": curve.fraction}
        for point in curve.points:
            if val := point.val:
                margin = "" if val.images is None else f" ±{val.images:.3f}"
                row[f"images_{train_limit(point)}"] = f"{val.mean:.3f}{margin}"
        rows.append(row)
    return rows


def _tested(difference: DifferenceOnTest | None) -> dict[str, Any]:
    interval = difference.interval if difference else None
    mcnemar = difference.mcnemar if difference else None
    return {
        "test_mean": interval.mean if interval else None,
        "test_low": interval.low if interval else None,
        "test_high": interval.high if interval else None,
        "only_a": mcnemar.only_a if mcnemar else None,
        "only_b": mcnemar.only_b if mcnemar else None,
        "test_p": mcnemar.p if mcnemar else None,
    }


def by_class(configuration: Configuration) -> list[dict[str, Any]]:
    """Scores by class for validation and test: means over trainings, and summed confusion matrices.

    Skips a split if its jobs differ in the number of classes.
    """
    splits = (("val", "validation"), ("test", "test"))
    tables = [_by_class_in_split(configuration, key, name) for key, name in splits]
    return [table for table in tables if table]


def _by_class_in_split(configuration: Configuration, key: str, name: str) -> dict[str, Any] | None:
    summaries = [
        job["summary"] for job in configuration.done if job["summary"].get(f"{key}_recall")
    ]
    if not summaries or len(_class_counts(summaries, key)) > 1:
        return None
    matrices = [summary.get(f"{key}_confusion") for summary in summaries]
    recalls = list(zip(*(summary[f"{key}_recall"] for summary in summaries), strict=True))
    scores = (("accuracy", "acc"), ("macro F1", "macro_f1"), ("AUROC", "auroc"))
    return {
        "split": name,
        "classes": summaries[0].get("classes") or [str(index) for index in range(len(recalls))],
        "scores": {
            word: _aggregate(fmean, [summary.get(f"{key}_{score}") for summary in summaries])
            for word, score in scores
        },
        "recall": [_aggregate(fmean, values) for values in recalls],
        "confusion": _sum_matrices(matrices) if all(matrices) else None,
    }


def _class_counts(summaries: Sequence[dict[str, Any]], key: str) -> set[int]:
    """The class counts found; more than one if the class folders changed between jobs."""
    counts = set()
    for summary in summaries:
        matrix = summary.get(f"{key}_confusion") or []
        counts |= {len(summary[f"{key}_recall"]), len(matrix), *map(len, matrix)}
        counts.add(len(summary.get("classes") or ()))
    return counts - {0}


def _sum_matrices(matrices: Sequence[Any]) -> list[list[int]]:
    return [
        [sum(cells) for cells in zip(*rows, strict=True)] for rows in zip(*matrices, strict=True)
    ]


def epochs(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One row per epoch of each job, with the job's identity: tidy data for statistics tools."""
    identity = ("sweep", "folder", "name", "seed", "pct_unfreeze")
    return [{key: row[key] for key in identity} | epoch for row in rows for epoch in row["history"]]
