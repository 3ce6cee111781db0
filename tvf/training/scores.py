"""How well logits separate the classes: accuracy, and measures that also reflect rare classes."""

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from tvf.errors import InputError
from tvf.metrics import macro_f1

MAX_CONFUSION_CLASSES = 100  # with more, a confusion matrix would be most of a record


@dataclass(frozen=True)
class Scores:
    """The scores of one split. `confusion[i][j]` counts images of class i predicted as class j.

    `macro_f1` is the mean over the classes that occur or were predicted. `recall` is None for a
    class without images. `auroc` is None unless there are two classes, images of both, and only
    finite logits. `confusion` is None with more than MAX_CONFUSION_CLASSES classes.
    """

    loss: float
    acc: float
    macro_f1: float
    auroc: float | None
    recall: list[float | None]
    confusion: list[list[int]] | None

    def named(self, split: str) -> dict[str, Any]:
        """The scores under the names that records use: val_acc, test_acc."""
        return {f"{split}_{key}": value for key, value in asdict(self).items()}


def compute_scores(logits: Tensor, labels: Tensor, loss: float, acc: float) -> Scores:
    """The scores of `logits`, float [N, C], given `labels`, int64 [N], loss and accuracy.

    Both tensors are on the CPU.
    """
    classes = logits.shape[1]
    cells = labels * classes + logits.argmax(1)
    confusion = cells.bincount(minlength=classes**2).reshape(classes, classes).numpy()
    hits, images = confusion.diagonal(), confusion.sum(1)
    return Scores(
        loss=loss,
        acc=acc,
        macro_f1=macro_f1(hits, images, confusion.sum(0)),
        auroc=_auroc(logits, labels),
        recall=[
            hit / count if count else None
            for hit, count in zip(hits.tolist(), images.tolist(), strict=True)
        ],
        confusion=confusion.tolist() if classes <= MAX_CONFUSION_CLASSES else None,
    )


def _auroc(logits: Tensor, labels: Tensor) -> float | None:
    """The area under the ROC curve of class 1 against class 0; None if it is undefined.

    It is the share of pairs of images, one of each class, in which that of class 1 has the higher
    score, ties counting half: the statistic of Mann and Whitney (Hanley and McNeil 1982).
    """
    from scipy.stats import rankdata  # takes half a second

    if logits.shape[1] != 2 or len(labels.unique()) < 2 or not logits.isfinite().all():
        return None
    # Not softmax: it rounds to 1 when the network is confident, and would tie those images.
    # The difference of finite logits can overflow; nan_to_num keeps the order.
    margin = (logits[:, 1] - logits[:, 0]).nan_to_num()
    ranks, ones = rankdata(margin.numpy()), labels.numpy() == 1
    count = int(ones.sum())
    higher = ranks[ones].sum() - count * (count + 1) / 2
    return float(higher / (count * (len(ones) - count)))


def require_both_classes(metric: str, labels: Tensor) -> None:
    """Raise InputError if `metric` is undefined for validation images with these labels."""
    if metric == "auroc" and len(labels.unique()) < 2:
        raise InputError(
            "data.metric=auroc must have validation images of both classes, but all of them are "
            "of one class. Raise data.limit if it is set, or choose macro_f1."
        )
