"""Calibration against computations of others: scikit-learn, torchmetrics, and by hand."""

import numpy as np
import pytest
import torch
from sklearn.metrics import brier_score_loss, log_loss

from tvf.records.calibration import (
    calibrate,
    confidence_bins,
    fit_temperature,
    score_calibration,
    softmax,
)


def _sample(count: int, classes: int, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose probabilities are right once they are divided by the temperature."""
    rng = np.random.default_rng(count + classes)
    logits = 2 * rng.normal(size=(count, classes))
    labels = [rng.choice(classes, p=row) for row in softmax(logits)]
    return (logits * temperature).astype(np.float32), np.array(labels)


@pytest.mark.parametrize("classes", [2, 5])
def test_scores_agree_with_those_of_other_libraries(classes: int) -> None:
    logits, labels = _sample(400, classes, 3.0)
    found = score_calibration(logits, labels)
    probabilities = torch.softmax(torch.from_numpy(logits).double(), 1).numpy()
    assert found.nll == pytest.approx(log_loss(labels, probabilities))
    truth = np.eye(classes)[labels]
    by_class = [brier_score_loss(truth[:, i], probabilities[:, i]) for i in range(classes)]
    assert found.brier == pytest.approx(sum(by_class))


def test_the_calibration_error_is_that_of_bins_of_equal_size() -> None:
    logits, labels = _sample(150, 3, 3.0)
    found = score_calibration(logits, labels).ece
    probabilities = softmax(logits)
    order = probabilities.max(1).argsort()
    hits = probabilities.argmax(1) == labels
    bins = order.reshape(15, 10)
    by_hand = np.mean([abs(probabilities.max(1)[b].mean() - hits[b].mean()) for b in bins])
    assert found == pytest.approx(by_hand)
    # One bin for each image: its distance from 0 or 1.
    few, right = logits[:15], labels[:15]
    alone = np.abs(softmax(few).max(1) - (few.argmax(1) == right)).mean()
    assert score_calibration(few, right).ece == pytest.approx(alone)


def test_the_temperature_is_found_and_helps() -> None:
    logits, labels = _sample(20_000, 4, 3.0)
    temperature = fit_temperature(logits, labels)
    assert temperature == pytest.approx(3.0, rel=0.03)
    raw, scaled = score_calibration(logits, labels), score_calibration(logits, labels, temperature)
    assert scaled.nll < raw.nll and scaled.brier < raw.brier and scaled.ece < 0.01 < raw.ece
    # The minimum is one: the slope of the loss, by torch's automatic differentiation, is 0.
    inverse = torch.tensor(1 / temperature, dtype=torch.float64, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits).double() * inverse, torch.from_numpy(labels)
    )
    loss.backward()
    assert inverse.grad is not None and abs(float(inverse.grad)) < 1e-4


def test_predictions_stay_and_odd_logits_are_left_alone() -> None:
    logits, labels = _sample(200, 3, 3.0)
    scaled = softmax(logits, fit_temperature(logits, labels))
    assert np.array_equal(scaled.argmax(1), logits.argmax(1))
    right = np.eye(3, dtype=np.float32)[labels] * 8
    assert fit_temperature(right, labels) == 1.0
    assert fit_temperature(-right, labels) == pytest.approx(20, rel=0.01)
    logits[0, 0] = np.nan
    assert fit_temperature(logits, labels) == 1.0
    assert fit_temperature(logits[:0], labels[:0]) == 1.0
    assert calibrate({"val": (logits, labels), "test": (right, labels)}) is None


def test_the_record_has_scores_without_and_with_the_temperature() -> None:
    val, test = _sample(300, 3, 2.0), _sample(200, 3, 2.0)
    found = calibrate({"val": val, "test": test})
    assert found is not None
    assert found["temperature"] == fit_temperature(*val)
    assert found["test"]["raw"]["nll"] == score_calibration(*test).nll
    assert found["test"]["scaled"]["nll"] == score_calibration(*test, found["temperature"]).nll


def test_few_images_have_fewer_bins() -> None:
    assert [len(each) for each in confidence_bins(np.array([0.9, 0.5, 0.7]))] == [1, 1, 1]
    logits, labels = _sample(3, 2, 1.0)
    assert 0 <= score_calibration(logits, labels).ece <= 1
