"""Calibration and confusion of the recommended configuration: figures, charts and formats."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.sweeps import add_job, add_predictions
from tvf.records import calibrate, read_predictions, read_sweep
from tvf.report.calibration import mean_calibration, reliability
from tvf.report.comparison import compare
from tvf.report.configuration import Configuration
from tvf.report.formats import render_report
from tvf.report.prediction_charts import confused_pairs, count_confusion

CLASSES = ["functional", "defective"]
Judged = dict[str, tuple[int, list[float]]]


def judged(count: int, seed: int, classes: int = 2) -> Judged:
    """Images with random probabilities, whose most probable class is right three times in four."""
    rng = np.random.default_rng(seed)
    images = {}
    for number in range(count):
        row = rng.dirichlet(np.ones(classes))
        label = row.argmax() if rng.random() < 0.75 else rng.integers(classes)
        images[f"{seed}-{number}"] = (int(label), row.tolist())
    return images


def change_summary(folder: Path, **values: Any) -> None:
    path = folder / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def configuration(sweep: Path) -> Configuration:
    (comparison,) = compare(read_sweep(sweep))
    return comparison.configurations[0]


def test_recorded_figures_are_averaged_over_trainings(tmp_path: Path) -> None:
    for seed in (1, 2):
        folder = add_job(tmp_path, 0.5, seed)
        add_predictions(folder, judged(20, 1), judged(20, 2))
        scores = {"nll": 0.1 * seed, "brier": 0.2 * seed, "ece": 0.3 * seed}
        split = {"raw": scores, "scaled": {key: value / 2 for key, value in scores.items()}}
        change_summary(folder, calibration={"temperature": 1.0 + seed, "val": split, "test": split})
    found = mean_calibration(configuration(tmp_path).done)
    assert found is not None
    assert found["val"] == found["test"]
    assert found["val"]["raw"] == pytest.approx({"nll": 0.15, "brier": 0.3, "ece": 0.45})
    assert found["val"]["scaled"] == pytest.approx({"nll": 0.075, "brier": 0.15, "ece": 0.225})
    temperatures = [found[f"{which}temperature"] for which in ("lowest_", "", "highest_")]
    assert temperatures == [2.0, 2.5, 3.0] and found["trainings"] == 2


@pytest.mark.parametrize("record", [None, {"temperature": "hot"}, {"temperature": 2.0}, [1]])
def test_jobs_without_a_usable_record_are_calibrated_from_their_predictions(
    tmp_path: Path, record: Any
) -> None:
    folder = add_job(tmp_path, 0.5, 1)
    add_predictions(folder, judged(60, 1), judged(40, 2))
    change_summary(folder, calibration=record)
    stored = read_predictions(folder)
    expected = calibrate({name: (each.logits, each.labels) for name, each in stored.items()})
    found = mean_calibration(configuration(tmp_path).done)
    assert expected and found
    assert expected["temperature"] != 1.0
    for key in ("temperature", "val", "test"):
        assert found[key] == expected[key]


def test_test_images_that_validate_have_no_scores_of_their_own(tmp_path: Path) -> None:
    folder = add_job(tmp_path, 0.5, 1, changes={"data.validate_on": "test"})
    add_predictions(folder, judged(60, 1), judged(60, 1))
    shown = configuration(tmp_path)
    found = mean_calibration(shown.done)
    assert found and "val" in found and "test" not in found
    assert reliability(shown.done, "test", scaled=True) == []


def test_bins_hold_equally_many_predictions_of_all_trainings(tmp_path: Path) -> None:
    rows = []
    for seed, temperature in ((1, 2.0), (2, 0.5)):
        folder = add_job(tmp_path, 0.5, seed)
        images = judged(75, seed)
        add_predictions(folder, images)
        record = json.loads((folder / "summary.json").read_text())["calibration"]
        change_summary(folder, calibration=record | {"temperature": temperature})
        for label, row in images.values():
            powers = np.power(row, 1 / temperature)
            rows.append((max(powers) / sum(powers), int(np.argmax(row)) == label))
    expected = np.array(sorted(rows)).reshape(15, 10, 2).mean(axis=1)
    found = reliability(configuration(tmp_path).done, "val", scaled=True)
    assert [each["predictions"] for each in found] == [10] * 15
    confidence, correct = expected.T.tolist()
    assert [each["confidence"] for each in found] == pytest.approx(confidence, rel=1e-5)
    assert [each["correct"] for each in found] == pytest.approx(correct)


def test_confusion_is_recorded_or_counted_and_summed(tmp_path: Path) -> None:
    for seed, recorded in ((1, [[3, 1], [2, 4]]), (2, None)):
        folder = add_job(tmp_path, 0.5, seed, val_confusion=recorded)
        add_predictions(folder, {"a": (0, [0.2, 0.8]), "b": (1, [0.4, 0.6])})
    total = count_confusion(configuration(tmp_path), CLASSES)
    assert total is not None and total.tolist() == [[3, 2], [2, 5]]
    assert count_confusion(configuration(tmp_path), ["a", "b", "c"]) is None


def test_confusion_is_unknown_if_a_training_neither_recorded_nor_predicted_it(
    tmp_path: Path,
) -> None:
    add_job(tmp_path, 0.5, 1)
    add_job(tmp_path, 0.5, 2, val_confusion=None)
    assert count_confusion(configuration(tmp_path), CLASSES) is None


def test_the_most_confused_pairs_come_first() -> None:
    pairs = confused_pairs(["a", "b", "c"], np.array([[5, 3, 2], [7, 0, 0], [0, 0, 0]]))
    assert pairs == [("b", "a", 7, 1.0), ("a", "b", 3, 0.3), ("a", "c", 2, 0.2)]


def page_of(sweep: Path) -> tuple[str, dict[str, Any]]:
    """The page and the specifications of its charts."""
    page = render_report([sweep], read_sweep(sweep), "html")["report.html"].decode()
    charts = page.partition('id="charts">')[2].partition("</script>")[0]
    return page, json.loads(charts)


def test_the_page_says_on_which_images_the_temperature_was_fitted(tmp_path: Path) -> None:
    add_predictions(add_job(tmp_path, 0.5, 1), judged(30, 1), judged(30, 2))
    page, charts = page_of(tmp_path)
    assert "so their scores after scaling are on the images that it was fitted on." in page
    assert "The test images took no part." in page
    assert "<td>test, after scaling</td><td>0.500</td><td>0.400</td><td>0.100</td>" in page
    names = charts["part0-reliability"]["datasets"].values()
    series = {row["series"] for rows in names for row in rows if "series" in row}
    assert series == {
        "validation, before scaling",
        "validation, after scaling",
        "test, after scaling",
    }


def test_many_classes_have_a_list_of_pairs_instead_of_a_heat_map(tmp_path: Path) -> None:
    names = [f"class {number}" for number in range(31)]
    more = dict.fromkeys(("val_recall", "val_confusion", "test_recall", "test_confusion"))
    folder = add_job(tmp_path, 0.5, 1, classes=names, **more)
    add_predictions(folder, judged(300, 1, 31))
    page, charts = page_of(tmp_path)
    assert "part0-confusion" not in charts and "Most confused classes" in page
    assert page.partition('class="pairs"')[2].partition("</table>")[0].count("<tr>") == 1 + 20


@pytest.mark.parametrize("row", [None, [1.0]])
def test_a_page_without_predictions_or_with_one_class_has_no_pictures(
    tmp_path: Path, row: list[float] | None
) -> None:
    more = {"classes": ["all"], "val_confusion": [[3]], "val_recall": [1.0]} if row else {}
    folder = add_job(tmp_path, 0.5, 1, **more, test_confusion=None, test_recall=None)
    if row:
        add_predictions(folder, {"a": (0, row)})
    page, charts = page_of(tmp_path)
    assert "part0-reliability" not in charts and ("part0-confusion" in charts) == (not row)
    for words in ("Can the probabilities be believed?", "Most confident mistakes", "<figure><img"):
        assert words not in page


def test_programs_get_the_figures_and_no_format_but_the_page_has_pictures(tmp_path: Path) -> None:
    add_predictions(add_job(tmp_path, 0.5, 1), judged(30, 1), judged(30, 2))
    rows = read_sweep(tmp_path)
    formats = {kind: render_report([tmp_path], rows, kind) for kind in ("json", "md", "csv")}
    (content,) = formats["json"].values()
    (found,) = json.loads(content)["comparisons"][0]["configurations"]
    scores = {"nll": 0.5, "brier": 0.4, "ece": 0.1}
    split = {"raw": scores, "scaled": scores}
    assert found["calibration"] == {
        "trainings": 1,
        "temperature": 1.0,
        "lowest_temperature": 1.0,
        "highest_temperature": 1.0,
        "val": split,
        "test": split,
    }
    for files in formats.values():
        assert not any(b"data:image" in content for content in files.values())
