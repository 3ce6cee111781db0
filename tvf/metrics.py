"""The metrics that can choose epochs and fractions on validation images: `data.metric`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tvf.errors import InputError, require_choice

if TYPE_CHECKING:
    import numpy as np

# The key of each metric in records, after val_ or test_.
METRICS = {"accuracy": "acc", "macro_f1": "macro_f1", "auroc": "auroc"}
# The name of each metric in reports.
WORDS = {"accuracy": "accuracy", "macro_f1": "macro F1", "auroc": "AUROC"}


def metric_of(config: Mapping[str, Any]) -> str:
    """Return the metric in a job's config; accuracy if a custom data source has none."""
    return config["data"].get("metric") or "accuracy"


def require_metric(metric: object, classes: int | None = None) -> None:
    """Raise InputError unless `metric` is known, and defined for this number of classes."""
    require_choice("data.metric", metric, tuple(METRICS))
    if metric == "auroc" and classes not in (None, 2):
        raise InputError(
            f"data.metric=auroc must be used with 2 classes, but there are {classes}. "
            "Choose macro_f1."
        )


def macro_f1(hits: "np.ndarray", images: "np.ndarray", predictions: "np.ndarray") -> float:
    """The mean F1 over the classes that occur or were predicted.

    Of each class, int [C]: how many images it has, how often it was predicted, and how often both.
    """
    occurring = images + predictions > 0
    return float((2 * hits[occurring] / (images + predictions)[occurring]).mean())
