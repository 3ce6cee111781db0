"""How well logits tell classes apart: accuracy, and torchmetrics' measures of it that rare classes count in as well."""

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor
from torchmetrics.functional.classification import (
    binary_auroc,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_recall,
)

from tvf.errors import InputError

MOST_CLASSES = 100  # with more, a confusion matrix would be most of a record


@dataclass(frozen=True)
class Scores:
    """Of one part of the data. `confusion[i][j]` counts images of class i that were taken for class j.

    `macro_f1` is the mean over the classes that occur or were predicted; a class without images has no recall (None).
    `auroc` is None where there are not two classes, or images of one of them only, or logits that are not finite.
    """

    loss: float
    acc: float
    macro_f1: float
    auroc: float | None
    recall: list[float | None]
    confusion: list[list[int]] | None

    def named(self, part: str) -> dict[str, Any]:
        """The scores as records call them: val_acc, test_acc."""
        return {f"{part}_{key}": value for key, value in asdict(self).items()}


def compute_scores(logits: Tensor, labels: Tensor, loss: float, acc: float) -> Scores:
    """The scores of `logits`, float [N, C], by `labels`, int64 [N]; `loss` and `acc` are known already."""
    classes = logits.shape[1]
    present = labels.bincount(minlength=classes) > 0
    recall = multiclass_recall(logits, labels, classes, average=None, validate_args=False)
    confusion = None
    if classes <= MOST_CLASSES:
        confusion = multiclass_confusion_matrix(
            logits, labels, classes, validate_args=False
        ).tolist()
    return Scores(
        loss=loss,
        acc=acc,
        macro_f1=multiclass_f1_score(
            logits, labels, classes, average="macro", validate_args=False
        ).item(),
        auroc=binary_auroc(_ranks(logits[:, 1] - logits[:, 0]), labels, validate_args=False).item()
        if classes == 2 and present.all() and logits.isfinite().all()
        else None,
        recall=[
            value if there else None
            for value, there in zip(recall.tolist(), present.tolist(), strict=True)
        ],
        confusion=confusion,
    )


def _ranks(values: Tensor) -> Tensor:
    """The same order, in [0, 1]: a sigmoid would round to 1 wherever the network is sure, and order those no longer."""
    distinct, ranks = values.unique(return_inverse=True)
    return ranks.double() / max(len(distinct) - 1, 1)


def require_both_classes(metric: str, labels: Tensor) -> None:
    """Raise InputError if `metric` cannot be told of validation images with these labels."""
    if metric == "auroc" and len(labels.unique()) < 2:
        raise InputError(
            "data.metric=auroc is refused: all validation images are of one class (data.limit?)."
        )
