"""Scores beyond accuracy against scikit-learn's, and what is said where they are not defined."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, f1_score, roc_auc_score

from tvf.errors import InputError
from tvf.metrics import require_metric
from tvf.training.scores import MOST_CLASSES, compute_scores, require_both_classes


@given(seed=st.integers(0, 999), classes=st.integers(2, 5), count=st.integers(2, 60))
def test_they_are_scikit_learns(seed: int, classes: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    logits, labels = (
        rng.normal(size=(count, classes)).astype(np.float32),
        rng.integers(0, classes, count),
    )
    found = compute_scores(torch.from_numpy(logits), torch.from_numpy(labels), 0.5, 0.25)
    predicted = logits.argmax(1)
    assert (found.loss, found.acc) == (0.5, 0.25)
    assert found.macro_f1 == pytest.approx(f1_score(labels, predicted, average="macro"), abs=1e-6)
    confusion = confusion_matrix(labels, predicted, labels=range(classes))
    assert found.confusion == confusion.tolist()
    for number, (value, row) in enumerate(zip(found.recall, confusion, strict=True)):
        assert value == (pytest.approx(row[number] / row.sum(), abs=1e-6) if row.sum() else None)
    if classes == 2 and len({*labels}) == 2:
        assert found.auroc == pytest.approx(
            roc_auc_score(labels, logits[:, 1] - logits[:, 0]), abs=1e-6
        )
    else:
        assert found.auroc is None


def test_auroc_tells_images_apart_that_a_softmax_rounds_to_one() -> None:
    logits = torch.tensor([[0.0, 40.0], [0.0, 41.0], [0.0, 42.0]])
    assert compute_scores(logits, torch.tensor([0, 1, 1]), 0, 0).auroc == 1.0


def test_logits_that_are_no_numbers_have_no_auroc() -> None:
    logits = torch.full((4, 2), float("nan"))
    assert compute_scores(logits, torch.tensor([1, 1, 0, 0]), 0, 0).auroc is None


def test_many_classes_have_no_confusion_matrix() -> None:
    logits = torch.eye(MOST_CLASSES + 1)
    found = compute_scores(logits, torch.arange(MOST_CLASSES + 1), 0, 1)
    assert (
        found.confusion is None
        and found.macro_f1 == pytest.approx(1)
        and found.recall == [1.0] * (MOST_CLASSES + 1)
    )


def test_records_name_them_by_part() -> None:
    named = compute_scores(torch.eye(2), torch.arange(2), 0.1, 1.0).named("val")
    assert list(named) == [
        f"val_{key}" for key in ("loss", "acc", "macro_f1", "auroc", "recall", "confusion")
    ]


def test_a_metric_that_is_not_defined_is_refused() -> None:
    with pytest.raises(
        InputError, match="data.metric='f1' is refused: choose one of accuracy, macro_f1, auroc"
    ):
        require_metric("f1")
    with pytest.raises(
        InputError, match="data.metric=auroc is refused: it is for 2 classes, here are 10"
    ):
        require_metric("auroc", 10)
    with pytest.raises(InputError, match="all validation images are of one class"):
        require_both_classes("auroc", torch.zeros(5, dtype=torch.int64))
    require_both_classes("accuracy", torch.zeros(5, dtype=torch.int64))
