"""Where each epoch gets its inputs: pixels for the full network, or activations for the suffix.

An input pipeline gives each pass over a split a module and its inputs. Both pipelines here give
the same losses; the cached one runs the prefix once per image instead of once per epoch.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from lightning_fabric import Fabric
from torch import Tensor

from tvf.data import Augmentation, DataSplits, Split
from tvf.frontier.activations import ActivationReader, Inputs
from tvf.models import FineTuneModel
from tvf.store import StoreError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EpochInputs:
    """One pass over a split: `module(*inputs(samples))` returns logits.

    The module is in the mode, training or eval, that the pass needs.
    """

    module: Callable[..., Tensor]
    inputs: Inputs


class InputPipeline:
    """Pixels for the full network. `module` is the model as Fabric set it up.

    `approximations` names what makes the results differ from exact ones, for the job's summary.
    """

    def __init__(
        self, fabric: Fabric, module: FineTuneModel, data: DataSplits, augment: Augmentation
    ) -> None:
        self.fabric, self.module, self.data, self.augment = fabric, module, data, augment
        precision = fabric.strategy.precision.precision
        exact = precision in ("32-true", "64-true")
        self.approximations: list[str] = [] if exact else [f"precision {precision}"]

    @property
    def prefix_seconds(self) -> float:
        """Seconds spent computing the prefix, or waiting for its cached activations."""
        return 0.0

    @property
    def prefix_kept(self) -> bool:
        """Whether the store caches the activations of the prefix, for other jobs too."""
        return False

    @property
    def prefix_images(self) -> int:
        """Number of images that passed through the prefix, starting from pixels."""
        return 0

    @property
    def continued_images(self) -> int:
        """Number of images that continued through the prefix from a shallower cached cut."""
        return 0

    def train(self, epoch: int) -> EpochInputs:
        """Return the inputs of this epoch, in training mode; `epoch` counts from 1."""
        self.module.train()
        view = self.augment.view_of(epoch)
        return EpochInputs(self.module, partial(self._pixels, self.data.train, self.augment, view))

    def evaluate(self, split: str) -> EpochInputs:
        """Return the inputs of a pass over split "val" or "test", in eval mode."""
        self.module.eval()
        return EpochInputs(self.module, partial(self._pixels, getattr(self.data, split), None, 0))

    def _pixels(
        self, split: Split, augment: Augmentation | None, view: int, samples: np.ndarray
    ) -> tuple[Tensor, ...]:
        images = split.pixels(samples)
        if augment is not None:
            images = augment(images, split.places[samples], view)
        return (self.fabric.to_device(images),)


class CachedPipeline(InputPipeline):
    """Activations at the frontier for the splits in `readers`, pixels for the others.

    The activations come from the store if there is one; otherwise the prefix runs in every epoch.
    """

    def __init__(self, uncached: InputPipeline, readers: Mapping[str, ActivationReader]) -> None:
        super().__init__(uncached.fabric, uncached.module, uncached.data, uncached.augment)
        self._readers = readers
        self._failed: set[str] = set()  # splits that the store could not save

    def train(self, epoch: int) -> EpochInputs:
        """Return the inputs of this epoch, in training mode; `epoch` counts from 1."""
        if "train" not in self._readers:
            return super().train(epoch)
        self.module.train()
        return self._activations("train", self.augment.view_of(epoch))

    def evaluate(self, split: str) -> EpochInputs:
        """Return the inputs of a pass over split "val" or "test", in eval mode."""
        if split not in self._readers:
            return super().evaluate(split)
        self.module.eval()
        return self._activations(split, 0)

    @property
    def prefix_seconds(self) -> float:
        """Seconds spent computing the prefix, or waiting for its cached activations."""
        return sum(reader.seconds for reader in self._readers.values())

    @property
    def prefix_kept(self) -> bool:
        """Whether the store caches the activations of the prefix, for other jobs too."""
        return not self._failed and all(reader.cached for reader in self._readers.values())

    @property
    def prefix_images(self) -> int:
        """Number of images that passed through the prefix, starting from pixels."""
        return sum(reader.images for reader in self._readers.values())

    @property
    def continued_images(self) -> int:
        """Number of images that continued through the prefix from a shallower cached cut."""
        return sum(reader.continued_images for reader in self._readers.values())

    def _activations(self, split: str, view: int) -> EpochInputs:
        reader = self._readers[split]
        try:
            inputs = reader.inputs(view)
        except StoreError as error:
            if split not in self._failed:
                self._failed.add(split)
                log.warning("store: no longer caching %s images: %s.", split, error)
            inputs = partial(reader.compute, view)
        return EpochInputs(reader.suffix, inputs)
