"""Where charts put configurations: none hides another."""

from pathlib import Path
from typing import Any

import pytest

from helpers.sweeps import add_job
from tvf.records import read_sweep
from tvf.report.charts import page_charts
from tvf.report.comparison import compare


def layers_of(sweep: Path) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """The layers of the main chart: how each is drawn, and its points."""
    (comparison,) = compare(read_sweep(sweep))
    fractions = {group.fraction for group in comparison.configurations}
    chart = page_charts(comparison, dict.fromkeys(fractions, "#000"))["score"]
    return [
        (layer["encoding"], chart["datasets"][layer["data"]["name"]]) for layer in chart["layer"]
    ]


def test_configurations_of_one_fraction_stand_side_by_side(tmp_path: Path) -> None:
    for fraction in (0.0, 0.25, 1.0):
        add_job(tmp_path, fraction, 1, [0.5, 0.6 + fraction / 10])
    add_job(tmp_path, 0.0, 1, [0.5, 0.65], changes={"optimizer.lr": 0.5})
    means = layers_of(tmp_path)[0][1]
    places = sorted(point["place"] for point in means)
    assert len({*places}) == 4 and places == pytest.approx([0, 0, 0.25, 1], abs=0.02)
    alone = {point["place"] for point in means if point["fraction"]}
    assert alone == {0.25, 1.0}
    assert places[0] == -places[1] != 0


def test_configurations_that_differ_elsewhere_have_a_row_each(tmp_path: Path) -> None:
    for rate in (0.001, 0.01, 0.1):
        add_job(tmp_path, 0.5, 1, [0.5, 0.6 + rate], changes={"optimizer.lr": rate})
    for encoding, points in layers_of(tmp_path):
        assert encoding["y"]["field"] == "label"
        rows = [point["label"] for point in points]
        assert len({*rows}) == 3 and "optimizer.lr=0.001" in rows[0]
