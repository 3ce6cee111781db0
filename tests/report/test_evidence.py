"""Comparing jobs by their predictions: which images, folds, groups, and what is said of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from helpers.sweeps import add_job, add_training
from tvf.data import Pixels, Pool, Split
from tvf.records import read_sweep
from tvf.records.predictions import Predictions
from tvf.report.comparison import Comparison, compare
from tvf.report.evidence import _score_trainings
from tvf.report.formats import FORMATS, render_report
from tvf.report.images import compare_scores
from tvf.report.sentences import conclusions, describe_errors
from tvf.report.validated import _auroc, _macro_f1, gather
from tvf.training.scores import compute_scores

SCORES = st.lists(st.floats(0, 1).map(lambda value: round(value, 4)), min_size=2, max_size=8)


def folds(
    sweep: Path,
    accuracies: dict[float, float],
    *,
    images: int = 400,
    number: int = 5,
    groups: int | None = None,
    seeds: tuple[int, ...] = (1,),
) -> None:
    """A sweep of fractions × folds whose trainings are right at random with these chances."""
    rng = np.random.default_rng(0)
    group = np.arange(images) * groups // images if groups else None
    sides = np.arange(images) % number if group is None else group % number
    for fraction, accuracy in accuracies.items():
        for seed in seeds:
            for fold in range(number):
                places = np.flatnonzero(sides == fold)
                add_training(
                    sweep,
                    fraction,
                    (rng.random(len(places)) < accuracy).tolist(),
                    seed=seed,
                    places=places.tolist(),
                    groups=None if group is None else group[places].tolist(),
                    changes={"data.folds": number, "data.fold": fold},
                )


def compared(folder: Path) -> Comparison:
    (comparison,) = compare(read_sweep(folder))
    return comparison


@given(a=SCORES, seed=st.integers(0, 99))
def test_without_predictions_differences_are_the_paired_t_test_over_trainings(
    a: list[float], seed: int
) -> None:
    b = np.random.default_rng(seed).uniform(0, 1, len(a)).tolist()
    found = compare_scores(_score_trainings(np.array([a, b]).T), 0, 1)
    expected = scipy.stats.ttest_rel(a, b)
    interval = expected.confidence_interval()
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6)
    assert found.interval.mean == pytest.approx(np.mean(a) - np.mean(b))
    assert (found.interval.low, found.interval.high) == pytest.approx(
        (max(interval.low, -1), min(interval.high, 1)), rel=1e-6, abs=1e-9
    )


def test_folds_are_one_configuration_scored_over_all_their_images(tmp_path: Path) -> None:
    folds(tmp_path, {0.0: 0.7, 0.5: 0.9})
    comparison = compared(tmp_path)
    assert [group.label for group in comparison.configurations] == ["0", "0.5"]
    evidence, val = comparison.evidence, comparison.configurations[1].val
    assert evidence and (evidence.images, evidence.divisions, evidence.groups) == (400, 5, None)
    assert val and val.trainings == 5 and val.retraining is None
    share = val.mean * (1 - val.mean)
    assert val.images == pytest.approx(1.97 * (share / 400) ** 0.5, rel=0.05)
    choice = comparison.choice
    assert choice.chosen and choice.chosen.label == "0.5"
    assert "over 5 validation splits (400 images)." in choice.text
    assert "images are scored by trainings that did not see them" in describe_errors(comparison)
    (pair,) = comparison.differences
    assert pair.p is not None and pair.p < 0.01


def test_seeds_add_the_error_of_retraining(tmp_path: Path) -> None:
    folds(tmp_path, {0.0: 0.85, 0.5: 0.9}, seeds=(1, 2, 3))
    val = compared(tmp_path).configurations[0].val
    assert val and val.trainings == 15 and val.retraining and val.images
    assert val.errors == f"retraining ±{val.retraining:.3f}, other images ±{val.images:.3f}"


def test_with_groups_the_error_is_over_groups(tmp_path: Path) -> None:
    """All images of a group are right or wrong together: 40 groups are 40 images."""
    rng = np.random.default_rng(1)
    right = {fraction: rng.random(40) < 0.8 for fraction in (0.0, 0.5)}
    for fraction, by_group in right.items():
        for fold in range(5):
            group = np.repeat(np.arange(fold, 40, 5), 10)
            places = group * 10 + np.tile(np.arange(10), 8)
            add_training(
                tmp_path,
                fraction,
                by_group[group].tolist(),
                places=places.tolist(),
                groups=group.tolist(),
                changes={"data.folds": 5, "data.fold": fold},
            )
    comparison = compared(tmp_path)
    val = comparison.configurations[0].val
    assert val and val.images == pytest.approx(2.03 * (0.8 * 0.2 / 40) ** 0.5, rel=0.25)
    assert "400 images of 40 groups" in comparison.choice.text
    assert "other groups like these 40" in describe_errors(comparison)


def test_images_are_paired_by_what_they_are_and_never_by_the_config(tmp_path: Path) -> None:
    """The data grew under its name between two jobs: they are compared apart, with both counts."""
    old = {"pool": 100, "digest": "a" * 32, "train": 60}
    new = {"pool": 140, "digest": "b" * 32, "train": 84}
    for seed in (1, 2):
        for fraction in (0.0, 0.5):
            add_training(tmp_path, fraction, [True] * 30 + [False] * 4, seed=seed, images=old)
        add_training(tmp_path, 1.0, [True] * 20 + [False], seed=seed, images=new)
    first, second = compare(read_sweep(tmp_path))
    assert first.title == "images=100 (aaaaaaaa)" and second.title == "images=140 (bbbbbbbb)"
    assert len(first.configurations) == 2 and len(second.configurations) == 1


def test_configurations_that_share_no_division_are_not_compared(tmp_path: Path) -> None:
    for seed in (1, 2):
        add_training(tmp_path, 0.0, [True, False] * 20, seed=seed)
        places = list(range(100, 140))
        changes = {"data.split_seed": 7}
        add_training(tmp_path, 0.5, [True, True] * 20, seed=seed, places=places, changes=changes)
    comparison = compared(tmp_path)
    assert comparison.choice.chosen is None and comparison.differences == []
    assert "too few trainings of the configurations match" in comparison.choice.text


def test_disjoint_seeds_are_compared_over_the_images_they_share(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for fraction, seeds, accuracy in ((0.0, (1, 2), 0.6), (0.5, (3, 4), 0.95)):
        for seed in seeds:
            add_training(tmp_path, fraction, (rng.random(200) < accuracy).tolist(), seed=seed)
    comparison = compared(tmp_path)
    assert comparison.choice.chosen and comparison.choice.chosen.label == "0.5"
    (pair,) = comparison.differences
    assert pair.low is not None and pair.low > 0.2


def test_both_errors_and_what_they_cover_are_in_every_format(tmp_path: Path) -> None:
    folds(tmp_path, {0.0: 0.85, 0.5: 0.9}, seeds=(1, 2))
    rows = read_sweep(tmp_path)
    (comparison,) = compare(rows)
    said = describe_errors(comparison)
    for kind in FORMATS:
        if kind in ("csv", "png"):
            continue
        (content,) = render_report([tmp_path], rows, kind).values()
        text = content.decode().replace("&#39;", "'")
        if kind == "json":
            text = json.dumps(json.loads(text), ensure_ascii=False)
        assert said in text, kind
        for sentence in conclusions(comparison):
            assert sentence.partition(":")[0] in text, kind
    data = json.loads(render_report([tmp_path], rows, "json")["report.json"])["comparisons"][0]
    for row, group in zip(data["configurations"], comparison.configurations, strict=True):
        assert group.val and group.test
        assert row["images"] == group.val.images and row["retraining"] == group.val.retraining
        assert row["test_images"] == group.test.images
    assert data["optimism"] == comparison.evidence.optimism if comparison.evidence else False


def test_no_sentence_says_that_different_is_equal(tmp_path: Path) -> None:
    """A difference whose interval excludes 0 is never called one that cannot be told."""
    folds(tmp_path, {0.0: 0.6, 0.5: 0.9})
    comparison = compared(tmp_path)
    (pair,) = comparison.differences
    assert pair.low is not None and pair.low > 0 and pair.p is not None and pair.p < 0.01
    for words in ("ot decided", "may do as well", "cannot", "hardly"):
        assert words not in comparison.choice.text
    assert comparison.choice.decision and comparison.choice.decision.decided


def test_the_same_training_under_two_names_is_noted(tmp_path: Path) -> None:
    for seed in (1, 2):
        add_job(tmp_path, 0.0, seed)
        changes: dict[str, Any] = {"model._target_": "tvf.models.TransferModel"}
        add_job(tmp_path, 0.0, seed, changes=changes, model="transfer")
    (comparison,) = compare(read_sweep(tmp_path))
    assert any("though they are one" in note for note in comparison.notes)


def test_scores_on_weighted_images_are_those_of_training(tmp_path: Path) -> None:
    import torch

    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=60)
    logits = rng.normal(size=(60, 2)).round(1).astype(np.float32)  # some margins are equal
    drawn = rng.integers(60, size=60)
    weights = np.bincount(drawn, minlength=60).astype(float)
    predictions = Predictions(np.zeros(60, "S32"), np.zeros(60, str), labels, logits)
    expected = compute_scores(torch.tensor(logits[drawn]), torch.tensor(labels[drawn]), 0, 0)
    assert _macro_f1(predictions)(weights) == pytest.approx(expected.macro_f1)
    assert expected.auroc and _auroc(predictions)(weights) == pytest.approx(expected.auroc)


@pytest.mark.parametrize("metric", ["macro_f1", "auroc"])
def test_other_metrics_have_errors_over_images_too(tmp_path: Path, metric: str) -> None:
    rng = np.random.default_rng(0)
    for fraction, accuracy in ((0.0, 0.6), (0.5, 0.95)):
        for seed in (1, 2):
            hits = (rng.random(200) < accuracy).tolist()
            add_training(
                tmp_path,
                fraction,
                hits,
                seed=seed,
                changes={"data.metric": metric},
                metric=metric,
                val_macro_f1=accuracy + seed / 1000,
                val_auroc=accuracy + seed / 1000,
            )
    comparison = compared(tmp_path)
    (pair,) = comparison.differences
    assert pair.low is not None and 0.2 < pair.low < pair.mean
    assert comparison.choice.chosen and comparison.choice.chosen.label == "0.5"


def test_an_image_that_the_pool_holds_twice_is_two_images(tmp_path: Path) -> None:
    import torch

    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    images[3] += 1
    split = Split(Pool(Pixels(images), torch.arange(4) % 2, list("abcd")), np.arange(4))
    assert len(np.unique(split.pool.pixels.digests)) == 2
    for seed in (1, 2):
        folder = add_training(tmp_path, 0.5, [True] * 4, seed=seed)
        ids = split.pool.pixels.digests
        predictions = Predictions(ids, np.array(list("abcd")), np.arange(4) % 2, np.eye(4)[:, :2])
        from tvf.records.predictions import write_predictions

        write_predictions(folder, {"val": predictions, "test": predictions}, ids)
    validated = gather([read_sweep(tmp_path)], "val")
    assert validated and validated.images == 4


def test_equal_images_in_two_folds_leave_the_folds_as_they_are(tmp_path: Path) -> None:
    folds(tmp_path, {0.0: 0.7, 0.5: 0.9})
    twins = [b"%032d" % 10_000] * 2
    for path in tmp_path.glob("*/predictions.npz"):
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        for name, twin in zip(("0", "1"), twins, strict=True):  # in folds 0 and 1
            arrays["val_ids"][arrays["val_names"] == name] = twin
        np.savez(path, **arrays)
    evidence = compared(tmp_path).evidence
    assert evidence and evidence.images == 400
    assert evidence.scores.unit == "image" and evidence.scores.rounds == 1


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_a_configuration_that_lacks_folds_is_compared_on_those_it_has(
    tmp_path: Path, metric: str
) -> None:
    """Folds 3 and 4 are hard, and only one of two equal configurations has them."""
    rng = np.random.default_rng(0)
    for fraction, number in ((0.0, 5), (0.5, 3)):
        for fold in range(number):
            places = np.arange(fold, 300, 5)
            right = np.arange(60) % 20 > 0 if fold < 3 else rng.random(60) < 0.5
            score = float(right.mean())
            add_training(
                tmp_path,
                fraction,
                right.tolist(),
                places=places.tolist(),
                changes={"data.folds": 5, "data.fold": fold, "data.metric": metric},
                metric=metric,
                val_macro_f1=score,
            )
    (pair,) = compared(tmp_path).differences
    assert pair.mean == pytest.approx(0)


@pytest.mark.slow
def test_few_groups_in_many_folds_have_an_f1_with_an_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for fraction, accuracy in ((0.0, 0.6), (0.5, 0.9)):
        for fold in range(10):
            add_training(
                tmp_path,
                fraction,
                (rng.random(20) < accuracy).tolist(),
                places=list(range(20 * fold, 20 * fold + 20)),
                groups=[fold] * 20,
                changes={"data.folds": 10, "data.fold": fold, "data.metric": "macro_f1"},
                metric="macro_f1",
                val_macro_f1=accuracy,
            )
    comparison = compared(tmp_path)
    (pair,) = comparison.differences
    assert pair.low is not None and pair.low > 0
    val = comparison.configurations[0].val
    assert val and val.images and 0 < val.images < 0.3


@pytest.mark.slow
def test_seeds_of_one_split_add_retraining_to_an_f1(tmp_path: Path) -> None:
    """The images' error is the same; the more seeds differ, the wider the interval."""
    rng = np.random.default_rng(0)
    right = rng.random(200) < 0.85
    widths = []
    for spread in (0.0001, 0.03):
        sweep = tmp_path / str(spread)
        sweep.mkdir()
        for fraction in (0.0, 0.5):
            for seed in (1, 2, 3):
                flipped = right ^ (rng.random(200) < 0.05)
                add_training(
                    sweep,
                    fraction,
                    flipped.tolist(),
                    seed=seed,
                    changes={"data.metric": "macro_f1"},
                    metric="macro_f1",
                    val_macro_f1=0.8 + fraction / 100 + spread * (seed - 2 + fraction),
                )
        (pair,) = compared(sweep).differences
        assert pair.low is not None and pair.high is not None
        widths.append(pair.high - pair.low)
    assert widths[1] > 1.2 * widths[0]


