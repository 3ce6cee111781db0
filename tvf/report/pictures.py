"""The main figure as PNG and SVG: the page's charts, black on white, drawn without a browser."""

import json
from collections.abc import Sequence
from typing import Any

import altair as alt
import vl_convert

from tvf.report.charts import chart_config, score_by_choice, score_by_cost, varies_elsewhere
from tvf.report.comparison import Comparison
from tvf.report.data_chart import score_by_images
from tvf.report.encodings import INK, LayeredChart, Palette, to_vega_lite, unchecked
from tvf.report.palette import colours

WIDTH, HEIGHT = 380, 300  # of one chart without its axes, in pixels of 1/72 inch
PPI = 200  # of the PNG
FONT = "Liberation Sans, Arial, Helvetica, sans-serif"  # the first comes with vl_convert
LEGEND_COLUMNS = 12  # fractions per line of the legend


def draw_figure(comparisons: Sequence[Comparison], kind: str) -> bytes:
    """Draw score by choice beside score by cost, a row for each comparison's candidates.

    Where the number of training images varies, score by that number stands beside them.

    `kind` is png or svg. Text in an SVG remains text. The same comparisons give the same bytes.
    """
    specification = _specification([comparison.of_candidates() for comparison in comparisons])
    if kind == "svg":
        return vl_convert.vegalite_to_svg(specification).encode()
    return vl_convert.vegalite_to_png(specification, ppi=PPI)


@unchecked
def _specification(comparisons: Sequence[Comparison]) -> str:
    """The figure in Vega-Lite, with INK replaced by black."""
    palette = colours(
        configuration.fraction
        for comparison in comparisons
        for configuration in comparison.configurations
    )
    config = chart_config(FONT)
    config["legend"] |= {"columns": LEGEND_COLUMNS, "symbolLimit": 0}  # no limit: all fractions
    config["title"] = {"color": INK, "anchor": "start", "fontSize": 14}
    rows = [_row(comparison, palette) for comparison in comparisons]
    datasets: dict[str, Any] = {}
    for row in rows:
        for chart in row.get("hconcat", ()):
            datasets |= chart.pop("datasets")
    figure = {
        "$schema": alt.SCHEMA_URL,
        "config": config,
        "background": "white",
        "padding": 12,
        "datasets": datasets,
        "vconcat": rows or [_note("No jobs.", title="")],
        "spacing": 40,
        "resolve": {"scale": {"color": "independent", "shape": "independent"}},
    }
    return json.dumps(figure).replace(INK, "black")


def _row(comparison: Comparison, palette: Palette) -> dict[str, Any]:
    if not any(configuration.val for configuration in comparison.configurations):
        return _note("No finished jobs.", comparison.title)
    by_choice = score_by_choice(comparison, palette)
    by_cost = score_by_cost(comparison, palette)
    covered = sorted({group.val.covers for group in comparison.configurations if group.val} - {""})
    about = f" for {' or '.join(covered)}" if covered else ""
    caption = f"filled: mean with 95 % interval{about}; open: one training"
    charts = [
        _chart(by_choice, caption, rows=varies_elsewhere(comparison)),
        _chart(by_cost, "ringed: Pareto front"),
    ]
    if comparison.data:
        by_images = score_by_images(comparison, palette)
        charts.append(_chart(by_images, "mean with 95 % interval; dashed: power law"))
    return {"title": comparison.title, "hconcat": charts, "spacing": 30}


def _chart(chart: LayeredChart, caption: str, rows: bool = False) -> dict[str, Any]:
    """A chart of the figure's size; one with `rows` is as high as they are, if that is more."""
    title = {"text": caption, "fontSize": 11, "fontWeight": "normal", "anchor": "end"}
    specification = to_vega_lite(chart)
    for key in ("$schema", "config"):  # belong to the figure
        del specification[key]
    height = max(HEIGHT, specification["height"]) if rows else HEIGHT
    return specification | {"title": title, "width": WIDTH, "height": height}


def _note(text: str, title: str) -> dict[str, Any]:
    """A row without charts."""
    return {
        "title": title,
        "width": 2 * WIDTH,
        "height": 60,
        "data": {"values": [{"text": text}]},
        "mark": {"type": "text", "fontSize": 13, "color": INK},
        "encoding": {"text": {"field": "text"}},
    }
