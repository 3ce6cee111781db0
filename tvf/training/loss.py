"""The training loss: cross-entropy, optionally with label smoothing, weights, mixed images.

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
    classes. `class_weights`, float [classes], weight each class's loss. Images can have weights,
    too: the loss of a batch is the weighted mean over its images, where each counts by the product
    of its own weight and that of its class.
    """

    label_smoothing: float = 0.0
    class_weights: Tensor | None = None

    def __post_init__(self) -> None:
        require_number("loss.label_smoothing", self.label_smoothing, 0, 0.9)

    def sum(self, logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Sum over images, with `weights` float [N] if they have any.

        `targets` are classes, int64 [N], or shares, float [N, classes].
        """
        by_class = self.weights_for(logits)
        kind = "sum" if weights is None else "none"
        losses = cross_entropy(
            logits, targets, by_class, reduction=kind, label_smoothing=self.label_smoothing
        )
        return losses if weights is None else (losses * weights).sum()

    def weights_for(self, logits: Tensor) -> Tensor | None:
        """The class weights where `logits` are, in their precision; None if there are none."""
        weights = self.class_weights
        return None if weights is None else weights.to(logits, non_blocking=True)

    def size(self, labels: Tensor, weights: Tensor | None = None) -> float:
        """The divisor that makes the sum over images with these labels, int64 [N], their mean.

        It is the number of images or, with class weights or `weights` float [N], the sum of their
        weights; 1 if all of these are 0, as the sum is then. Labels and weights are on the CPU.
        """
        if self.class_weights is None and weights is None:
            return float(len(labels))
        # All are in the host's memory, or the host would wait here for all earlier work.
        each = torch.ones(len(labels)) if weights is None else weights
        if self.class_weights is not None:
            each = each * self.class_weights[labels]
        return float(each.sum().numpy()) or 1.0


def balanced_weights(
    labels: Tensor, classes: Sequence[str], weights: Tensor | None = None
) -> Tensor:
    """Class weights, float [classes], that give all classes equal weight: N / (classes * images).

    Like scikit-learn's "balanced" (King & Zeng 2001). Images with `weights`, float [N], count by
    them. Raises InputError if a class has no image.
    """
    counts = labels.bincount(weights, minlength=len(classes))
    if missing := [name for name, count in zip(classes, counts.tolist(), strict=True) if not count]:
        raise InputError(
            "data.class_weights=balanced must have training images of every class, but there are "
            f"none of class {', '.join(missing)}. Raise data.limit if it is set."
        )
    total = len(labels) if weights is None else float(weights.sum())
    return total / (len(classes) * counts.float())


def share_by_weight(
    parts: Tensor, labels: Tensor, weights: Tensor, classes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The targets of images that are mixed of weighted ones.

    `parts`, float [N, N], says of which images each is mixed; `labels`, int64 [N], and `weights`,
    float [N], are those of the images. Returns the shares of classes in each image, float
    [N, classes], the same with each part counting by its weight, and the weights of the images, so
    that the loss is as if each part had been counted by its own weight.
    """
    by_class = one_hot(labels, classes).float()
    weighted = parts * weights
    total = weighted.sum(1)
    shares = parts @ by_class
    by_weight = (weighted @ by_class) / total.where(total > 0, 1)[:, None]
    return shares, torch.where(total[:, None] > 0, by_weight, shares), total


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
