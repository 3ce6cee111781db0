"""The main figure as PNG and SVG: the page's charts, black on white, drawn without a browser."""

import json
from collections.abc import Sequence
from typing import Any

import altair as alt
import vl_convert

from tvf.report.charts import configure, score_by_cost, score_by_fraction
from tvf.report.comparison import Comparison
from tvf.report.encodings import INK, Palette
from tvf.report.palette import colours

WIDTH, HEIGHT = 380, 300  # of one chart without its axes, in pixels of 1/72 inch
PPI = 200  # of the PNG
FONT = "Liberation Sans, Arial, Helvetica, sans-serif"  # the first comes with vl_convert
LEGEND_COLUMNS = 12  # before further fractions go onto another line
FRACTION_CAPTION = "filled: mean with 95 % interval; open: one seed"
COST_CAPTION = "ringed: Pareto front"


def draw_figure(comparisons: Sequence[Comparison], kind: str) -> bytes:
    """Draw score by fraction beside score by cost, a row for each comparison.

    `kind` is png or svg. Text in an SVG stays text. The same comparisons give the same bytes.
    """
    specification = _specification(comparisons)
    if kind == "svg":
        return vl_convert.vegalite_to_svg(specification).encode()
    return vl_convert.vegalite_to_png(specification, ppi=PPI)


def _specification(comparisons: Sequence[Comparison]) -> str:
    palette = colours(
        configuration.fraction
        for comparison in comparisons
        for configuration in comparison.configurations
    )
    rows = [_draw_row(comparison, palette) for comparison in comparisons] or [_note("No jobs.", "")]
    figure = alt.vconcat(*rows, spacing=40).resolve_scale(color="independent", shape="independent")
    figure = configure(figure, FONT).configure_title(color=INK, anchor="start", fontSize=14)
    figure.config.legend.columns = LEGEND_COLUMNS
    figure.config.legend.symbolLimit = 0
    specification = figure.properties(background="white", padding=12).to_dict()
    return json.dumps(specification).replace(INK, "black")


def _draw_row(comparison: Comparison, palette: Palette) -> Any:
    if not any(configuration.val for configuration in comparison.configurations):
        return _note("No finished jobs.", comparison.title)
    by_fraction = _place(score_by_fraction(comparison, palette), FRACTION_CAPTION)
    by_cost = _place(score_by_cost(comparison, palette), COST_CAPTION)
    row = alt.hconcat(by_fraction, by_cost, spacing=30)
    return row.properties(title=comparison.title) if comparison.title else row


def _place(chart: alt.LayerChart, caption: str) -> alt.LayerChart:
    title = alt.TitleParams(caption, fontSize=11, fontWeight="normal", anchor="end")
    return chart.properties(width=WIDTH, height=HEIGHT, title=title)


def _note(text: str, title: str) -> alt.Chart:
    """A row with nothing to draw."""
    values = alt.InlineData(values=[{"text": text}])
    note = alt.Chart(values).mark_text(fontSize=13, color=INK).encode(text="text:N")
    return note.properties(title=title, width=2 * WIDTH, height=60)
