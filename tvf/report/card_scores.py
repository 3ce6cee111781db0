"""The sections of a model card with numbers: scores, calibration, confusion; and its tables."""

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from tvf.files import printable
from tvf.metrics import METRICS, WORDS
from tvf.records import Row
from tvf.report.calibration import KINDS, SPLITS, calibration_of
from tvf.report.comparison import Comparison
from tvf.report.configuration import Configuration
from tvf.report.sentences import describe_errors

MANY_CLASSES = 20  # more are not shown one by one


def describe_scores(
    job: Row, comparison: Comparison | None, configuration: Configuration | None
) -> Iterator[str]:
    """The job's scores by split, beside the means of its configuration if there is one."""
    summary = job["summary"]
    if refit := refit_of(job):
        yield (
            "Not measured: it was trained on its validation images too. What to expect is the "
            f"estimate of the sweep {escaped(refit['sweep'])} for {refit['configuration']}, whose "
            f"jobs trained on fewer images: {refit['estimate']}."
        )
        return
    metric = comparison.metric if comparison else job["metric"]
    key, word = METRICS[metric], WORDS[metric]
    names = [(key, word), *((k, WORDS[m]) for m, k in METRICS.items() if m != metric)]
    rows = []
    for split, of_all in _means(configuration):
        for name, label in names:
            if isinstance(value := summary.get(f"{split}_{name}"), float):
                mean = of_all if name == key else ""
                rows.append([f"{SPLITS[split]} {label}", f"{value:.3f}", mean])
    heading = "mean of its configuration's trainings"
    if any(row[2] for row in rows):
        yield markdown_table(["score", "this model", heading], rows)
    else:
        yield markdown_table(["score", "this model"], [row[:2] for row in rows])
    if comparison and configuration:
        yield describe_errors(comparison)
        yield (
            "This is the best of its configuration's trainings by validation, so its own "
            "validation score is too high: the mean says more about what to expect."
            if len(configuration.done) > 1
            else "Validation images chose its epoch, so its validation score is too high."
        )


def _means(configuration: Configuration | None) -> Iterator[tuple[str, str]]:
    """For each split the mean over the configuration's trainings in words; empty without one."""
    for split in SPLITS:
        score = getattr(configuration, split, None)
        yield split, str(score) if score else ""


def describe_calibration(job: Row) -> Iterator[str]:
    """The temperature, and how far probabilities can be believed without and with it."""
    if refit_of(job):
        yield (
            f"Temperature {formatted(_temperature(job), '.3f')}, by which logits are divided: "
            "the median of those of the sweep's jobs (Guo et al. 2017). Not measured for this "
            "model."
        )
        return
    found = calibration_of(job)
    if found is None:
        yield "Not known: a logit is not finite, or the predictions are missing."
        return
    rows = [
        [
            f"{SPLITS[split]}{', scaled' if how == 'scaled' else ''}",
            *(f"{found[split][how][key]:.3f}" for key in ("nll", "brier", "ece")),
        ]
        for split in SPLITS
        if split in found
        for how in KINDS
    ]
    test = found.get("test")
    worse = test is not None and test["scaled"]["nll"] > test["raw"]["nll"]
    yield (
        f"Temperature {found['temperature']:.3f}, fitted on the validation images (Guo et al. "
        "2017), by which logits are divided; predictions stay the same. ECE has 15 bins of equal "
        "size." + (" On the test images it makes probabilities worse." if worse else "")
    )
    yield markdown_table(["images", "negative log-likelihood", "Brier score", "ECE"], rows)


def _temperature(job: Row) -> Any:
    return (job["summary"].get("calibration") or {}).get("temperature")


def describe_confusion(job: Row) -> Iterator[str]:
    """Which classes the test images are taken for."""
    if refit_of(job):
        yield "Not measured."
        return
    classes, matrix = job["summary"].get("classes") or [], job["summary"].get("test_confusion")
    if not matrix or len(classes) > MANY_CLASSES:
        yield "Not shown: there are many classes, or the record lacks it. See `summary.json`."
        return
    yield "Test images, by their class (rows) and by the predicted one (columns)."
    names = [*map(escaped, classes)]
    rows = [[name, *row] for name, row in zip(names, matrix, strict=True)]
    yield markdown_table(["", *names], rows)


def refit_of(job: Row) -> dict[str, Any] | None:
    """What the sweep knows about a job that trained on train + validation; None for others."""
    if not job["config"].get("refit_epochs"):
        return None
    unknown = {"best_epochs": [], "sweep": "?", "configuration": "it", "estimate": "not recorded"}
    return unknown | (job["summary"].get("refit") or {})


def escaped(name: object) -> str:
    """A name that Markdown shows as it is."""
    return escape(printable(name), quote=False)


def formatted(value: Any, form: str = ",") -> str:
    """A number in this form, or that it is unknown."""
    return format(value, form) if isinstance(value, int | float) else "unknown"


def markdown_table(headings: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown; integers get thousands separators."""
    lines = [_line(headings), "|" + "---|" * len(headings), *map(_line, rows)]
    return "\n".join(lines)


def _line(cells: Sequence[object]) -> str:
    texts = [f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in cells]
    return f"| {' | '.join(text.replace('|', chr(92) + '|') for text in texts)} |"