def test_a_test_image_that_validated_another_job_is_not_called_untouched(tmp_path: Path) -> None:
    folds(tmp_path, {0.0: 0.7, 0.5: 0.9})
    text = " ".join(conclusions(compared(tmp_path)))
    assert "which played no part in any choice" in text
    path = next(tmp_path.glob("*/predictions.npz"))
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    arrays["test_ids"][0] = b"%032d" % 1  # an image that validates in fold 1
    np.savez(path, **arrays)
    assert "some of which validated other trainings" in " ".join(conclusions(compared(tmp_path)))


def test_a_job_without_predictions_among_others_is_noted(tmp_path: Path) -> None:
    folds(tmp_path, {0.0: 0.7, 0.5: 0.9})
    path = next(tmp_path.glob("*/predictions.npz"))
    path.write_bytes(path.read_bytes()[:200])
    notes = compared(tmp_path).notes
    assert any("1 of 10 finished jobs have no readable predictions.npz" in note for note in notes)


def test_of_many_open_configurations_few_are_named_and_no_training_twice(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    hits = [(rng.random(60) < 0.8).tolist() for _ in range(7)]
    for number, right in enumerate([*hits, hits[0]]):  # the last one trains as the first does
        for fold in range(5):
            places = range(12 * fold, 12 * fold + 12)
            changes = {"data.folds": 5, "data.fold": fold, "optimizer.lr": 0.001 * (number + 1)}
            correct = [right[place] for place in places]
            add_training(tmp_path, 0.5, correct, places=places, changes=changes)
    choice = compared(tmp_path).choice
    assert choice.decision
    sentence = choice.text[: choice.text.index(" may do as well; in brackets the probability")]
    named = sentence.rpartition(". ")[2]
    assert named.count("pct_unfreeze=0.5, optimizer.lr=") == 4
    assert named.endswith(f"and {len(choice.decision.open) - 1 - 4} other")
