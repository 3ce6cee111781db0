"""Augmentation as a pure function of (augment seed, view, sample).

Whoever computes view v of sample i, in whatever batch, order or process, gets the same pixels: each random number is a
hash of (seed, view, sample, which draw it is), not the next one of a generator. So what is computed once can be shared.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from tvf.errors import InputError, require_count, require_number, require_seed


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What any augmentation can be asked for; subclasses say what a view is.

    `views` "epochs": epoch e sees view e. A number V: epochs see views 1 to V in turn, an approximation where there are
    more epochs than that.
    """

    views: int | str = "epochs"
    seed: int = 0

    def __post_init__(self) -> None:
        require_seed("augment.seed", self.seed)
        if self.views != "epochs":
            if isinstance(self.views, str):
                raise InputError(
                    f"augment.views={self.views!r} is refused: write epochs, or how many views there are."
                )
            require_count("augment.views", self.views, 1)

    def view_of(self, epoch: int) -> int:
        """The view that `epoch` sees; both count from 1."""
        return (epoch - 1) % self.views + 1 if isinstance(self.views, int) else epoch

    def variants(self, samples: np.ndarray, view: int) -> np.ndarray | None:
        """A number for each sample: two views of a sample with equal numbers are equal. None: any two views differ."""
        return None

    def __call__(self, images: Tensor, samples: np.ndarray, view: int) -> Tensor:
        """View `view` of `images`, uint8 [B, C, H, W]; `samples` [B] are their numbers in the training set."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class FlipsAndCrops(Augmentation):
    """Random flips, and a random crop of the image padded with `padding` black pixels on each side.

    `horizontal` and `vertical` are the flips' probabilities.
    """

    horizontal: float = 0.0
    vertical: float = 0.0
    padding: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("augment.horizontal", self.horizontal, 0, 1)
        require_number("augment.vertical", self.vertical, 0, 1)
        require_count("augment.padding", self.padding, 0)

    def __call__(self, images: Tensor, samples: np.ndarray, view: int) -> Tensor:
        """View `view` of `images`, uint8 [B, C, H, W]; `samples` [B] are their numbers in the training set."""
        top, left, *flips = self._draw(samples, view)
        if self.padding:
            images = _crop(images, self.padding, torch.from_numpy(top), torch.from_numpy(left))
        for dim, flip in zip((-1, -2), flips, strict=True):
            if flip.any():
                images = torch.where(
                    torch.from_numpy(flip)[:, None, None, None], images.flip(dim), images
                )
        return images

    def variants(self, samples: np.ndarray, view: int) -> np.ndarray | None:
        """The crop's place and the flips as one number; None for a subclass, which may do more to an image."""
        if type(self).__call__ is not FlipsAndCrops.__call__:
            return None
        top, left, across, down = self._draw(samples, view)
        return ((top * (2 * self.padding + 1) + left) * 2 + across) * 2 + down

    def _draw(self, samples: np.ndarray, view: int) -> list[np.ndarray]:
        top, left, across, down = (uniform(self.seed, view, samples, draw) for draw in range(4))
        places = 2 * self.padding + 1
        crop = [(u * places).astype(np.int64) for u in (top, left)]
        return [*crop, across < self.horizontal, down < self.vertical]


@dataclass(frozen=True, kw_only=True)
class TorchvisionTransforms(Augmentation):
    """torchvision's v2 transforms, one after another, on uint8 images; what they give must be uint8 images of one size.

    They draw their random numbers from generators that are seeded anew for each sample of each view.
    """

    transforms: Sequence[Callable[[Tensor], Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.transforms or not all(map(callable, self.transforms)):
            raise InputError(
                "augment.transforms is refused: list torchvision.transforms.v2 classes with their _target_."
            )

    def __call__(self, images: Tensor, samples: np.ndarray, view: int) -> Tensor:
        """View `view` of `images`, uint8 [B, C, H, W]; `samples` [B] are their numbers in the training set."""
        seeds = (uniform(self.seed, view, samples, 0) * 2**32).astype(np.int64).tolist()
        with _generators_kept():
            views = [self._apply(image, seed) for image, seed in zip(images, seeds, strict=True)]
        for one in views:
            found = (
                f"{one.dtype} of shape {tuple(one.shape)}"
                if isinstance(one, Tensor)
                else type(one).__name__
            )
            if found != f"torch.uint8 of shape {tuple(images.shape[1:])}":
                raise InputError(
                    f"augment.transforms gave {found} instead of torch.uint8 of shape {tuple(images.shape[1:])}: end "
                    "with the size of data.image_size, and leave scaling to the network."
                )
        return torch.stack(views)

    def _apply(self, image: Tensor, seed: int) -> Tensor:
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        for transform in self.transforms:
            try:
                image = transform(image)
            except Exception as error:  # theirs, whatever they make of an image
                raise InputError(
                    f"augment.transforms: {transform} cannot be applied to a uint8 image ({error}). Scaling and "
                    "normalising are the network's; what mixes images or gives several is not supported."
                ) from error
        return image


@contextmanager
def _generators_kept() -> Iterator[None]:
    """The generators that transforms draw from, as they were when all is done."""
    states = torch.default_generator.get_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        torch.default_generator.set_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])


class ViewRows:
    """Which images the views of a training set consist of, each counted once.

    View v brings the images that no earlier view had; `new(v)` are their samples. Row r of view v's table is image
    `new(v)[r]` of view v, and all rows are numbered through, view after view.
    """

    def __init__(self, augment: Augmentation, count: int) -> None:
        self._augment, self._samples = augment, np.arange(count)
        self._known, self._rows = np.empty(0, np.int64), np.empty(0, np.int64)
        self._new: list[np.ndarray] = []
        self._of_view: list[np.ndarray] = []
        self.starts = [0]

    def new(self, view: int) -> np.ndarray:
        """The samples of which view `view` is an image that no view before it had."""
        self._count_to(view)
        return self._new[view - 1]

    def of_view(self, view: int) -> np.ndarray:
        """The row of each sample's image in this view, int64."""
        self._count_to(view)
        return self._of_view[view - 1]

    def tables(self, view: int) -> list[int]:
        """The views, this one or earlier ones, that its images first came with."""
        return np.unique(np.searchsorted(self.starts, self.of_view(view), side="right")).tolist()

    def _count_to(self, view: int) -> None:
        while len(self._new) < view:
            number, count = len(self._new) + 1, len(self._samples)
            variants = self._augment.variants(self._samples, number)
            if variants is None:
                new, rows = self._samples, self.starts[-1] + self._samples
            else:
                images = variants * count + self._samples
                place = np.searchsorted(self._known, images).clip(max=max(len(self._known) - 1, 0))
                seen = self._known[place] == images if len(self._known) else np.zeros(count, bool)
                new = self._samples[~seen]
                rows = np.empty(count, np.int64)
                rows[seen] = self._rows[place[seen]]
                rows[~seen] = self.starts[-1] + np.arange(len(new))
                known, own = (
                    np.append(self._known, images[~seen]),
                    np.append(self._rows, rows[~seen]),
                )
                order = np.argsort(known)
                self._known, self._rows = known[order], own[order]
            self._new.append(new)
            self._of_view.append(rows)
            self.starts.append(self.starts[-1] + len(new))


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
