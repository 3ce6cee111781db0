"""A comparison in every output format: HTML page, Markdown table, CSV, JSON, PNG with SVG."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tvf.files import encode_text, finite, write_whole
from tvf.records import COLUMNS, Row, csv_text
from tvf.report import tables
from tvf.report.calibration import mean_calibration
from tvf.report.commands import sweep_commands
from tvf.report.comparison import Comparison, compare
from tvf.report.configuration import Configuration, name_trainings
from tvf.report.confirmation import Confirmation
from tvf.report.data_curves import DataCurve, DataCurves, Outlook, train_images
from tvf.report.data_sentences import DATA_HEADING, describe_data
from tvf.report.raced import race_data
from tvf.report.sentences import conclusions, describe_errors, describe_test_score

FORMATS = ("html", "md", "csv", "json", "png")


def render_report(
    folders: Sequence[Path],
    rows: Sequence[Row],
    kind: str,
    margin: float | None = None,
    comparisons: Sequence[Comparison] | None = None,
) -> dict[str, bytes]:
    """Render the comparison of `rows`, the jobs of the sweeps in `folders`, in one of FORMATS.

    `margin` is that of `compare`; `comparisons` is its result, if known. Returns file contents by
    file name.
    """
    if kind == "csv":
        epochs = tables.epochs(rows)
        columns = list(dict.fromkeys(key for row in epochs for key in row))
        return {
            "results.csv": encode_text(csv_text(rows, COLUMNS)),
            "epochs.csv": encode_text(csv_text(epochs, columns)),
        }
    comparisons = compare(rows, margin) if comparisons is None else comparisons
    if kind == "md":
        return {"report.md": encode_text(render_markdown(folders, comparisons))}
    if kind == "json":
        text = json.dumps(finite(report_data(folders, comparisons)), indent=2, allow_nan=False)
        return {"report.json": encode_text(text + "\n")}
    # The libraries behind charts and pages are slow to import.
    if kind == "png":
        from tvf.report.pictures import draw_figure

        return {f"report.{suffix}": draw_figure(comparisons, suffix) for suffix in ("png", "svg")}
    from tvf.report.html import render_html

    return {"report.html": encode_text(render_html(folders, rows, comparisons))}


def write_files(files: dict[str, bytes], folder: Path) -> list[Path]:
    """Write the files that `render_report` returns; raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_whole(folder / name, content)
    return [folder / name for name in files]


def render_markdown(folders: Sequence[Path], comparisons: Sequence[Comparison]) -> str:
    """The recommendation and the table of configurations, each score with its errors (95 %)."""
    lines = []
    for comparison in comparisons:
        if comparison.title:
            lines += [f"### {comparison.title}", ""]
        lines += ["\n\n".join([*conclusions(comparison), describe_errors(comparison)])]
        lines += ["", *_markdown_table(comparison), ""]
        if comparison.data:
            lines += [*_markdown_data(comparison.data, comparison.word), ""]
        if comparison.notes:
            lines += [*(f"- {note}" for note in comparison.notes), ""]
    lines += [f"`{command}`" for folder in folders for command in sweep_commands(folder)]
    return "\n".join(lines).rstrip() + "\n"


