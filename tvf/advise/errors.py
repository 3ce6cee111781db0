"""How far scores on the validation images can be trusted, and the score without skill."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from tvf.records import Predictions
from tvf.report import match_images, standard_errors


def errors_of(predicted: Sequence[Predictions], metric: str) -> np.ndarray:
    """Standard errors of the scores and their differences: see `tvf.report.standard_errors`."""
    return standard_errors(match_images([[each] for each in predicted]), metric)


def score_of_largest_class(labels: Tensor, metric: str) -> float:
    """The score of always predicting the class with most images."""
    if metric == "auroc":
        return 0.5
    share = float(labels.bincount().max()) / len(labels)
    if metric == "accuracy":
        return share
    return 2 * share / (1 + share) / len(labels.unique())  # F1 is 0 for every other class
