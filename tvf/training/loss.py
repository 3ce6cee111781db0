"""The training loss: cross-entropy, optionally with label smoothing, class weights, mixed images.

Validation and test losses are always plain cross-entropy, so that they are comparable across jobs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot
from torchvision.transforms import v2

from tvf.errors import InputError, require_choice, require_number

MIXERS = {"mixup": v2.MixUp, "cutmix": v2.CutMix}


@dataclass(frozen=True)
class CrossEntropyLoss:
    """Cross-entropy, summed over images, with label smoothing and class weights.

    `label_smoothing` (Szegedy et al. 2016) spreads that share of each label evenly over all
    classes. `class_weights`, float [classes], weight each class's loss.
    """

    label_smoothing: float = 0.0
    class_weights: Tensor | None = None

    def __post_init__(self) -> None:
        require_number("loss.label_smoothing", self.label_smoothing, 0, 0.9)

    def sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Sum over images. `targets` are classes, int64 [N], or shares, float [N, classes]."""
        weights = (
            None if self.class_weights is None else self.class_weights.to(logits, non_blocking=True)
        )
        return cross_entropy(
            logits, targets, weights, reduction="sum", label_smoothing=self.label_smoothing
        )

    def size(self, labels: Tensor) -> float:
        """The divisor that makes the sum over images with these labels, int64 [N], their mean.

        It is the number of images or, with class weights, the sum of their weights. The labels are
        on the CPU.
        """
        if self.class_weights is None:
            return float(len(labels))
        # Both are in the host's memory, or the host would wait here for all earlier work.
        return float(self.class_weights[labels].sum().numpy())


def balanced_weights(labels: Tensor, classes: Sequence[str]) -> Tensor:
    """Class weights, float [classes], that give all classes equal weight: N / (classes * images).

    Like scikit-learn's "balanced" (King & Zeng 2001). Raises InputError if a class has no image.
    """
    counts = labels.bincount(minlength=len(classes))
    if missing := [name for name, count in zip(classes, counts.tolist(), strict=True) if not count]:
        raise InputError(
            "data.class_weights=balanced must have training images of every class, but there are "
            f"none of class {', '.join(missing)}. Raise data.limit if it is set."
        )
    return len(labels) / (len(classes) * counts.float())


@dataclass(frozen=True)
class ImageMixing:
    """Mixes pairs of images, and their labels in the same proportion.

    "mixup" blends them (Zhang et al. 2018); "cutmix" pastes a rectangle of one into the other (Yun
    et al. 2019). The proportion is drawn from Beta(alpha, alpha) once per batch; an alpha of 0
    mixes nothing. Pairs change every epoch, so activations of mixed images cannot be cached.
    """

    kind: str
    alpha: float

    def __post_init__(self) -> None:
        require_choice("mix.kind", self.kind, tuple(MIXERS))
        require_number("mix.alpha", self.alpha, 0)

    def __call__(
        self, images: Tensor, labels: Tensor, classes: int, seeds: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Mix a batch of images, uint8 [N, 3, S, S], with labels, int64 [N].

        Returns mixed images, float, and class shares, float [N, classes]. A pure function of its
        arguments: `seeds` determine what is drawn.
        """
        if not self.alpha:
            return images.float(), one_hot(labels, classes).float()
        seed = np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0] >> 1
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(seed))  # not those of GPUs, for dropout
            mixer = MIXERS[self.kind](alpha=self.alpha, num_classes=classes)
            return mixer(images.float(), labels)


def no_mixing() -> None:
    """Train on images as they are."""
