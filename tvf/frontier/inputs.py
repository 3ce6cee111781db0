"""Where each epoch gets its inputs: pixels for the full network, or activations for the suffix.

An input pipeline gives each pass over a split a module and its inputs. Both pipelines here give
the same losses; the cached one runs the prefix once per image instead of once per epoch.
"""

import logging
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn

from tvf.data import Augmentation, DataSplits
from tvf.frontier.activations import ActivationReader
from tvf.frontier.pixels import PixelPass
from tvf.frontier.residency import Feed, Inputs, Residency, Tensors
from tvf.models import FineTuneModel
from tvf.store import StoreError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EpochInputs:
    """One pass over a split: `module(*inputs(samples))` returns logits.

    The module is in the mode, training or eval, that the pass needs. `feed` reads batches that are
    known in advance, if the device has memory of its own. `linear` is the layer that the module
    consists of, if that is all and it computes in float32.
    """

    module: nn.Module
    inputs: Inputs
    feed: Feed | None = None
    linear: nn.Linear | None = None

    def batches(self, batches: Sequence[np.ndarray]) -> Generator[Tensors, None, None]:
        """Yield the inputs of each batch of samples in turn; those of an empty one have no rows."""
        if self.feed is not None and all(map(len, batches)):
            yield from self.feed(batches)
            return
        for samples in batches:
            if len(samples):
                yield self.inputs(samples)
            else:
                yield tuple(tensor[:0] for tensor in self.inputs(np.zeros(1, np.int64)))


class InputPipeline:
    """Pixels for the full network. `module` is the model as Fabric set it up.

    `approximations` names what makes the results differ from exact ones, for the job's summary.
    """

    def __init__(
        self,
        fabric: Fabric,
        module: FineTuneModel,
        data: DataSplits,
        augment: Augmentation,
        residency: Residency | None = None,
    ) -> None:
        self.fabric, self.module, self.data, self.augment = fabric, module, data, augment
        self.residency = residency or Residency(fabric.device)
        precision = fabric.strategy.precision.precision
        exact = precision in ("32-true", "64-true")
        self.approximations: list[str] = [] if exact else [f"precision {precision}"]
        if fabric.device.type == "cuda" and torch.backends.cudnn.allow_tf32:
            self.approximations.append("TF32")

    @property
    def covers_all(self) -> bool:
        """Whether all splits start at the frontier, and read from the store."""
        return False

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

    def restart_costs(self) -> None:
        """Count seconds and images from here on, for another job."""

    def keep_in_memory(self) -> None:
        """Keep small activations in memory, in the order of each split, for many jobs."""

    def settle(self, epochs: range, tag: str) -> None:
        """Decide which data of these epochs live on the device, and log it in one line.

        Does nothing unless the device has memory of its own.
        """
        if self.residency.is_apart:
            found = dict.fromkeys(self._settle(name, epochs) for name in ("train", "val"))
            log.info("%s device: %s.", tag, "; ".join(found))

    def release(self) -> None:
        """Free what only this pipeline keeps on the device."""

    def train(self, epoch: int) -> EpochInputs:
        """Return the inputs of this epoch, in training mode; `epoch` counts from 1."""
        self.module.train()
        return self._pixels("train", self.augment, self.augment.view_of(epoch))

    def evaluate(self, split: str) -> EpochInputs:
        """Return the inputs of a pass over split "val" or "test", in eval mode."""
        self.module.eval()
        return self._pixels(split, None, 0)

    def _pixels(self, split: str, augment: Augmentation | None, view: int) -> EpochInputs:
        one_pass = PixelPass(self.data.by_name[split], augment, view, self.residency)

        def read(samples: np.ndarray) -> Tensors:
            return self.fabric.to_device(one_pass.read(samples))

        return EpochInputs(self.module, read, one_pass.feed())

    def _settle(self, split: str, epochs: range) -> str:
        """Decide where the data of a split live; the decision in words."""
        if split == "train" and not self.augment.is_portable:
            return "augmented on the CPU"
        pool = self.data.by_name[split].pool
        resident = self.residency.place_images(pool)
        return self.residency.describe("pixels", pool.pixels.images.nbytes, resident)


class CachedPipeline(InputPipeline):
    """Activations at the frontier for the splits in `readers`, pixels for the others.

    The activations come from the store if there is one; otherwise the prefix runs in every epoch.
    """

    def __init__(self, uncached: InputPipeline, readers: Mapping[str, ActivationReader]) -> None:
        super().__init__(
            uncached.fabric,
            uncached.module,
            uncached.data,
            uncached.augment,
            uncached.residency,
        )
        self._readers = readers
        self._failed: set[str] = set()  # splits that the store could not save

    def release(self) -> None:
        """Free what only this pipeline keeps on the device."""
        for reader in self._readers.values():
            reader.release()

    def restart_costs(self) -> None:
        """Count seconds and images from here on, for another job."""
        for reader in self._readers.values():
            reader.restart_costs()

    def keep_in_memory(self) -> None:
        """Keep small activations in memory, in the order of each split, for many jobs."""
        for reader in self._readers.values():
            reader.gathers = True
        if self.residency.is_apart and self.covers_all:
            self._readers["test"].settle([0], "test")  # which one job reads but once

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
    def covers_all(self) -> bool:
        """Whether all splits start at the frontier, and read from the store."""
        every = {"train", "val", "test"} <= self._readers.keys()
        return every and not self._failed and self.prefix_kept

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

    def _settle(self, split: str, epochs: range) -> str:
        """Decide where the data of a split live; the decision in words."""
        if split not in self._readers:
            return super()._settle(split, epochs)
        # From the first epoch on: if an earlier phase ends early, this one begins early.
        until = range(1, epochs.stop)
        views = [self.augment.view_of(epoch) for epoch in until] if split == "train" else [0]
        if found := self._readers[split].settle(views, split):
            return found
        return super()._settle(split, epochs)  # activations do not fit: pixels may

    def _activations(self, split: str, view: int) -> EpochInputs:
        reader = self._readers[split]
        try:
            return EpochInputs(reader.suffix, *reader.open_view(view), reader.linear)
        except StoreError as error:
            if split not in self._failed:
                self._failed.add(split)
                log.warning("store: no longer caching %s images: %s.", split, error)
            return EpochInputs(reader.suffix, *reader.open_uncached(view), reader.linear)
