"""The metrics that can choose epochs and fractions, on validation images: `data.metric`."""

from collections.abc import Mapping
from typing import Any

from tvf.errors import InputError, require_choice

METRICS = {
    "accuracy": "acc",
    "macro_f1": "macro_f1",
    "auroc": "auroc",
}  # what records call them, after val_ or test_
WORDS = {"accuracy": "accuracy", "macro_f1": "macro F1", "auroc": "AUROC"}  # what people call them


def metric_of(config: Mapping[str, Any]) -> str:
    """The metric that a job's config chooses: data of the user's own need not name it."""
    return config["data"].get("metric") or "accuracy"


def require_metric(metric: object, classes: int | None = None) -> None:
    """Raise InputError unless `metric` is known, and defined for so many classes."""
    require_choice("data.metric", metric, tuple(METRICS))
    if metric == "auroc" and classes not in (None, 2):
        raise InputError(
            f"data.metric=auroc is refused: it is for 2 classes, here are {classes}. Choose macro_f1."
        )
