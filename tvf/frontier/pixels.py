"""The pixels of one pass over a split: one view of its images, wherever they live."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import Tensor

from tvf.data import Augmentation, ImageFiles, Split
from tvf.frontier.residency import Feed, Residency, Tensors, read_ahead, take_resident


@dataclass(frozen=True)
class PixelPass:
    """View `view` of the images of `split`. Without `augment`, the images as they are."""

    split: Split
    augment: Augmentation | None
    view: int
    residency: Residency

    def read(self, samples: np.ndarray) -> Tensors:
        """The view of some samples in the host's memory, uint8 [B, 3, S, S]."""
        return self._show(self.split.pixels(samples), samples)

    def feed(self) -> Feed | None:
        """Reads batches that are known in advance; None if they have to be read one by one.

        Views that are not portable are made by the training thread, on the CPU.
        """
        if not self.residency.is_apart and isinstance(self.split.pool.pixels.images, ImageFiles):
            return self._decode_ahead
        if not self.residency.is_apart or (self.augment and not self.augment.is_portable):
            return None
        images = self.residency.images(self.split.pool)
        if images is None:
            return partial(read_ahead, read=self.read, device=self.residency.device)
        return partial(self._take, images)

    def _take(self, images: Tensor, batches: Sequence[np.ndarray]) -> Iterator[Tensors]:
        return take_resident(
            batches,
            places=lambda samples: self.split.places[samples],
            take=lambda chosen, samples: self._show(images[chosen], samples),
            device=self.residency.device,
        )

    def _decode_ahead(self, batches: Sequence[np.ndarray]) -> Iterator[Tensors]:
        def read(samples: np.ndarray) -> Tensors:
            return (self.split.pixels(samples),)

        decoded = read_ahead(batches, read, self.residency.device)
        for samples, (images,) in zip(batches, decoded, strict=True):
            yield self._show(images, samples)

    def _show(self, images: Tensor, samples: np.ndarray) -> Tensors:
        if self.augment is not None:
            images = self.augment(images, self.split.places[samples], self.view)
        return (images,)
