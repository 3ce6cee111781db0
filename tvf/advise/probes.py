"""Probes that need no training: nearest neighbours, and the features of all depths at once."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tvf.models import column_spread

NEIGHBOURS = 10


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
        scaled = (features - base.mean(0)) / column_spread(base)
        joined.append(scaled / features.shape[1] ** 0.5)
    return torch.cat(joined, dim=1)
