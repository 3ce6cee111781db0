"""Classifiers of pooled features that need no training: nearest neighbours and ridge regression."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, one_hot

NEIGHBOURS = 10
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
    mean, spread = x.mean(0), _spread(x) if standardise else x.new_ones(x.shape[1])
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


def classify_by_neighbours(
    train: Tensor, labels: Tensor, val: Tensor, classes: int, neighbours: int = NEIGHBOURS
) -> Tensor:
    """Each class's share of the nearest training images by cosine, [N, C]; ties go to the nearer.

    Features are centred on the training images, since those after a ReLU all point one way.
    """
    center = train.mean(0)
    near, places = (normalize(val - center) @ normalize(train - center).T).topk(
        min(neighbours, len(train)), dim=1
    )
    weights = 1 + 1e-3 * near  # a tenth of a vote at most, in all
    votes = torch.zeros(len(val), classes, dtype=weights.dtype)
    return votes.scatter_add_(1, labels[places], weights) / places.shape[1]


def join_depths(depths: Sequence[Tensor], reference: Sequence[Tensor]) -> Tensor:
    """All depths side by side, each standardised on `reference` and of equal weight: Head2Toe.

    Evci, Dumoulin, Larochelle and Mozer 2022, without their selection of features.
    """
    joined = []
    for features, base in zip(depths, reference, strict=True):
        scaled = (features - base.mean(0)) / _spread(base)
        joined.append(scaled / features.shape[1] ** 0.5)
    return torch.cat(joined, dim=1)


def _spread(x: Tensor) -> Tensor:
    """The standard deviation of each column of `x`; 1 for constant ones."""
    spread = x.std(0, correction=0)
    return torch.where(spread > 1e-6 * spread.max(), spread, 1.0)