def _markdown_data(data: DataCurves, word: str) -> list[str]:
    """How much data: the sentences, and scores by the number of training images."""
    columns = tables.data_columns(data)
    headings = [f"`{columns[0].heading}`", *(column.heading for column in columns[1:])]
    lines = [f"**{DATA_HEADING}** {' '.join(describe_data(data, word))}", ""]
    lines += [f"Validation {word} (± other images) by the number of training images:", ""]
    lines += [f"| {' | '.join(headings)} |", "|" + "---|" * len(headings)]
    for row in tables.data_rows(data):
        cells = [column.text(row).replace("|", r"\|") for column in columns]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _markdown_table(comparison: Comparison) -> list[str]:
    word = comparison.word
    headings = [
        "`pct_unfreeze`",
        "trainings",
        f"validation {word}",
        "retraining",
        "other images",
        f"test {word}",
        "test, other images",
        "seconds per job",
        "trainable",
    ]
    lines = [f"| {' | '.join(headings)} |", "|" + "---|" * len(headings)]
    for row in tables.overview(comparison):
        seconds, trainable = row["seconds"], row["trainable_params"]
        cells = [
            row["label"].replace("|", r"\|"),
            str(row["n"]),
            _number(row.get("val"), ".3f"),
            _number(row.get("retraining"), "±.3f"),
            _number(row.get("images"), "±.3f"),
            _number(row.get("test"), ".3f"),
            _number(row.get("test_images"), "±.3f"),
            "" if seconds is None else f"{seconds:.1f}",
            "" if trainable is None else f"{trainable:,}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _number(value: float | None, form: str) -> str:
    if value is None:
        return ""
    return f"±{value:{form[1:]}}" if form.startswith("±") else f"{value:{form}}"


def report_data(folders: Sequence[Path], comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Everything on the page, for programs."""
    return {
        "sweeps": [
            {"folder": str(folder), "commands": sweep_commands(folder)} for folder in folders
        ],
        "comparisons": [_comparison_data(comparison) for comparison in comparisons],
    }


def _comparison_data(comparison: Comparison) -> dict[str, Any]:
    choice = comparison.choice
    rows = tables.overview(comparison)
    return {
        "data": comparison.title,
        "metric": comparison.metric,
        "recommendation": choice.text,
        "confirmation": _confirmation_data(comparison.confirmation),
        "race": race_data(comparison.configurations),
        "test_score": describe_test_score(comparison) or None,
        "errors": describe_errors(comparison),
        "decided": choice.decided,
        "to_decide": choice.more,
        "optimism": comparison.evidence.optimism if comparison.evidence else None,
        "epoch_optimism": comparison.evidence.epoch_optimism if comparison.evidence else None,
        "chosen": choice.chosen.label if choice.chosen else None,
        "best": choice.best.label if choice.best else None,
        "pareto_front": comparison.front,
        "configurations": [
            _configuration_data(row, configuration)
            for row, configuration in zip(rows, comparison.configurations, strict=True)
        ],
        "differences": tables.differences(comparison),
        "jobs": [{key: row[key] for key in ("label", *COLUMNS)} for row in tables.jobs(comparison)],
        "notes": comparison.notes,
        "candidates": [group.label for group in comparison.candidates],
        "how_much_data": _data(comparison.data, comparison.word) if comparison.data else None,
    }


def _data(data: DataCurves, word: str) -> dict[str, Any]:
    return {
        "text": " ".join(describe_data(data, word)),
        "sizes": [
            {
                "train_images": size.images,
                "highest": size.highest,
                "probability_worse": size.worse,
                "may_do_as_well": size.rivals,
            }
            for size in data.sizes
        ],
        "curves": [_curve_data(curve) for curve in data.curves],
        "outlook": _outlook_data(data.outlook) if data.outlook else None,
    }


def _curve_data(curve: DataCurve) -> dict[str, Any]:
    law = curve.law
    return {
        "label": curve.label,
        "fraction": curve.fraction,
        "points": [
            {
                "configuration": point.label,
                "train_images": train_images(point),
                "score": point.val.mean,
                "retraining": point.val.retraining,
                "images": point.val.images,
            }
            for point in curve.points
            if point.val
        ],
        "power_law": {"a": law.a, "b": law.b, "c": law.c, "p": law.fit} if law else None,
    }


def _outlook_data(outlook: Outlook) -> dict[str, Any]:
    other, difference = outlook.other, outlook.difference
    return {
        "label": outlook.curve.label,
        "train_images": outlook.images,
        "gain": outlook.gain._asdict(),
        "other": other.label if other else None,
        "difference": difference._asdict() if difference else None,
    }


def _confirmation_data(confirmation: Confirmation | None) -> dict[str, Any] | None:
    if confirmation is None:
        return None
    difference = confirmation.difference and confirmation.difference.interval
    return {
        "text": confirmation.text,
        "confirmed": confirmation.confirmed,
        "configurations": [
            {
                "label": group.label,
                "n": len(group.done),
                "val": group.val and group.val.mean,
                "retraining": group.val and group.val.retraining,
                "images": group.val and group.val.images,
            }
            for group in confirmation.configurations
        ],
        "difference": difference
        and {key: getattr(difference, key) for key in ("mean", "low", "high")},
    }


def _configuration_data(row: dict[str, Any], configuration: Configuration) -> dict[str, Any]:
    names = name_trainings([*configuration.scores])
    scores = {names[training]: score for training, score in configuration.scores.items()}
    return row | {
        "scores": scores,
        "by_class": tables.by_class(configuration),
        "calibration": mean_calibration(configuration.done),
    }
