"""What the choice of each job's epoch adds to its score, against known truth and by hand."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from helpers.sweeps import add_training
from tvf.records import read_sweep
from tvf.records.predictions import Predictions
from tvf.report.bootstrap import resample_images
from tvf.report.comparison import compare
from tvf.report.epoch_choice import EpochChoice, choose_epochs
from tvf.report.formats import report_data
from tvf.report.validated import Validated, _macro_f1

# The expected maximum of n independent standard normal numbers (Harter 1961).
LARGEST = {3: 0.8463, 10: 1.5388, 12: 1.6292}


def predictions(classes: np.ndarray, labels: np.ndarray) -> Predictions:
    """Of a job that predicted these `classes` (epochs, images)."""
    names, logits = np.zeros(len(labels), str), np.eye(3, dtype=np.float32)[classes[-1]]
    return Predictions(names.astype("S"), names, labels, logits, epoch_classes=classes)


def validated(
    jobs: Sequence[Sequence[tuple[np.ndarray, Predictions]]], groups: np.ndarray | None = None
) -> Validated:
    images = 1 + max(int(places.max()) for places, _ in jobs[0])
    return Validated([np.empty((0, images))] * len(jobs), [*map(list, jobs)], groups, None)


def equal_epochs(
    configurations: int, epochs: int, folds: int, images: int, rng: np.random.Generator
) -> Validated:
    """Jobs whose epochs all classify any image correctly with probability 0.8."""
    fold, jobs = rng.permutation(images) % folds, []
    for _ in range(configurations):
        jobs.append([])
        for places in (np.flatnonzero(fold == number) for number in range(folds)):
            correct = rng.random((epochs, len(places))) < 0.8
            labels = rng.integers(2, size=len(places))
            classes = np.where(correct, labels, 1 - labels).astype(np.uint8)
            jobs[-1].append((places, predictions(classes, labels)))
    return validated(jobs)


@pytest.mark.parametrize(
    ("configurations", "epochs", "folds", "candidates"),
    [(1, 10, 1, 10), (1, 10, 4, 10), (4, 3, 1, 12)],
    ids=["one split", "folds", "configurations and epochs"],
)
def test_of_equal_epochs_the_estimate_is_what_the_best_is_known_to_exceed_the_others_by(
    configurations: int, epochs: int, folds: int, candidates: int
) -> None:
    """Of n equal candidates, the best exceeds the truth by LARGEST[n] standard errors.

    Each fold chooses its own epoch by a quarter of the images.
    """
    rng, images, found = np.random.default_rng(0), 400 * folds, []
    for _ in range(100):
        sweep = equal_epochs(configurations, epochs, folds, images, rng)
        choice = choose_epochs(sweep, "accuracy", draws=50)
        assert choice is not None
        found.append(choice.optimism())
    expected = LARGEST[candidates] * np.sqrt(0.8 * 0.2 * folds / images)
    assert np.mean(found) == pytest.approx(expected, rel=0.07)


@pytest.mark.parametrize(
    ("accuracies", "low", "high"),
    [
        (np.linspace(0.7, 0.8, 10), 1.0, 1.4),
        (np.r_[np.linspace(0.6, 0.8, 10), np.full(20, 0.8)], 0.93, 1.15),
    ],
    ids=["rising", "rising, then level"],
)
def test_where_epochs_differ_the_estimate_is_right_or_cautious(
    accuracies: np.ndarray, low: float, high: float
) -> None:
    """A bootstrap sample has fewer distinct images, so it finds the best epoch less often."""
    rng, true, found = np.random.default_rng(0), [], []
    for _ in range(200):
        labels = rng.integers(2, size=200)
        correct = rng.random((len(accuracies), 200)) < accuracies[:, None]
        classes = np.where(correct, labels, 1 - labels).astype(np.uint8)
        sweep = validated([[(np.arange(200), predictions(classes, labels))]])
        choice = choose_epochs(sweep, "accuracy", draws=50)
        assert choice is not None
        found.append(choice.optimism())
        best = correct.mean(axis=1).argmax()
        true.append(correct[best].mean() - accuracies[best])
    assert low < np.mean(found) / np.mean(true) < high


def test_an_epoch_that_is_truly_best_by_far_flatters_nothing() -> None:
    rng, found = np.random.default_rng(0), []
    for _ in range(50):
        labels = rng.integers(2, size=300)
        correct = rng.random((4, 300)) < np.array([[0.5], [0.6], [0.9], [0.7]])
        classes = np.where(correct, labels, 1 - labels).astype(np.uint8)
        choice = choose_epochs(
            validated([[(np.arange(300), predictions(classes, labels))]]), "accuracy", draws=50
        )
        assert choice is not None
        found.append(choice.reported[0] - np.nanmean(choice.outside))
    assert abs(np.mean(found)) < 0.002


def _by_hand(
    sweep: Validated, metric: str, inside: np.ndarray, outside: np.ndarray
) -> list[list[float]]:
    """The score of each configuration inside and outside a sample, image by image."""
    found = []
    for jobs in sweep.predictions:
        scores, weights = np.zeros(2), np.zeros(2)
        for places, seen in jobs:
            assert seen.epoch_classes is not None
            images = 1 + int(places.max())
            own = np.bincount(inside, minlength=images)[places]
            rest = np.bincount(outside, minlength=images)[places]
            classes = seen.epoch_classes.astype(int)
            epochs = [predictions(epoch[None], seen.labels) for epoch in classes]
            if metric == "accuracy":
                by_epoch = [
                    [(e.logits.argmax(1) == e.labels) @ part / max(part.sum(), 1) for e in epochs]
                    for part in (own, rest)
                ]
                number = np.array([own.sum(), rest.sum()])
            else:
                by_epoch = [
                    [_macro_f1(e)(part) if part.sum() else 0.0 for e in epochs]
                    for part in (own, rest)
                ]
                number = np.array([own.sum() > 0, rest.sum() > 0])
            best = int(np.argmax(by_epoch[0]))
            for side in range(2):
                if own.sum():
                    scores[side] += by_epoch[side][best] * number[side]
                    weights[side] += number[side]
        found.append(np.divide(scores, weights, out=np.full(2, np.nan), where=weights > 0).tolist())
    return found


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
@pytest.mark.parametrize("grouped", [False, True])
def test_each_sample_chooses_epochs_and_scores_what_it_left_out(metric: str, grouped: bool) -> None:
    """Two configurations, two folds of different sizes, two seeds, three classes."""
    rng = np.random.default_rng(1)
    group = np.repeat(np.arange(10), 6)
    labels = rng.integers(3, size=60)
    jobs = []
    for accuracy in (0.6, 0.7):
        jobs.append([])
        for places in (np.arange(18), np.arange(18, 60)) * 2:
            right = rng.random((4, len(places))) < accuracy
            wrong = rng.integers(3, size=right.shape)
            classes = np.where(right, labels[places], wrong).astype(np.uint8)
            jobs[-1].append((places, predictions(classes, labels[places])))
    sweep = validated(jobs, group if grouped else None)
    found = choose_epochs(sweep, metric, draws=30, seed=4)
    assert found is not None
    samples = resample_images(60, sweep.groups, draws=30, seed=4)
    for number, (drawn, left_out) in enumerate(samples):
        expected = np.array(_by_hand(sweep, metric, drawn, left_out)).T
        assert np.array([found.inside[number], found.outside[number]]) == pytest.approx(
            expected, nan_ok=True
        )
    assert found.reported == pytest.approx(
        np.array(_by_hand(sweep, metric, np.arange(60), np.arange(0)))[:, 0]
    )


def test_nothing_is_estimated_without_a_choice_or_without_the_classes() -> None:
    rng = np.random.default_rng(0)
    sweep = equal_epochs(2, 3, 2, 40, rng)
    assert choose_epochs(sweep, "accuracy") is not None
    assert choose_epochs(sweep, "auroc") is None
    assert choose_epochs(equal_epochs(2, 1, 2, 40, rng), "accuracy") is None
    places, seen = sweep.predictions[0][0]
    older = Predictions(seen.ids, seen.names, seen.labels, seen.logits)
    sweep.predictions[0][0] = (places, older)
    assert choose_epochs(sweep, "accuracy") is None


def test_a_group_for_each_fold_leaves_nothing_to_judge_its_epochs_by() -> None:
    sweep = equal_epochs(2, 3, 4, 40, np.random.default_rng(0))
    groups = np.empty(40, int)
    for fold, (places, _) in enumerate(sweep.predictions[0]):
        groups[places] = fold
    choice = choose_epochs(validated(sweep.predictions, groups), "accuracy")
    assert choice is not None and choice.optimism() is None


def test_the_best_configuration_of_each_sample_is_scored() -> None:
    inside = np.array([[0.8, 0.9], [0.9, np.nan], [np.nan, np.nan]])
    outside = np.array([[0.1, 0.6], [0.7, 0.2], [0.5, 0.5]])
    choice = EpochChoice(np.array([0.8, 0.85]), inside, outside)
    assert choice.optimism() == pytest.approx(0.85 - (0.6 + 0.7) / 2)
    assert EpochChoice(np.array([0.5]), inside[:1, :1], outside[1:2, :1]).optimism() == 0


def _sweep(folder: Path, epochs: int | None) -> None:
    """Two fractions of five folds; each epoch is right at random. None: no classes of epochs."""
    rng = np.random.default_rng(2)
    for fraction, accuracy in ((0.0, 0.6), (0.5, 0.85)):
        for fold in range(5):
            right = rng.random((epochs or 1, 60)) < accuracy
            right = right[np.argsort(right.mean(axis=1), kind="stable")]
            add_training(
                folder,
                fraction,
                right[-1].tolist(),
                earlier=None if epochs is None else right[:-1].tolist(),
                places=range(60 * fold, 60 * fold + 60),
                changes={"data.folds": 5, "data.fold": fold},
            )


def test_the_report_says_what_each_choice_adds(tmp_path: Path) -> None:
    _sweep(tmp_path, epochs=6)
    (comparison,) = compare(read_sweep(tmp_path))
    evidence, choice = comparison.evidence, comparison.choice
    assert choice.chosen is choice.best and evidence and evidence.epoch_optimism
    assert 0.02 < evidence.epoch_optimism < 0.06
    assert (
        "its score is too high on average: by less than 0.001 for the choice between "
        f"configurations and {evidence.epoch_optimism:.3f} for the choice of each job's epoch."
    ) in choice.text
    data = report_data([tmp_path], [comparison])["comparisons"][0]
    assert data["epoch_optimism"] == evidence.epoch_optimism
    alone = [row["epoch_optimism"] for row in data["configurations"]]
    assert alone == [group.epoch_optimism for group in comparison.configurations]
    assert alone[1] == pytest.approx(evidence.epoch_optimism, abs=0.002)


@pytest.mark.parametrize(
    ("epochs", "says"),
    [
        (1, "configurations."),
        (None, "configurations; what the choice of each job's epoch adds is unknown."),
    ],
    ids=["one epoch", "older files"],
)
def test_the_choice_of_one_epoch_is_none_and_an_unknown_one_has_no_figure(
    tmp_path: Path, epochs: int | None, says: str
) -> None:
    _sweep(tmp_path, epochs)
    (comparison,) = compare(read_sweep(tmp_path))
    assert f"for the choice between {says}" in comparison.choice.text
    assert ("epoch" in comparison.choice.text) == (epochs is None)
    assert comparison.evidence and comparison.evidence.epoch_optimism is None


def test_a_cheaper_choice_and_a_single_configuration_name_the_epochs_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    hits = [np.arange(2000) % 10 < 9 for _ in range(3)]  # the same accuracy, other images
    for epoch in hits:
        rng.shuffle(epoch)
    earlier = [epoch.tolist() for epoch in hits[1:]]
    for fraction, seeds in ((0.0, (1, 2)), (0.5, (1, 2))):
        for seed in seeds:
            right = hits[0] if fraction else np.r_[hits[0][:-1], [False]]
            add_training(tmp_path, fraction, right.tolist(), seed=seed, earlier=earlier)
        (comparison,) = compare(read_sweep(tmp_path))
        group = comparison.configurations[0]
        assert group.epoch_optimism and group.epoch_optimism > 0.001
        assert (
            "Each job's epoch was chosen by these images, which makes its score too high on "
            f"average: by about {group.epoch_optimism:.3f}."
        ) in comparison.choice.text
    assert comparison.choice.chosen is group and comparison.choice.best is not group
