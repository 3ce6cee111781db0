"""How much data: scores by the number of training images, in sweeps with known answers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import curve_fit

from helpers.sweeps import FULL, LIMITS, add_curves, add_job, add_training
from tvf.records import read_sweep
from tvf.report.charts import page_charts
from tvf.report.comparison import Comparison, compare
from tvf.report.data_curves import DataCurve, Outlook, what_helps
from tvf.report.data_sentences import DATA_HEADING, describe_data
from tvf.report.formats import render_report
from tvf.report.images import Interval
from tvf.report.palette import colours
from tvf.report.terminal import print_result

Accuracy = Callable[[float], float]


def law(a: float, b: float, c: float) -> Accuracy:
    return lambda images: 1 - (a * images**-b + c)


# Cross between 200 and 800 images.
CROSSING = {0.0: law(1.0, 0.5, 0.17), 1.0: law(6.0, 0.6, 0.05)}


def compared(folder: Path) -> Comparison:
    (comparison,) = compare(read_sweep(folder))
    return comparison


def text(comparison: Comparison) -> str:
    assert comparison.data is not None
    return " ".join(describe_data(comparison.data, comparison.word))


@pytest.fixture(scope="module")
def crossing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crossing")
    add_curves(folder, CROSSING)
    return folder


def test_a_known_crossing_is_found_and_shown(crossing: Path) -> None:
    comparison = compared(crossing)
    assert comparison.data is not None
    sizes = comparison.data.sizes
    assert [size.images for size in sizes] == [100, 200, 400, 800, 1600]
    assert [size.highest for size in sizes][::4] == ["0", "1"]
    assert sizes[0].worse and sizes[0].worse["1"] > 0.9 and sizes[0].rivals == []
    assert sizes[-1].worse and sizes[-1].worse["0"] > 0.9
    found = text(comparison)
    assert "depends on the number of training images: pct_unfreeze=0 with 100 to " in found
    assert (
        "The evidence supports this change: the probability of being more than 0.01 worse than "
        "the best is at least 90 % for 1 with 100 images and for 0 with 1,600." in found
    )
    assert [size.images for size in sizes if size.rivals] == [400]
    assert "With 400 images, others may do as well as the highest." in found


def test_the_law_is_that_of_scipy_and_twice_the_images_gain_what_it_says(crossing: Path) -> None:
    data = compared(crossing).data
    assert data is not None and data.outlook is not None
    curve = data.curves[1]
    assert data.outlook.curve is curve and data.outlook.images == 3200 and curve.law is not None
    sizes = np.array([100.0, 200, 400, 800, 1600])
    errors = [1 - point.val.mean for point in curve.points if point.val]
    (a, b, c), _ = curve_fit(lambda n, a, b, c: a * n**-b + c, sizes, errors, p0=(6, 0.6, 0.05))
    assert (curve.law.b, curve.law.c) == pytest.approx((b, c), abs=0.01)
    gain = data.outlook.gain
    assert gain.mean == pytest.approx(a * (1600**-b - 3200**-b), abs=0.001)
    true = CROSSING[1.0](3200) - CROSSING[1.0](1600)
    assert gain.low is not None and gain.high is not None and gain.low < true < gain.high


def test_only_configurations_with_the_most_images_are_candidates(tmp_path: Path) -> None:
    # With 100 images the head alone scores as high as anything and costs least.
    add_curves(tmp_path, {0.0: lambda images: 0.9 if images < 150 else 0.8, 0.5: lambda _: 0.85})
    comparison = compared(tmp_path)
    choice = comparison.choice
    assert choice.chosen and choice.chosen.label == "0.5"
    assert [group.label for group in comparison.candidates] == ["0", "0.5"]
    assert [(pair.a, pair.b) for pair in comparison.differences] == [("0.5", "0")]
    assert comparison.front == ["0", "0.5"]
    assert "train_limit=100" not in choice.text
    assert (
        "Only configurations with the most training images (about 1,600, data.train_limit=null) "
        "are candidates" in choice.text
    )
    assert [group.label for group in comparison.configurations][:5] == [
        *(f"0, data.train_limit={limit}" for limit in (100, 200, 400, 800)),
        "0",
    ]


def test_while_the_largest_jobs_wait_the_next_smaller_ones_are_candidates(tmp_path: Path) -> None:
    add_curves(tmp_path, CROSSING, limits=[100, 400])
    add_job(tmp_path, 0.0, 1, state="waiting", changes={"data.train_limit": None, "data.folds": 5})
    choice = compared(tmp_path).choice
    assert "(about 400, data.train_limit=400)" in choice.text
    assert "No job with more (data.train_limit=null) has finished yet." in choice.text


@pytest.mark.parametrize("limits", [[None], [400]])
def test_one_number_of_images_says_nothing(tmp_path: Path, limits: list[int | None]) -> None:
    add_curves(tmp_path, CROSSING, limits=limits)
    comparison = compared(tmp_path)
    assert comparison.data is None
    assert comparison.candidates == comparison.configurations
    assert "candidates" not in comparison.choice.text
    assert "data" not in page_charts(comparison, colours([0, 1]))
    markdown = render_report([tmp_path], read_sweep(tmp_path), "md")["report.md"].decode()
    assert DATA_HEADING not in markdown


def test_a_limit_above_the_number_of_images_is_no_other_number(tmp_path: Path) -> None:
    add_curves(tmp_path, CROSSING, limits=[200, 5000, None])
    comparison = compared(tmp_path)
    assert comparison.data is not None
    assert [size.images for size in comparison.data.sizes] == [200, FULL]
    assert [len(curve.points) for curve in comparison.data.curves] == [2, 2]
    assert "data.train_limit=5000 limits nothing here and is left out." in comparison.choice.text


def test_one_fraction_with_several_sizes_is_no_single_configuration(tmp_path: Path) -> None:
    """The plainest question about data: one fraction, more and more images."""
    add_curves(tmp_path, {0.5: CROSSING[1.0]}, limits=[100, 200, 400, 800, None])
    comparison = compared(tmp_path)
    assert comparison.data and comparison.data.outlook and comparison.data.outlook.other is None
    text = comparison.choice.text
    assert "Only one configuration with the most training images has finished jobs" in text


def test_a_sweep_whose_largest_jobs_have_begun_compares_the_sizes_before(tmp_path: Path) -> None:
    add_curves(tmp_path, CROSSING | {0.5: CROSSING[1.0]}, limits=[100, 400])
    images = {"pool": 2500, "digest": "d" * 32, "train": FULL}
    changes = {"data.train_limit": None, "data.folds": 5}
    add_job(tmp_path, 0.0, 1, [0.9], changes=changes, images=images)
    comparison = compared(tmp_path)
    assert len(comparison.candidates) == 3
    assert "Too few jobs with more (data.train_limit=null) have finished" in comparison.choice.text


def test_the_real_number_of_images_counts_not_the_limit(tmp_path: Path) -> None:
    for limit, trained in ((150, (118, 179)), (None, (1500, 1600))):
        for fraction in (0.0, 1.0):
            for fold, images in enumerate(trained):
                add_training(
                    tmp_path,
                    fraction,
                    [True, False, True, True],
                    places=range(4 * fold, 4 * fold + 4),
                    changes={"data.train_limit": limit, "data.folds": 2, "data.fold": fold},
                    images={"pool": 2000, "digest": "d" * 32, "train": images},
                )
    data = compared(tmp_path).data
    assert data is not None and [size.images for size in data.sizes] == [148.5, 1550]


def test_a_change_within_the_errors_is_called_chance(tmp_path: Path) -> None:
    add_curves(
        tmp_path, {0.0: lambda n: 0.81 - n / 1e5, 0.5: lambda n: 0.79 + n / 1e5}, [100, None]
    )
    found = text(compared(tmp_path))
    assert "pct_unfreeze=0 with 100, pct_unfreeze=0.5 with 1,600." in found
    assert "The evidence does not show this change, which may be chance" in found
    assert "power law" not in found


def test_one_that_scores_highest_everywhere_is_named_with_those_that_may_do_as_well(
    tmp_path: Path,
) -> None:
    add_curves(
        tmp_path, {0.0: lambda _: 0.7, 0.5: lambda n: 0.705 if n < 150 else 0.9}, [100, None]
    )
    found = text(compared(tmp_path))
    assert "pct_unfreeze=0.5 scores highest with every number of training images, 100 to 1,6" in (
        found
    )
    assert (
        "The evidence does not show that with 100 images: pct_unfreeze=0 may do as well." in found
    )


@pytest.mark.parametrize(
    ("accuracy", "limits", "reason"),
    [
        (lambda n: 0.8 if n < 700 else 0.9, LIMITS, "is not estimated"),  # a step
        (lambda _: 0.8, LIMITS, "is not estimated"),  # flat
        (law(6.0, 0.6, 0.05), (400, 800, None), "is estimated from 4 numbers of them on"),
    ],
)
def test_nothing_is_extrapolated_from_poor_fits_and_few_sizes(
    tmp_path: Path, accuracy: Accuracy, limits: Any, reason: str
) -> None:
    add_curves(tmp_path, {0.0: lambda _: 0.6, 1.0: accuracy}, limits)
    comparison = compared(tmp_path)
    assert comparison.data is not None and comparison.data.outlook is None
    assert comparison.data.curves[1].law is None
    assert f"What more images would add {reason}" in text(comparison)
    assert "twice as many" not in text(comparison)


def test_jobs_without_predictions_have_curves_too(tmp_path: Path) -> None:
    for fraction in (0.0, 1.0):
        for limit in (100, None):
            for seed in (1, 2):
                score = 0.7 + 0.1 * fraction + 0.01 * seed + (0.05 if limit is None else 0)
                images = {"pool": 2000, "digest": "d" * 32, "train": limit or 900}
                changes = {"data.train_limit": limit}
                add_job(tmp_path, fraction, seed, [score], changes=changes, images=images)
    data = compared(tmp_path).data
    assert data is not None
    assert [size.highest for size in data.sizes] == ["1", "1"]


def interval(low: float, high: float) -> Interval:
    return Interval((low + high) / 2, (high - low) / 4, low, high)


@pytest.mark.parametrize(
    ("gain", "difference", "verdict"),
    [
        (interval(0.02, 0.04), interval(-0.02, 0.01), "images"),
        (interval(0.02, 0.04), interval(-0.02, -0.01), "images"),
        (interval(0.02, 0.04), interval(0.05, 0.09), "other"),
        (interval(0.0, 0.008), interval(-0.02, 0.02), "little"),
        (interval(-0.001, 0.002), interval(0.003, 0.006), "neither"),
        (interval(0.02, 0.04), interval(-0.02, 0.03), "some"),
        (interval(0.02, 0.04), None, "some"),
        (interval(0.0, 0.04), interval(-0.02, 0.03), None),
        (interval(0.005, 0.04), None, None),
    ],
)
def test_what_helps_more_is_said_only_where_the_intervals_say_so(
    gain: Interval, difference: Interval | None, verdict: str | None
) -> None:
    curve = DataCurve("0", 0.0, [], None)
    assert what_helps(Outlook(curve, 3200, gain, None, difference), margin=0.01) == verdict


@pytest.mark.slow
def test_every_format_has_the_same_sentences(
    crossing: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, comparison = read_sweep(crossing), compared(crossing)
    sentences = text(comparison)
    markdown = render_report([crossing], rows, "md")["report.md"].decode()
    page = render_report([crossing], rows, "html")["report.html"].decode()
    print_result(crossing, frozenset())
    terminal = capsys.readouterr().out
    assert f"**{DATA_HEADING}** {sentences}" in markdown
    assert f"{DATA_HEADING} {sentences}" in terminal
    assert sentences in page and f"<h2>{DATA_HEADING}</h2>" in page
    assert "| `pct_unfreeze` | 100 | 200 | 400 | 800 | 1,600 |" in markdown
    assert comparison.data is not None
    last = comparison.data.curves[1].points[-1].val
    assert last is not None and f"{last.mean:.3f} ±{last.images:.3f} |\n" in markdown
    data = json.loads(render_report([crossing], rows, "json")["report.json"])["comparisons"][0]
    assert data["how_much_data"]["text"] == sentences
    points = data["how_much_data"]["curves"][1]["points"]
    assert points[-1]["configuration"] == "1" and points[-1]["score"] == last.mean
    assert data["candidates"] == ["0", "1"] and data["how_much_data"]["outlook"]["label"] == "1"
    drawing = render_report([crossing], rows, "png")["report.svg"].decode()
    assert "training images (log scale)" in drawing and ">1,600<" in drawing


def test_the_chart_has_a_point_for_each_size_in_the_colour_of_its_fraction(crossing: Path) -> None:
    comparison = compared(crossing)
    charts = page_charts(comparison, colours([0.0, 1.0]))
    datasets = [*charts["data"]["datasets"].values()]
    points = next(rows for rows in datasets if "images" in rows[0])
    assert len(points) == 10
    assert all(point["low"] < point["score"] < point["high"] for point in points)
    # Curves are shifted sideways, by less than a tenth of the distance to the next size.
    assert all(abs(np.log2(point["position"] / point["images"])) < 0.1 for point in points)
    ahead = next(rows for rows in datasets if "images" not in rows[0])
    assert (ahead[0]["position"], ahead[-1]["position"]) == pytest.approx((1600, 3200))
    assert {point["label"] for point in ahead} == {"1"}
    encoding = charts["data"]["layer"][0]["encoding"]
    assert encoding["x"]["scale"]["type"] == "log"
    assert encoding["color"]["scale"]["range"] == ["#3caa96", "#b63036"]
    shown = {row["label"] for row in [*charts["score"]["datasets"].values()][0]}
    assert shown == {"0", "1"}
