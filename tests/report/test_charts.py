"""Where charts put configurations: none hides another."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.sweeps import add_job
from tvf.records import read_sweep
from tvf.report.charts import ROW, cost_ticks, page_charts
from tvf.report.comparison import compare
from tvf.report.formats import render_report


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
    assert places == pytest.approx([-0.015, 0.015, 0.25, 1])  # marks are 0.03 of the axis wide
    alone = {point["place"] for point in means if point["fraction"]}
    assert alone == {0.25, 1.0}


@given(st.floats(1e-3, 1e7), st.floats(1, 1e6))
def test_the_axis_of_costs_has_few_round_ticks_in_its_range(low: float, times: float) -> None:
    ticks = cost_ticks([low, low * times])
    assert 1 <= len(ticks) <= 6 and ticks == sorted({*ticks})
    assert low * 0.999 <= ticks[0] and ticks[-1] <= low * times * 1.001
    assert len(ticks) >= 2 or times <= 1.01


def test_ticks_are_what_one_would_choose() -> None:
    assert cost_ticks([95, 4200]) == [100, 200, 500, 1000, 2000]
    assert cost_ticks([0.8, 3000]) == [1, 10, 100, 1000]
    assert cost_ticks([33.2, 36.1]) == [33.5, 34, 34.5, 35, 35.5, 36]
    assert cost_ticks([4.3, 17]) == [5, 10, 15]
    assert cost_ticks([2, 200]) == [3, 10, 30, 100]
    assert cost_ticks([7.3]) == [7.3] and cost_ticks([]) == []


def test_many_configurations_of_a_fraction_stay_near_it(tmp_path: Path) -> None:
    for number in range(20):
        changes = {"optimizer.lr": 0.001 * (number + 1)}
        add_job(tmp_path, 0.25 * (number % 2), 1, [0.5, 0.6], changes=changes)
    means = layers_of(tmp_path)[0][1]
    assert len({point["place"] for point in means}) == 20
    assert all(abs(point["place"] - point["fraction"]) < 0.125 for point in means)


def test_configurations_that_differ_elsewhere_have_a_row_each(tmp_path: Path) -> None:
    for rate in (0.001, 0.01, 0.00001):
        add_job(tmp_path, 0.5, 1, [0.5, 0.6 + rate], changes={"optimizer.lr": rate})
    labels = [f"0.5, optimizer.lr={rate}" for rate in ("1e-05", "0.001", "0.01")]
    for encoding, points in layers_of(tmp_path):
        assert encoding["y"]["field"] == "label" and encoding["y"]["sort"] == labels
        assert encoding["x"]["scale"]["domain"][0] > 0.5  # no axis from zero on
        assert [point["label"] for point in points] == labels
    page = render_report([tmp_path], read_sweep(tmp_path), "html")["report.html"].decode()
    assert "Validation accuracy by configuration. Filled marks" in page


def test_rows_are_as_high_as_all_of_them_take(tmp_path: Path) -> None:
    for rate in (0.001, 0.002):
        for seed in (1, 2):
            add_job(tmp_path, 0.5, seed, [0.5, 0.6 + rate], changes={"optimizer.lr": rate})
    (comparison,) = compare(read_sweep(tmp_path))
    of_one = replace(comparison.configurations[0], val=None)  # as of a loser of a race
    comparison = replace(comparison, configurations=[of_one, comparison.configurations[1]])
    chart = page_charts(comparison.of_candidates(), {0.5: "#000"})["score"]
    assert chart["height"] == 2 * ROW
