"""New statistics for frozen BatchNorm layers, from one pass over the training images."""

import logging
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from tvf.data import Split, split_batches
from tvf.models import FineTuneModel, frozen_batchnorm, recalibrate_batchnorm
from tvf.store import (
    ArraySpec,
    FingerprintError,
    Store,
    StoreError,
    fingerprint,
    fingerprint_layers,
    numeric_environment,
)

log = logging.getLogger(__name__)


def recalibrate(
    fabric: Fabric, module: FineTuneModel, part: Split, batch_size: int, store: Store | None
) -> None:
    """Set the statistics of the frozen BatchNorm layers from one pass over `part`, without augmentation.

    With a store the statistics are kept for all jobs that start from the same weights and freeze the same layers.
    """
    model: Any = module.module
    layers = frozen_batchnorm(model.module)

    def run() -> None:
        for samples in split_batches(np.arange(len(part)), batch_size):
            module(fabric.to_device(part.images[torch.from_numpy(samples)]))

    def statistics(rows: slice, wait: bool) -> list[Tensor]:
        recalibrate_batchnorm(model, layers.values(), run)
        return [value[None] for value in values]

    values = [value for layer in layers.values() for value in layer.buffers()]
    if not values:
        return
    if store is None:
        statistics(slice(0, 1), True)
        return
    try:
        pixels = [part.fingerprint or part.images, model.mean, model.std]
        network = [fingerprint_layers(model.module, without=model.head), list(layers)]
        key = fingerprint([pixels, network, batch_size, numeric_environment(fabric, model)])
        entry = store.entry("statistics", [key], {"about": f"of {len(layers)} BatchNorm layers"})
        columns = [ArraySpec(tuple(value.shape), value.dtype) for value in values]
        for value, kept in zip(
            values, entry.table("batchnorm", 1, columns, statistics).tensors(), strict=True
        ):
            value.copy_(kept[0])
    except (FingerprintError, StoreError) as error:
        log.warning("store: BatchNorm statistics are not kept: %s.", error)
        statistics(slice(0, 1), True)
