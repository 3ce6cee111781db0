"""Simulated sweeps, image by image: which images each configuration's trainings get right.

Image i is classified correctly by training t of configuration c where a sum of normal effects lies
below a threshold, which the configuration's true accuracy sets. The effects have a total variance
of 1, so that true accuracies are exact.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

IMAGES, GROUPS = 1968, 44  # cells and modules of the default data, without test images
ACCURACY, ACCURACY_SD = 0.85, 0.015  # of true accuracies


@dataclass(frozen=True)
class Effects:
    """Variances of the effects; what they leave of 1 is the noise of one training on one image.

    `image` and `group` are difficulty, common to all configurations; `image_by_configuration` and
    `group_by_configuration` are what one configuration finds easier than another; `training` moves
    all images of one training.
    """

    image: float
    image_by_configuration: float
    training: float
    group: float = 0.0
    group_by_configuration: float = 0.0

    @property
    def noise(self) -> float:
        return 1 - sum(vars(self).values())


# Calibrated to the default data: a score varies by 0.0075 (sd) between seeds of one split, half of
# it shared by all images of a training, and the difference of two configurations, averaged over
# seeds, by 0.013 between splits that validate a fifth of the images. In BY_GROUP the splits are by
# group, and half of that variance is shared by the images of a group.
BY_IMAGE = Effects(image=0.8399, image_by_configuration=0.1531, training=0.00052)
BY_GROUP = Effects(
    image=0.8398,
    group=0.1,
    image_by_configuration=0.0446,
    group_by_configuration=0.00855,
    training=0.00052,
)


@dataclass(frozen=True)
class Sweep:
    """`correct` (configurations, seeds, images); `fold` and `group` (images,)."""

    correct: np.ndarray
    fold: np.ndarray
    group: np.ndarray

    def results(self) -> list[np.ndarray]:
        """For each configuration a matrix (trainings, images): one training a fold and seed."""
        folds = np.arange(self.fold.max() + 1)
        inside = self.fold == folds[:, None]
        return [
            np.concatenate([np.where(inside, seed, np.nan) for seed in seeds])
            for seeds in self.correct
        ]


def simulate(
    effects: Effects, accuracies: np.ndarray, folds: int, rng: np.random.Generator, seeds: int = 1
) -> Sweep:
    """One sweep of configurations with the given true accuracies (configurations,)."""
    shape = (len(accuracies), seeds, IMAGES)

    def draw(variance: float, *size: int) -> np.ndarray:
        return np.float32(np.sqrt(variance)) * rng.standard_normal(size, dtype=np.float32)

    group = np.sort(rng.integers(GROUPS, size=IMAGES))
    grouped = effects.group or effects.group_by_configuration
    by_group = rng.permutation(GROUPS) % folds
    fold = by_group[group] if grouped else rng.permutation(IMAGES) % folds
    latent = draw(effects.image, IMAGES) + draw(effects.group, GROUPS)[group]
    latent = latent + draw(effects.group_by_configuration, shape[0], 1, GROUPS)[..., group]
    latent = latent + draw(effects.training, shape[0], seeds, folds)[..., fold]
    if seeds == 1:
        own = draw(effects.image_by_configuration + effects.noise, *shape)
    else:
        own = draw(effects.image_by_configuration, shape[0], 1, IMAGES)
        own = own + draw(effects.noise, *shape)
    thresholds = norm.ppf(accuracies)[:, None, None].astype(np.float32)
    return Sweep((latent + own < thresholds).astype(float), fold, group)
