"""Ridge regression as a classifier of features, with a penalty that leave-one-out chooses."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

PENALTIES = tuple(10 ** (power / 2) for power in range(-8, 9))  # times the number of images
SCALES = tuple(2 ** (power / 2) for power in range(15))


@dataclass(frozen=True)
class Ridge:
    """A linear classifier: `features @ weight + bias`, float64 [width, C] and [C].

    `penalty` is what fitted best, times the number of images. `left_out` [N, C] is what the
    classifier that had not seen an image says of it.
    """

    weight: Tensor
    bias: Tensor
    penalty: float
    left_out: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """The logits of features [N, width]."""
        return features.double() @ self.weight + self.bias


def fit_ridge(features: Tensor, labels: Tensor, classes: int, *, standardise: bool = True) -> Ridge:
    """Regress one-hot targets on features [N, width], with the penalty that leave-one-out chooses.

    Features are centred and, with `standardise`, of equal spread. All penalties share one
    eigendecomposition, and leaving an image out takes no further fit: its residual is that of the
    whole fit divided by 1 - its leverage (Allen 1974, PRESS; Golub, Heath and Wahba 1979).
    """
    x, targets = features.double(), one_hot(labels, classes).double()
    mean, spread = x.mean(0), column_spread(x) if standardise else x.new_ones(x.shape[1])
    x, level = (x - mean) / spread, targets.mean(0)
    number = len(x)
    left, values, right = _decompose(x)
    projected = left.T @ (targets - level)  # [rank, C]
    best: tuple[float, float, Tensor] | None = None
    for penalty in PENALTIES:
        shrink = values**2 / (values**2 + penalty * number)
        fitted = left @ (shrink[:, None] * projected) + level
        leverage = (left**2) @ shrink + 1 / number
        residual = (targets - fitted) / (1 - leverage).clamp(min=1e-8)[:, None]
        error = float(residual.square().mean())
        if best is None or error < best[0]:
            best = error, penalty, targets - residual
    assert best is not None
    _, penalty, left_out = best
    gain = values / (values**2 + penalty * number)
    weight = right @ (gain[:, None] * projected) / spread[:, None]
    return Ridge(weight, level - mean @ weight, penalty, left_out)


def _decompose(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The singular values of `x` and its vectors, from the smaller of its two Gram matrices."""
    wide = x.shape[1] > x.shape[0]
    squares, vectors = torch.linalg.eigh(x @ x.T if wide else x.T @ x)
    kept = squares > squares.max().clamp(min=1e-300) * 1e-12
    values, vectors = squares[kept].sqrt(), vectors[:, kept]
    if wide:
        return vectors, values, x.T @ vectors / values
    return x @ vectors / values, values, vectors


def best_scale(logits: Tensor, labels: Tensor) -> float:
    """The factor that makes logits [N, C] fit labels best, by cross-entropy.

    Regression on one-hot targets returns logits between 0 and 1, which are far too timid.
    """
    return min(SCALES, key=lambda scale: float(cross_entropy(logits * scale, labels)))


def column_spread(x: Tensor) -> Tensor:
    """The standard deviation of each column of `x`; 1 for constant ones."""
    spread = x.std(0, correction=0)
    return torch.where(spread > 1e-6 * spread.max(), spread, 1.0)
