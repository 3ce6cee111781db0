"""Augmentation as a pure function of (augment seed, view, sample).

Whoever computes view v of sample i, in whatever batch, order or process, gets the same pixels: each random number is a
hash of (seed, view, sample, which draw it is), not the next one of a generator. So what is computed once can be shared.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from tvf.errors import require_count, require_number, require_seed


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random flips, and a random crop of the image padded with `padding` black pixels on each side.

    `horizontal` and `vertical` are the flips' probabilities.
    """

    horizontal: float = 0.0
    vertical: float = 0.0
    padding: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        require_number("augment.horizontal", self.horizontal, 0, 1)
        require_number("augment.vertical", self.vertical, 0, 1)
        require_count("augment.padding", self.padding, 0)
        require_seed("augment.seed", self.seed)

    def __call__(self, images: Tensor, samples: np.ndarray, view: int) -> Tensor:
        """View `view` of `images`, uint8 [B, C, H, W]; `samples` [B] are their numbers in the training set."""
        chance = [uniform(self.seed, view, samples, draw) for draw in range(4)]
        if self.padding:
            offsets = [(u * (2 * self.padding + 1)).astype(np.int64) for u in chance[:2]]
            images = _crop(images, self.padding, *map(torch.from_numpy, offsets))
        for dim, probability, u in ((-1, self.horizontal, chance[2]), (-2, self.vertical, chance[3])):
            if probability:
                flipped = torch.from_numpy(u < probability)[:, None, None, None]
                images = torch.where(flipped, images.flip(dim), images)
        return images


def uniform(seed: int, view: int, samples: np.ndarray, draw: int) -> np.ndarray:
    """Float64 in [0, 1), one for each sample, from nothing but the four numbers."""
    state = np.zeros(len(samples), np.uint64)
    for number in (seed, view, samples, draw):
        state = _mix(state + np.asarray(number).astype(np.uint64))
    return (state >> np.uint64(11)) * 2.0**-53


def _mix(state: np.ndarray) -> np.ndarray:
    """One step of SplitMix64 (Steele, Lea & Flood 2014)."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def _crop(images: Tensor, padding: int, top: Tensor, left: Tensor) -> Tensor:
    batch, channels, height, width = images.shape
    padded = pad(images, [padding] * 4)
    rows = top[:, None] + torch.arange(height)
    columns = left[:, None] + torch.arange(width)
    return padded[
        torch.arange(batch)[:, None, None, None],
        torch.arange(channels)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]
