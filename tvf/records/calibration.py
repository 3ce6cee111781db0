"""Whether probabilities can be believed: scores of their calibration, and temperature scaling.

A network that is 90 % sure should be right nine times in ten; fine-tuned ones are usually surer
than that. One number, the temperature, fitted on validation images, mends most of it and changes no
prediction (Guo et al. 2017, "On Calibration of Modern Neural Networks").
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

BINS = 15
LOWEST, HIGHEST = 0.05, 20.0  # temperatures


@dataclass(frozen=True)
class CalibrationScores:
    """Scores of the probabilities for some images; for all of them, lower is better.

    `nll` is the mean negative log-likelihood of the true class, in nats. `brier` is the mean over
    images of the squared distance between probabilities and the true class, summed over classes,
    from 0 to 2 (Brier 1950). `ece` is the expected calibration error: images are sorted by the
    probability of the predicted class into 15 bins of equal size, and the distance between its mean
    and the share of correct predictions is averaged over the bins, weighted by size.
    """

    nll: float
    brier: float
    ece: float


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probabilities, float64 [N, C], of logits [N, C] that are divided by the temperature."""
    return np.exp(_log_softmax(logits, temperature))


def score_calibration(
    logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0
) -> CalibrationScores:
    """The calibration of logits, float [N, C], for labels, int [N]; N must be at least 1."""
    log_probabilities = _log_softmax(logits, temperature)
    probabilities, rows = np.exp(log_probabilities), np.arange(len(labels))
    errors = probabilities.copy()
    errors[rows, labels] -= 1
    confidence, hits = _confidence(logits, labels, probabilities)
    return CalibrationScores(
        nll=float(-log_probabilities[rows, labels].mean()),
        brier=float((errors**2).sum(1).mean()),
        ece=float(
            sum(
                len(each) * abs(confidence[each].mean() - hits[each].mean())
                for each in confidence_bins(confidence)
            )
            / len(labels)
        ),
    )


def confidence_bins(confidence: np.ndarray, bins: int = BINS) -> list[np.ndarray]:
    """The positions of images in bins of equal size, from the least to the most confident."""
    order = np.argsort(confidence, kind="stable")
    return np.array_split(order, min(bins, len(order)))


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature with the lowest negative log-likelihood for these images.

    It is between 0.05 and 20. Returns 1 if there is nothing to fit: no image, a logit that is not
    finite, or only right predictions, of which the likelihood would have the network be certain.
    """
    from scipy.optimize import minimize_scalar

    if not np.isfinite(logits).all() or (logits.argmax(1) == labels).all():
        return 1.0
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        return float(-_log_softmax(logits, np.exp(log_temperature))[rows, labels].mean())

    # The loss is convex in 1 / temperature, so it has one minimum.
    bounds = (np.log(LOWEST), np.log(HIGHEST))
    found: Any = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def calibrate(predictions: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, Any] | None:
    """The temperature, fitted on "val", and each split's scores without and with it.

    `predictions` holds logits, float [N, C], and labels, int [N], by split. Returns None if a logit
    is not finite.
    """
    if not all(np.isfinite(logits).all() for logits, _ in predictions.values()):
        return None
    temperature = fit_temperature(*predictions["val"])
    scores = {
        split: {
            "raw": asdict(score_calibration(logits, labels)),
            "scaled": asdict(score_calibration(logits, labels, temperature)),
        }
        for split, (logits, labels) in predictions.items()
    }
    return {"temperature": temperature, **scores}


def _log_softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(1, keepdims=True)
    return scaled - np.log(np.exp(scaled).sum(1, keepdims=True))


def _confidence(
    logits: np.ndarray, labels: np.ndarray, probabilities: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The probability of the predicted class, and whether it is the true one, [N] each."""
    predicted = logits.argmax(1)  # of logits: probabilities can tie where these differ
    return probabilities[np.arange(len(labels)), predicted], predicted == labels
