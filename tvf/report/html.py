"""report.html: the comparison as one file that needs no network.

Text and tables are in report.html.jinja; this module collects the template's values.
"""

import shlex
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tvf.config import result_config
from tvf.files import cache_folder, write_whole
from tvf.records import DROPPED, TRIAL, Row, is_halving, is_tracked, sweep_name
from tvf.report import tables
from tvf.report.calibration import SPLITS, mean_calibration
from tvf.report.charts import page_charts, page_specification, varies_elsewhere
from tvf.report.commands import sweep_commands_with_folders
from tvf.report.comparison import Comparison
from tvf.report.configuration import Configuration
from tvf.report.curves import count_epochs
from tvf.report.data_sentences import DATA_HEADING, describe_data
from tvf.report.encodings import Palette, unchecked
from tvf.report.gallery import BYTES, collect_gallery
from tvf.report.palette import colours
from tvf.report.prediction_charts import (
    MOST_CLASSES,
    confused_pairs,
    confusion_heat_map,
    count_confusion,
    reliability_diagram,
)
from tvf.report.sentences import describe_errors, describe_test_score


def render_html(
    folders: Sequence[Path], rows: Sequence[Row], comparisons: Sequence[Comparison]
) -> str:
    """Render the page of the sweeps in `folders`, whose jobs are `rows`."""
    palette = colours(
        configuration.fraction
        for comparison in comparisons
        for configuration in comparison.configurations
    )
    sections = [
        _section(f"part{index}", comparison, palette, BYTES // len(comparisons))
        for index, comparison in enumerate(comparisons)
    ]
    common, differing = _split_configs(rows)
    return _template().render(
        title=", ".join(map(sweep_name, folders)),
        when=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        jobs=len(rows),
        warnings=_warn_of_skipped_jobs(rows, comparisons),
        sections=sections,
        sweeps=[
            {"folder": str(folder), "commands": sweep_commands_with_folders(folder)}
            for folder in folders
        ],
        unfinished=[
            shlex.quote(str(folder))
            for folder in folders
            if any(_can_resume(row, folder) for row in rows)
        ],
        common=common,
        differing=differing,
        versions=_distinct_descriptions(rows, "versions"),
        machines=_distinct_descriptions(rows, "machine"),
        approximations=list(
            dict.fromkeys(
                approximation
                for row in rows
                for approximation in row["summary"].get("approximations") or ()
            )
        ),
        bundle=Markup(_vega_script()),
        specifications={
            f"{section['id']}-{name}": specification
            for section in sections
            for name, specification in section["charts"].items()
        },
    )


@cache
def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("tvf.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=False,
    )
    return environment.get_template("report.html.jinja")


def _warn_of_skipped_jobs(rows: Sequence[Row], comparisons: Sequence[Comparison]) -> list[str]:
    compared = sum(
        len(configuration.jobs)
        for comparison in comparisons
        for configuration in comparison.configurations
    )
    if compared == len(rows):
        return []
    return [
        f"{len(rows) - compared} of {len(rows)} jobs are not shown: their config is unreadable."
    ]


def _can_resume(row: Row, folder: Path) -> bool:
    """Whether the job belongs to this sweep and `tvf resume` would train it."""
    if row["sweep"] != sweep_name(folder):
        return False
    if row["state"] == "paused":
        return not row[DROPPED] and is_halving(folder)
    if row[TRIAL] == "failed":  # a search is told only once how a trial ended
        return False
    return row["state"] in ("failed", "interrupted", "waiting")


def _section(
    identifier: str, comparison: Comparison, palette: Palette, picture_bytes: int
) -> dict[str, Any]:
    """The template's values for one comparison, with pictures of at most so many bytes."""
    choice = comparison.choice
    overview, jobs = tables.overview(comparison), tables.jobs(comparison)
    data = comparison.data
    data_rows = tables.data_rows(data) if data else []
    differences = tables.differences(comparison)
    fractions = {group.label: group.fraction for group in comparison.configurations}
    for row in (*overview, *jobs):
        row["colour"] = palette[fractions[row["label"]]]
    for row in data_rows:
        row["colour"] = palette[row["fraction"]]
    for row in jobs:
        is_link = str(row["wandb_url"]).startswith(("https://", "http://"))
        row["link"] = row["wandb_url"] if is_link else None
    several_sweeps = len({row["sweep"] for row in jobs}) > 1
    shown = choice.chosen or choice.best
    charts, candidates = page_charts(comparison, palette), comparison.of_candidates()
    if shown:
        charts |= _prediction_charts(shown, palette[shown.fraction])
    return {
        "id": identifier,
        "comparison": comparison,
        "charts": charts,
        "single_epoch": count_epochs(candidates) == 1,
        "by": "configuration" if varies_elsewhere(candidates) else "the fraction that trains",
        "chosen": choice.chosen.label if choice.chosen else None,
        "test_score": describe_test_score(comparison),
        "errors": describe_errors(comparison),
        "covers": _covers(comparison),
        "about_differences": _about_differences(comparison),
        "data_heading": DATA_HEADING,
        "about_data": " ".join(describe_data(data, comparison.word)) if data else "",
        "data_rows": data_rows,
        "data_columns": tables.data_columns(data) if data else [],
        "overview": overview,
        "overview_columns": tables.overview_columns(comparison),
        "cost_columns": tables.COSTS,
        "differences": differences,
        "difference_columns": [
            column
            for column in tables.DIFFERENCES
            if any(row[column.key] is not None for row in differences)
        ],
        "by_class": tables.by_class(shown) if shown else [],
        "shown": shown.label if shown else "",
        "confused_pairs": _confused_pairs(shown) if shown else [],
        "calibration": _calibration_table(shown) if shown else None,
        "gallery": collect_gallery(comparison, shown, picture_bytes) if shown else None,
        "jobs": jobs,
        "job_columns": [
            *([tables.SWEEP] if several_sweeps else []),
            *tables.JOBS,
            *([tables.RUN] if any(map(is_tracked, jobs)) else []),
        ],
    }


@unchecked
def _prediction_charts(shown: Configuration, colour: str) -> dict[str, dict[str, Any]]:
    """The charts of one configuration's predictions that have data."""
    charts = {}
    classes = _classes(shown)
    confusion = count_confusion(shown, classes)
    if confusion is not None and len(classes) <= MOST_CLASSES:
        charts["confusion"] = confusion_heat_map(classes, confusion, colour)
    if (diagram := reliability_diagram(shown, colour)) is not None:
        charts["reliability"] = diagram
    return {name: page_specification(chart) for name, chart in charts.items()}


def _confused_pairs(shown: Configuration) -> list[Any]:
    """The most confused pairs of classes where there are too many for a heat map."""
    classes = _classes(shown)
    confusion = count_confusion(shown, classes) if len(classes) > MOST_CLASSES else None
    return [] if confusion is None else confused_pairs(classes, confusion)


def _classes(shown: Configuration) -> list[str]:
    return [str(name) for name in shown.done[0]["summary"].get("classes") or ()]


def _calibration_table(shown: Configuration) -> dict[str, Any] | None:
    """The scores of probabilities before and after scaling, and the temperature."""
    means = mean_calibration(shown.done)
    if means is None:
        return None
    rows = [
        {"images": f"{name}, {when}", **means[split][kind]}
        for split, name in SPLITS.items()
        if split in means
        for kind, when in (("raw", "before scaling"), ("scaled", "after scaling"))
    ]
    return means | {"rows": rows}


def _covers(comparison: Comparison) -> str:
    """What the bars of the chart are about."""
    covered = {group.val.covers for group in comparison.configurations if group.val}
    return " or ".join(sorted(covered - {""})) or "nothing (one training each)"


def _about_differences(comparison: Comparison) -> str:
    sentences = [f"{comparison.pairs}."] if comparison.pairs else []
    if comparison.evidence and comparison.evidence.images is not None:
        sentences.append(
            "Paired by image: their intervals are for other images and other trainings."
        )
    elif comparison.evidence:
        sentences.append(
            "Paired by seed: their intervals are for repeated training on the same images."
        )
    return " ".join([*sentences, *_about_tests(comparison)])


def _about_tests(comparison: Comparison) -> list[str]:
    """What the differences on the test images are about; empty if there are none."""
    if not comparison.tested:
        return []
    several = any(difference.trainings > 1 for difference in comparison.tested.values())
    about = "other images and other trainings" if several else "other images"
    if comparison.evidence and comparison.evidence.test_validated:
        role = "Some of these images validated other trainings and so took part in the choice."
    else:
        role = "No choice depends on these images: they only check what validation chose."
    return [f"On the test images, intervals are for {about}. {role}"]


def _split_configs(rows: Sequence[Row]) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """The config values that all jobs share, and the values of options that differ."""
    configs = [result_config(row["config"]) for row in rows]
    keys = dict.fromkeys(key for config in configs for key in config)
    common, differing = {}, {}
    for key in keys:
        values = list(dict.fromkeys(str(config[key]) for config in configs if key in config))
        if len(values) == 1 and all(key in config for config in configs):
            common[key] = values[0]
        else:
            differing[key] = sorted(values)
    return common, differing


def _distinct_descriptions(rows: Sequence[Row], key: str) -> list[str]:
    """The distinct values of a mapping in the jobs' summaries, each on one line."""
    descriptions = (row["summary"].get(key) or {} for row in rows)
    return list(
        dict.fromkeys(
            ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)
            for values in descriptions
            if values
        )
    )


def _vega_script() -> str:
    """Vega, Vega-Lite and vega-embed as one script.

    Bundling takes seconds, so the result is kept in the user's cache folder.
    """
    path = None
    with suppress(OSError):
        path = cache_folder() / f"vega-{version('vl-convert-python')}.js"
        return path.read_text("utf-8")
    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    script = script.replace("</script", "<\\/script")
    if path is not None:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, script.encode())
    return script
