"""The metrics that can choose epochs and fractions on validation images: `data.metric`."""

from collections.abc import Mapping
from typing import Any

from tvf.errors import InputError, require_choice

# What records call each metric, after val_ or test_.
METRICS = {"accuracy": "acc", "macro_f1": "macro_f1", "auroc": "auroc"}
# What reports call each metric.
WORDS = {"accuracy": "accuracy", "macro_f1": "macro F1", "auroc": "AUROC"}


def metric_of(config: Mapping[str, Any]) -> str:
    """Return the metric that a job's config chooses; a user's own data source may not name one."""
    return config["data"].get("metric") or "accuracy"


def require_metric(metric: object, classes: int | None = None) -> None:
    """Raise InputError unless `metric` is known, and defined for this number of classes."""
    require_choice("data.metric", metric, tuple(METRICS))
    if metric == "auroc" and classes not in (None, 2):
        raise InputError(
            f"data.metric=auroc must be used with 2 classes, here are {classes}. Choose macro_f1."
        )
