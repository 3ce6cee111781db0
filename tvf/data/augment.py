"""Augmentation as a pure function of (augment seed, view, sample).

View v of sample i has the same pixels in any batch, order or process: each random number is a hash
of (seed, view, sample, index of the draw) instead of the next number of a generator. So a view is
computed once and shared.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from tvf.errors import InputError, require_count, require_number, require_seed


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Base class of augmentations: the options they share, and the interface to implement.

    `views` "epochs": epoch e sees view e. A number V: epochs cycle through views 1 to V, which is
    an approximation if there are more than V epochs.
    """

    views: int | str = "epochs"
    seed: int = 0

    def __post_init__(self) -> None:
        require_seed("augment.seed", self.seed)
        if self.views != "epochs":
            if isinstance(self.views, str):
                raise InputError(
                    f"augment.views={self.views!r} must be epochs (a new view each epoch) or the "
                    "number of views."
                )
            require_count("augment.views", self.views, 1)

    def view_of(self, epoch: int) -> int:
        """Return the view that `epoch` trains on; both count from 1."""
        return (epoch - 1) % self.views + 1 if isinstance(self.views, int) else epoch

    @property
    def is_portable(self) -> bool:
        """Whether views are equal bit for bit on every device, and whichever thread makes them.

        That takes integer work and copies alone, and random numbers from `uniform`: generators
        differ between devices, and are shared by threads.
        """
        return False

    def variants(self, samples: np.ndarray, view: int) -> np.ndarray | None:
        """Return an int64 id of each sample's image in this view, or None if all views differ.

        Views of a sample that have equal ids are equal images; id 0 is the image without changes.
        """
        return None

    def __call__(self, images: Tensor, samples: np.ndarray, view: int) -> Tensor:
        """Return view `view` of `images`, uint8 [B, C, H, W].

        `samples`, int64 [B], are the images' places in the pool.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class FlipsAndCrops(Augmentation):
    """Random flips, and a random crop of the image padded with `padding` black pixels on each side.

    `horizontal` and `vertical` are the probabilities of a left-right and an up-down flip.
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
        """Return view `view` of `images`; see `Augmentation`."""
        top, left, *flips = self._draw(samples, view)
        if self.padding:
            images = _crop(images, self.padding, _beside(images, top), _beside(images, left))
        for dim, flip in zip((-1, -2), flips, strict=True):
            if flip.any():
                chosen = _beside(images, flip)[:, None, None, None]
                images = torch.where(chosen, images.flip(dim), images)
        return images

    @property
    def is_portable(self) -> bool:
        """True, except in subclasses that do more."""
        return type(self).__call__ is FlipsAndCrops.__call__

    def variants(self, samples: np.ndarray, view: int) -> np.ndarray | None:
        """Return crop offset and flips as one number; None in subclasses that do more."""
        if type(self).__call__ is not FlipsAndCrops.__call__:
            return None
        top, left, flip_x, flip_y = self._draw(samples, view)
        positions = 2 * self.padding + 1
        offset = (top - self.padding) * positions + left - self.padding  # 0: the image as it is
        return (offset * 2 + flip_x) * 2 + flip_y

    def _draw(self, samples: np.ndarray, view: int) -> list[np.ndarray]:
        """Return the crops' top and left and the flips' left-right and up-down, [B] each."""
        numbers = [uniform(self.seed, view, samples, draw) for draw in range(4)]
        positions = 2 * self.padding + 1
        return [
            (numbers[0] * positions).astype(np.int64),
            (numbers[1] * positions).astype(np.int64),
            numbers[2] < self.horizontal,
            numbers[3] < self.vertical,
        ]


@dataclass(frozen=True, kw_only=True)
class TorchvisionTransforms(Augmentation):
    """torchvision v2 transforms, applied in order to one uint8 image at a time.

    They must return uint8 images of the size they are given. The random generators that they draw
    from are reseeded for each sample of each view.
    """

    transforms: Sequence[Callable[[Tensor], Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.transforms or not all(map(callable, self.transforms)):
            raise InputError(
                f"augment.transforms={self.transforms!r} must be a non-empty list of transforms: "
                "name torchvision.transforms.v2 classes by their _target_."
            )

    def __call__(self, images: Tensor, samples: np.ndarray, view: int) -> Tensor:
        """Return view `view` of `images`; see `Augmentation`."""
        seeds = (uniform(self.seed, view, samples, 0) * 2**32).astype(np.int64).tolist()
        with _preserve_generators():
            views = [self._apply(image, seed) for image, seed in zip(images, seeds, strict=True)]
        expected = f"torch.uint8 of shape {tuple(images.shape[1:])}"
        for result in views:
            found = type(result).__name__
            if isinstance(result, Tensor):
                found = f"{result.dtype} of shape {tuple(result.shape)}"
            if found != expected:
                raise InputError(
                    f"augment.transforms returned {found}, but must return {expected}: resize to "
                    "data.image_size at the end, and leave scaling to the network."
                )
        return torch.stack(views)

    def _apply(self, image: Tensor, seed: int) -> Tensor:
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        for transform in self.transforms:
            try:
                image = transform(image)
            except Exception as error:  # a transform can raise anything
                raise InputError(
                    f"augment.transforms: {transform} failed on a uint8 image ({error}). Leave "
                    "scaling and normalization to the network; transforms that mix images or "
                    "return several are not supported."
                ) from error
        return image


@contextmanager
def _preserve_generators() -> Iterator[None]:
    """Restore the state of torch's, Python's and NumPy's global generators on exit."""
    states = torch.default_generator.get_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        torch.default_generator.set_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])


