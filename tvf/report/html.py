"""report.html: the comparison as one file that needs no network. Its text and tables are report.html.jinja's."""

import shlex
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import platformdirs
import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tvf.config import flatten, result_config
from tvf.files import write_whole
from tvf.records import DROPPED, Row, is_halving, read_commands
from tvf.report import tables
from tvf.report.charts import charts, colours
from tvf.report.comparison import Comparison, about_seeds


def render_html(
    folders: Sequence[Path], rows: Sequence[Row], comparisons: Sequence[Comparison]
) -> str:
    """The page of the sweeps in `folders`, whose jobs are `rows`."""
    palette = colours(
        each.fraction for comparison in comparisons for each in comparison.configurations
    )
    parts = [_part(f"part{index}", each, palette) for index, each in enumerate(comparisons)]
    common, differing = _configs(rows)
    environment = Environment(
        loader=PackageLoader("tvf.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=False,
    )
    compared = sum(
        len(configuration.jobs) for each in comparisons for configuration in each.configurations
    )
    without = f"{len(rows) - compared} of {len(rows)} jobs have no config that can be read: they are left out."
    return environment.get_template("report.html.jinja").render(
        title=", ".join(folder.name for folder in folders),
        when=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        jobs=len(rows),
        warnings=[without] if compared < len(rows) else [],
        parts=parts,
        sweeps=[{"folder": str(folder), "commands": _given(folder)} for folder in folders],
        unfinished=[
            _quoted(folder) for folder in folders if any(_stopped(row, folder) for row in rows)
        ],
        common=common,
        differing=differing,
        versions=_distinct(rows, "versions"),
        machines=_distinct(rows, "machine"),
        approximations=list(
            dict.fromkeys(a for row in rows for a in row["summary"].get("approximations") or ())
        ),
        bundle=Markup(_vega()),
        specifications={
            f"{part['id']}-{name}": spec for part in parts for name, spec in part["charts"].items()
        },
    )


def _stopped(row: Row, folder: Path) -> bool:
    on = row["state"] == "paused" and not row[DROPPED] and is_halving(folder)
    return row["sweep"] == folder.name and (
        on or row["state"] in ("failed", "interrupted", "waiting")
    )


def _quoted(folder: Path) -> str:
    return shlex.quote(str(folder))


def _given(folder: Path) -> list[str]:
    """The commands with the folders that they were given in, to which their paths are relative."""
    return [
        f"cd {shlex.quote(str(command['folder']))} && {text}"
        for command, text in zip(read_commands(folder), sweep_commands(folder), strict=True)
    ]


def sweep_commands(folder: Path) -> list[str]:
    """The commands that make the sweep in `folder` again."""
    return [
        shlex.join(["tvf", "train", *map(str, command["arguments"])])
        for command in read_commands(folder)
    ]


def _part(name: str, comparison: Comparison, palette: dict[float, str]) -> dict[str, Any]:
    choice = comparison.choice
    overview, jobs = tables.overview(comparison), tables.jobs(comparison)
    fractions = {each.label: each.fraction for each in comparison.configurations}
    for row in (*overview, *jobs):
        row["colour"] = palette[fractions[row["label"]]]
    for row in jobs:
        row["link"] = (
            row["wandb_url"] if str(row["wandb_url"]).startswith(("https://", "http://")) else None
        )
    shown = choice.chosen or choice.best
    return {
        "id": name,
        "comparison": comparison,
        "charts": charts(comparison, palette),
        "chosen": choice.chosen.label if choice.chosen else None,
        "tested": test_sentence(comparison),
        "seeds": about_seeds(comparison),
        "overview": overview,
        "overview_columns": tables.overview_columns(comparison),
        "cost_columns": tables.COSTS,
        "differences": tables.differences(comparison),
        "difference_columns": tables.DIFFERENCES,
        "pairs": f"{comparison.pairs}. The same seed means the same sample order and first head.",
        "by_class": tables.by_class(shown) if shown else [],
        "by_class_of": shown.label if shown else "",
        "jobs": jobs,
        "job_columns": [
            *([tables.SWEEP] if len({row["sweep"] for row in jobs}) > 1 else []),
            *tables.JOBS,
        ],
    }


def test_sentence(comparison: Comparison) -> str:
    """The test score of what validation chose; nothing where it chose nothing, or the test images did the choosing."""
    chosen = comparison.choice.chosen
    if (
        chosen is None
        or chosen.test is None
        or chosen.done[0]["config"]["data"].get("validate_on") == "test"
    ):
        return ""
    test, spread = chosen.test, ""
    if test.low is not None and test.high is not None:
        spread = f" (95 % interval {test.low:.3f} to {test.high:.3f} over {test.n} seeds)"
    return f"On the test images, which nothing was chosen by, {chosen} has {comparison.word} {test.mean:.3f}{spread}."


def _configs(rows: Sequence[Row]) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """What all jobs' configs have in common, and the values of the rest."""
    flat = [
        {k: v for k, v in flatten(result_config(row["config"])).items() if k != "name"}
        for row in rows
    ]
    keys = dict.fromkeys(key for each in flat for key in each)
    values = {
        key: list(dict.fromkeys(str(each[key]) for each in flat if key in each)) for key in keys
    }
    everywhere = {key for key in keys if all(key in each for each in flat)}
    common = {
        key: found[0] for key, found in values.items() if len(found) == 1 and key in everywhere
    }
    return common, {key: sorted(found) for key, found in values.items() if key not in common}


def _distinct(rows: Sequence[Row], key: str) -> list[str]:
    told = (row["summary"].get(key) or {} for row in rows)
    return list(
        dict.fromkeys(
            ", ".join(f"{k} {v}" for k, v in each.items() if v is not None) for each in told if each
        )
    )


def _vega() -> str:
    """Vega, Vega-Lite and vega-embed as one script. Bundling takes seconds, so the user's cache folder keeps it."""
    path = Path(platformdirs.user_cache_dir("tvf")) / f"vega-{version('vl-convert-python')}.js"
    with suppress(OSError):
        return path.read_text("utf-8")
    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace(
        "</script", "<\\/script"
    )
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, script.encode())
    return script
