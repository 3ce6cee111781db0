"""Scores beyond accuracy against counts made by hand, and where scores are undefined."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from tvf.errors import InputError
from tvf.metrics import require_metric
from tvf.training.scores import MAX_CONFUSION_CLASSES, compute_scores, require_both_classes


def _count(true: list[int], predicted: list[int], one: int, other: int) -> int:
    """Images of class `one` predicted as class `other`."""
    return sum(pair == (one, other) for pair in zip(true, predicted, strict=True))


def _f1(true: list[int], predicted: list[int], number: int) -> float:
    """The harmonic mean of precision and recall of a class; 0 if it has no hit."""
    hits = _count(true, predicted, number, number)
    if not hits:
        return 0.0
    precision, recall = hits / predicted.count(number), hits / true.count(number)
    return 2 / (1 / precision + 1 / recall)


def _pairs_in_order(true: list[int], margins: list[float]) -> float:
    """The share of (class 1, class 0) pairs whose first has the larger margin; ties count half."""
    positive = [margin for margin, label in zip(margins, true, strict=True) if label]
    negative = [margin for margin, label in zip(margins, true, strict=True) if not label]
    ordered = sum((a > b) + (a == b) / 2 for a in positive for b in negative)
    return ordered / (len(positive) * len(negative))


@given(
    seed=st.integers(0, 999),
    classes=st.integers(2, 10),
    count=st.integers(2, 60),
    ties=st.booleans(),
)
def test_scores_are_the_counts_made_by_hand(
    seed: int, classes: int, count: int, ties: bool
) -> None:
    """With few images, many classes are missing; rounded logits tie."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, classes)).astype(np.float32)
    if ties:
        logits = logits.round()
    true = rng.integers(0, classes, count).tolist()
    found = compute_scores(torch.from_numpy(logits), torch.tensor(true), 0.5, 0.25)
    predicted = logits.argmax(1).tolist()
    assert (found.loss, found.acc) == (0.5, 0.25)
    assert found.macro_f1 == pytest.approx(
        np.mean([_f1(true, predicted, number) for number in {*true, *predicted}]), abs=1e-12
    )
    assert found.confusion == [
        [_count(true, predicted, one, other) for other in range(classes)] for one in range(classes)
    ]
    for number, recall in enumerate(found.recall):
        hits, images = _count(true, predicted, number, number), true.count(number)
        assert recall == (pytest.approx(hits / images, abs=1e-12) if images else None)
    if classes == 2 and len({*true}) == 2:
        margins = (logits[:, 1] - logits[:, 0]).tolist()
        assert found.auroc == _pairs_in_order(true, margins)  # bit for bit
        assert found.auroc == pytest.approx(roc_auc_score(true, margins), abs=1e-12)
    else:
        assert found.auroc is None


def test_macro_f1_counts_a_class_that_is_only_predicted_and_no_absent_class() -> None:
    logits = torch.eye(4)[[0, 0, 1]]  # classes 0, 0 and 1 are predicted
    found = compute_scores(logits, torch.tensor([0, 0, 0]), 0, 0)
    assert found.macro_f1 == pytest.approx((0.8 + 0) / 2)
    assert found.recall == [pytest.approx(2 / 3), None, None, None]


def test_auroc_separates_images_that_a_softmax_rounds_to_one() -> None:
    logits = torch.tensor([[0.0, 40.0], [0.0, 41.0], [0.0, 42.0]])
    assert compute_scores(logits, torch.tensor([0, 1, 1]), 0, 0).auroc == 1.0


def test_auroc_orders_finite_logits_whose_difference_overflows() -> None:
    largest = torch.finfo(torch.float32).max
    logits = torch.tensor([[largest, -largest], [0.0, 1.0], [-largest, largest]])
    assert compute_scores(logits, torch.tensor([0, 0, 1]), 0, 0).auroc == 1.0


def test_logits_that_are_not_finite_have_no_auroc() -> None:
    logits = torch.full((4, 2), float("nan"))
    assert compute_scores(logits, torch.tensor([1, 1, 0, 0]), 0, 0).auroc is None


def test_many_classes_have_no_confusion_matrix() -> None:
    classes = MAX_CONFUSION_CLASSES + 1
    found = compute_scores(torch.eye(classes), torch.arange(classes), 0, 1)
    assert found.confusion is None
    assert found.macro_f1 == pytest.approx(1)
    assert found.recall == [1.0] * classes


def test_records_name_scores_by_split() -> None:
    named = compute_scores(torch.eye(2), torch.arange(2), 0.1, 1.0).named("val")
    assert list(named) == [
        f"val_{key}" for key in ("loss", "acc", "macro_f1", "auroc", "recall", "confusion")
    ]


def test_a_metric_that_is_unknown_or_undefined_raises() -> None:
    with pytest.raises(InputError, match="data.metric=f1 must be one of accuracy, macro_f1, auroc"):
        require_metric("f1")
    with pytest.raises(
        InputError, match="data.metric=auroc must be used with 2 classes, but there are 10"
    ):
        require_metric("auroc", 10)
    with pytest.raises(InputError, match="of both classes, but all of them are of one class"):
        require_both_classes("auroc", torch.zeros(5, dtype=torch.int64))
    require_both_classes("accuracy", torch.zeros(5, dtype=torch.int64))
