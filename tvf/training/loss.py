"""What training minimises: cross-entropy, with smoothed labels, weighted classes or mixed images where they are chosen.

Validation and test losses are plain cross-entropy whatever is chosen here, so that jobs can be compared by them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot
from torchvision.transforms import v2

from tvf.errors import InputError, require_number


@dataclass(frozen=True)
class CrossEntropyLoss:
    """Cross-entropy; `label_smoothing` (Szegedy et al. 2016) gives that share of each label to all classes alike.

    `class_weights`, float [classes], count the images of each class so much.
    """

    label_smoothing: float = 0.0
    class_weights: Tensor | None = None

    def __post_init__(self) -> None:
        require_number("loss.label_smoothing", self.label_smoothing, 0, 0.9)

    def sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Summed over images. `targets` are classes, int64 [N], or shares of them, float [N, classes]."""
        weights = None if self.class_weights is None else self.class_weights.to(logits)
        return cross_entropy(
            logits, targets, weights, reduction="sum", label_smoothing=self.label_smoothing
        )

    def size(self, labels: Tensor) -> float:
        """What the sum over images of these classes, int64 [N], is divided by: their number, or their weights' sum."""
        return float(
            len(labels)
            if self.class_weights is None
            else self.class_weights.cpu()[labels.cpu()].sum()
        )


def balanced_weights(labels: Tensor, classes: Sequence[str]) -> Tensor:
    """A weight for each class, float [classes], by which all count alike: N / (classes * its images).

    As scikit-learn's "balanced" (King & Zeng 2001). InputError if a class has no image, and so no weight.
    """
    counts = labels.bincount(minlength=len(classes))
    if missing := [name for name, count in zip(classes, counts.tolist(), strict=True) if not count]:
        raise InputError(
            f"data.class_weights=balanced is refused: no training image is of class {', '.join(missing)} (data.limit?)."
        )
    return len(labels) / (len(classes) * counts.float())


@dataclass(frozen=True)
class ImageMixing:
    """Images in pairs, whose labels are shares: "mixup" blends them (Zhang et al. 2018), "cutmix" pastes a part of one
    into the other (Yun et al. 2019). The share is drawn from Beta(alpha, alpha), once a batch; at 0 nothing is mixed.

    What an image is mixed with differs from epoch to epoch, so no activations of it can be stored.
    """

    kind: str
    alpha: float

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(
                f"mix.kind={self.kind!r} is refused: choose one of {', '.join(KINDS)}."
            )
        require_number("mix.alpha", self.alpha, 0)

    def __call__(
        self, images: Tensor, labels: Tensor, classes: int, seeds: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """A batch of images, uint8 [N, 3, S, S], and its classes: mixed ones, float, and shares, float [N, classes].

        A pure function of its arguments: `seeds` say what is drawn.
        """
        if not self.alpha:
            return images.float(), one_hot(labels, classes).float()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(
                int(np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0] >> 1)
            )
            return KINDS[self.kind](alpha=self.alpha, num_classes=classes)(images.float(), labels)


KINDS = {"mixup": v2.MixUp, "cutmix": v2.CutMix}


def no_mixing() -> None:
    """No mixing."""
