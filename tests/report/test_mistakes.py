"""Which images the page shows: mistakes, uncertain images, candidates for wrong labels."""

from pathlib import Path

import pytest

from helpers.sweeps import add_job, add_predictions
from tvf.records import read_sweep
from tvf.report.comparison import Comparison, compare
from tvf.report.mistakes import LISTED, SelectedImages, select_images


def compared(sweep: Path) -> Comparison:
    (comparison,) = compare(read_sweep(sweep))
    return comparison


def selected(sweep: Path, split: str = "val", index: int = 0) -> SelectedImages:
    configurations = compared(sweep).configurations
    found = select_images(configurations[index], configurations, split)
    assert found
    return found


def test_mistakes_start_with_the_most_probable_and_ties_with_the_first_name(tmp_path: Path) -> None:
    images = {"right": (0, [0.99, 0.01]), "doubt": (0, [0.45, 0.55]), "sure": (0, [0.1, 0.9])}
    images |= {name: (1, [0.8, 0.2]) for name in ("tie-b", "tie-c", "tie-a")}
    add_predictions(add_job(tmp_path, 0.5, 1), images)
    found = selected(tmp_path)
    assert [image.name for image in found.mistakes.images] == [
        "sure",
        "tie-a",
        "tie-b",
        "tie-c",
        "doubt",
    ]
    assert found.images == 6 and found.mistakes.total == 5
    sure = found.mistakes.images[0]
    assert (sure.label, sure.predicted, sure.agree, sure.trainings) == (0, 1, 1, 1)
    assert sure.probability == pytest.approx(0.9)
    # Right or wrong; of the ties, the first names.
    assert [image.name for image in found.uncertain.images] == [
        "doubt",
        "tie-a",
        "tie-b",
        "tie-c",
        "sure",
        "right",
    ]


def test_lists_are_cut_and_say_how_many_there_are(tmp_path: Path) -> None:
    images = {f"{i:03}": (0, [i / 200, 1 - i / 200]) for i in range(1, 61)}
    add_predictions(add_job(tmp_path, 0.5, 1), images)
    found = selected(tmp_path)
    assert found.mistakes.total == found.uncertain.total == 60
    assert [image.name for image in found.mistakes.images] == [*images][:LISTED]
    assert [image.name for image in found.uncertain.images] == [*images][: -LISTED - 1 : -1]


def test_seeds_are_averaged_and_counted(tmp_path: Path) -> None:
    for seed, right in enumerate((0.9, 0.2, 0.1), 1):
        images = {"seen": (0, [right, 1 - right]), "clear": (1, [0.1, 0.9])}
        add_predictions(add_job(tmp_path, 0.5, seed), images)
    (mistake,) = selected(tmp_path).mistakes.images
    assert (mistake.name, mistake.agree, mistake.trainings) == ("seen", 2, 3)
    assert mistake.probability == pytest.approx(0.6)


def test_folds_count_for_the_images_that_they_validated(tmp_path: Path) -> None:
    for fold in range(2):
        changes = {"data.folds": 2, "data.fold": fold}
        add_predictions(
            add_job(tmp_path, 0.5, 1, changes=changes),
            {f"val{fold}": (0, [0.3, 0.7])},
            {"tested": (0, [0.4 - 0.2 * fold, 0.6 + 0.2 * fold])},
        )
    found = selected(tmp_path)
    assert [(image.name, image.trainings) for image in found.mistakes.images] == [
        ("val0", 1),
        ("val1", 1),
    ]
    assert found.mislabelled is None  # no image has two trainings
    (mistake,) = selected(tmp_path, "test").mistakes.images
    assert (mistake.name, mistake.agree, mistake.trainings) == ("tested", 2, 2)
    assert mistake.probability == pytest.approx(0.7)


def test_labels_are_doubted_if_every_training_of_every_configuration_disagrees(
    tmp_path: Path,
) -> None:
    for fraction, seed, third in ((0.0, 1, 0.2), (0.0, 2, 0.2), (1.0, 1, 0.2), (1.0, 2, 0.6)):
        images = {
            "doubted": (0, [0.2, 0.8]),
            "defended": (0, [third, 1 - third]),  # by a single training
            "right": (0, [0.9, 0.1]),
        }
        add_predictions(add_job(tmp_path, fraction, seed), images)
    for index in range(2):  # whichever configuration is shown
        found = selected(tmp_path, index=index).mislabelled
        assert found and found.total == 1
        (image,) = found.images
        assert (image.name, image.agree, image.trainings) == ("doubted", 4, 4)


def test_a_label_is_not_doubted_by_a_single_training(tmp_path: Path) -> None:
    for fold, seed in ((0, 1), (0, 2), (1, 1)):
        folder = add_job(tmp_path, 0.5, seed, changes={"data.folds": 2, "data.fold": fold})
        add_predictions(folder, {f"fold{fold}": (0, [0.1, 0.9])})
    found = selected(tmp_path)
    assert found.mistakes.total == 2 and found.mislabelled
    assert [image.name for image in found.mislabelled.images] == ["fold0"]


def test_a_doubted_label_is_never_the_predicted_class(tmp_path: Path) -> None:
    more = dict.fromkeys(("val_recall", "val_confusion", "test_recall", "test_confusion"))
    for seed, row in enumerate(([0.44, 0.46, 0.1], [0.44, 0.1, 0.46]), 1):
        folder = add_job(tmp_path, 0.5, seed, classes=["cat", "dog", "fox"], **more)
        add_predictions(folder, {"odd": (0, row)})
    found = selected(tmp_path)
    assert found.mislabelled
    # On average the label is the most probable class, but no training predicts it.
    for (image,) in (found.mislabelled.images, found.mistakes.images):
        assert (image.predicted, image.agree, image.trainings) == (1, 1, 2)


def test_each_training_has_its_own_temperature(tmp_path: Path) -> None:
    for seed, temperature in ((1, 1.0), (2, 2.0)):
        folder = add_job(tmp_path, 0.5, seed)
        add_predictions(folder, {"a": (1, [0.9, 0.1])})
        path = folder / "summary.json"
        path.write_text(
            path.read_text().replace('"temperature": 1.0', f'"temperature": {temperature}')
        )
    (mistake,) = selected(tmp_path).mistakes.images
    assert mistake.probability == pytest.approx((0.9 + 3 / 4) / 2)  # odds of 9, and their root


@pytest.mark.parametrize("rows", [None, [[1.0]], [[0.5, float("nan")]]])
def test_nothing_is_selected_without_usable_predictions(
    tmp_path: Path, rows: list[list[float]] | None
) -> None:
    folder = add_job(tmp_path, 0.5, 1)
    if rows:
        add_predictions(folder, {str(number): (0, row) for number, row in enumerate(rows)})
    configurations = compared(tmp_path).configurations
    assert select_images(configurations[0], configurations, "val") is None


def test_test_images_that_validate_are_shown_once(tmp_path: Path) -> None:
    folder = add_job(tmp_path, 0.5, 1, changes={"data.validate_on": "test"})
    add_predictions(folder, {"a": (1, [0.9, 0.1])}, {"a": (1, [0.9, 0.1])})
    configurations = compared(tmp_path).configurations
    assert select_images(configurations[0], configurations, "val")
    assert select_images(configurations[0], configurations, "test") is None