def require_plain_variant(augment: Augmentation, images: Tensor, samples: np.ndarray) -> None:
    """Raise InputError if `variants` gives id 0 to a view that changes the image.

    Looks at the first view of `images`, uint8 [B, C, H, W], the `samples` of the pool.
    """
    variants = augment.variants(samples, view=1)
    if variants is None or not (plain := variants == 0).any():
        return
    unchanged = images[torch.from_numpy(plain)]
    if not torch.equal(augment(unchanged, samples[plain], view=1), unchanged):
        raise InputError(
            f"augment: {type(augment).__name__}.variants gives id 0 to a view that changes the "
            "image. Number the changed ones from 1: id 0 is the image without changes."
        )


class ViewRows:
    """Numbers the distinct images of all views, so that each is computed and stored once.

    View 0 shows every image without changes. With flips alone, for example, view 1 shows about half
    of the images exactly so, and view 2 about half of them as view 1 did. So the table of view v
    holds only the images that no earlier view has: its row r is the image of sample
    `new_samples(v)[r]`. Row numbers continue from table to table; `starts[v]` is the first row of
    view v's table. `rows_of_view(v)` says which row is the image of each sample.

    `count` is the number of samples: the size of the pool.
    """

    def __init__(self, augment: Augmentation, count: int) -> None:
        self._augment = augment
        self._samples = np.arange(count)
        self.starts = [0, count]
        self._new_samples = [self._samples]  # one per view, like the next list
        self._rows_of_view = [self._samples]
        # The ids of all images so far, ascending, and the row of each.
        self._known_images = self._known_rows = self._samples

    def new_samples(self, view: int) -> np.ndarray:
        """Return the samples whose image in this view no earlier view has, ascending."""
        self._extend_to(view)
        return self._new_samples[view]

    def rows_of_view(self, view: int) -> np.ndarray:
        """Return the row of each sample's image in this view, int64 [count]."""
        self._extend_to(view)
        return self._rows_of_view[view]

    def by_table(self, rows: np.ndarray) -> dict[int, np.ndarray]:
        """Map the views whose tables hold these rows to the rows' numbers there, ascending."""
        rows = np.unique(rows)
        views = np.searchsorted(self.starts, rows, side="right") - 1
        return {int(view): rows[views == view] - self.starts[view] for view in np.unique(views)}

    def _extend_to(self, view: int) -> None:
        while len(self._new_samples) <= view:
            variants = self._augment.variants(self._samples, len(self._new_samples))
            if variants is None:
                new, rows = self._samples, self.starts[-1] + self._samples
            else:
                new, rows = self._add_images(variants * len(self._samples) + self._samples)
            self._new_samples.append(new)
            self._rows_of_view.append(rows)
            self.starts.append(self.starts[-1] + len(new))

    def _add_images(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the samples whose image (given by id) is new, and the row of every image."""
        seen = np.isin(images, self._known_images)
        new = self._samples[~seen]
        rows = np.empty(len(images), np.int64)
        rows[seen] = self._known_rows[np.searchsorted(self._known_images, images[seen])]
        rows[~seen] = self.starts[-1] + np.arange(len(new))
        known_images = np.append(self._known_images, images[~seen])
        known_rows = np.append(self._known_rows, rows[~seen])
        order = np.argsort(known_images)
        self._known_images, self._known_rows = known_images[order], known_rows[order]
        return new, rows


def uniform(seed: int, view: int, samples: np.ndarray, draw: int) -> np.ndarray:
    """Return float64 numbers in [0, 1), one per sample, that are a function of the arguments."""
    state = np.zeros(len(samples), np.uint64)
    for number in (seed, view, samples, draw):
        state = _mix(state + np.asarray(number).astype(np.uint64))
    return (state >> np.uint64(11)) * 2.0**-53


def _mix(state: np.ndarray) -> np.ndarray:
    """Advance uint64 states by one step of SplitMix64 (Steele, Lea & Flood 2014)."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def _beside(images: Tensor, numbers: np.ndarray) -> Tensor:
    """The numbers on the device of `images`. The host does not wait for the copy."""
    return torch.from_numpy(numbers).to(images.device, non_blocking=True)


def _crop(images: Tensor, padding: int, top: Tensor, left: Tensor) -> Tensor:
    batch, channels, height, width = images.shape
    numbers = partial(torch.arange, device=images.device)
    padded = pad(images, [padding] * 4)
    rows = top[:, None] + numbers(height)
    columns = left[:, None] + numbers(width)
    return padded[
        numbers(batch)[:, None, None, None],
        numbers(channels)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]
