"""The comparison in the forms that people want it in: a page, a Markdown table, CSV, JSON, a figure."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tvf.files import finite, write_whole
from tvf.records import COLUMNS, Row, csv_text
from tvf.report import tables
from tvf.report.comparison import Comparison, compare
from tvf.report.html import render_html, sweep_commands, test_sentence

FORMATS = ("html", "md", "csv", "json", "png")


def render_report(folders: Sequence[Path], rows: Sequence[Row], kind: str) -> dict[str, bytes]:
    """The comparison of the jobs of the sweeps in `folders` in one of FORMATS: file names and what is in them."""
    if kind == "csv":
        epochs = tables.epochs(rows)
        columns = list(dict.fromkeys(key for row in epochs for key in row))
        return {
            "results.csv": csv_text(rows, COLUMNS).encode(),
            "epochs.csv": csv_text(epochs, columns).encode(),
        }
    comparisons = compare(rows)
    if kind == "md":
        return {"report.md": render_markdown(folders, comparisons).encode()}
    if kind == "json":
        text = json.dumps(finite(report_data(folders, comparisons)), indent=2, allow_nan=False)
        return {"report.json": (text + "\n").encode()}
    if kind == "png":
        from tvf.report.figure import draw_figure

        return {f"report.{each}": draw_figure(comparisons, each) for each in ("png", "svg")}
    return {"report.html": render_html(folders, rows, comparisons).encode()}


def write_files(files: dict[str, bytes], folder: Path) -> list[Path]:
    """Write what `make` made; raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_whole(folder / name, content)
    return [folder / name for name in files]


def render_markdown(folders: Sequence[Path], comparisons: Sequence[Comparison]) -> str:
    """The recommendation and the table of configurations, mean ± sample standard deviation over seeds."""
    lines = []
    for each in comparisons:
        lines += [f"### {each.title}", ""] if each.title else []
        lines += [each.choice.text, *([test_sentence(each)] if test_sentence(each) else []), ""]
        word = each.word
        lines.append(
            f"| `pct_unfreeze` | seeds | validation {word} | 95 % interval | test {word} | seconds a job | trainable |"
        )
        lines.append("|---|---|---|---|---|---|---|")
        for row in tables.overview(each):
            cells = [
                row["label"].replace("|", r"\|"),
                row["n"],
                _spread(row.get("val"), row.get("sd")),
                f"{row['low']:.3f} to {row['high']:.3f}" if row.get("low") is not None else "",
                _spread(row.get("test"), row.get("test_sd")),
                "" if row["seconds"] is None else f"{row['seconds']:.1f}",
                "" if row["trainable_params"] is None else f"{row['trainable_params']:,}",
            ]
            lines.append(f"| {' | '.join(map(str, cells))} |")
        lines += ["", *(f"- {note}" for note in each.notes), *([""] if each.notes else [])]
    lines += [f"`{command}`" for folder in folders for command in sweep_commands(folder)]
    return "\n".join(lines).rstrip() + "\n"


def _spread(mean: float | None, sd: float | None) -> str:
    if mean is None:
        return ""
    return f"{mean:.3f}" if sd is None else f"{mean:.3f} ± {sd:.3f}"


def report_data(folders: Sequence[Path], comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Everything in the page, for programs."""
    return {
        "sweeps": [
            {"folder": str(folder), "commands": sweep_commands(folder)} for folder in folders
        ],
        "comparisons": [
            {
                "data": each.title,
                "metric": each.metric,
                "recommendation": each.choice.text,
                "chosen": each.choice.chosen.label if each.choice.chosen else None,
                "best": each.choice.best.label if each.choice.best else None,
                "pareto_front": each.front,
                "configurations": [
                    row
                    | {"scores": {str(seed): score for seed, score in configuration.scores.items()}}
                    | {"by_class": tables.by_class(configuration)}
                    for row, configuration in zip(
                        tables.overview(each), each.configurations, strict=True
                    )
                ],
                "differences": tables.differences(each),
                "jobs": [
                    {key: row[key] for key in ("label", *COLUMNS)} for row in tables.jobs(each)
                ],
                "notes": each.notes,
            }
            for each in comparisons
        ],
    }
