"""Recomputes the statistics of frozen BatchNorm layers in one pass over the training images."""

import logging
from typing import Any

import numpy as np
from lightning_fabric import Fabric
from torch import Tensor

from tvf.data import Split, split_batches
from tvf.models import FineTuneModel, recalibrate_batchnorm
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
    fabric: Fabric, module: FineTuneModel, split: Split, batch_size: int, store: Store | None
) -> None:
    """Set the statistics of the frozen BatchNorm layers from `split`, without augmentation.

    With a store they are kept for all jobs that start from the same weights and freeze the same
    layers. `module` is the model as Fabric set it up.
    """
    model: Any = module.module
    layers = model.frozen_batchnorm()
    values = [value for layer in layers.values() for value in layer.buffers()]
    if not values:
        return

    def run() -> None:
        for samples in split_batches(np.arange(len(split)), batch_size):
            module(fabric.to_device(split.pixels(samples)))

    def compute(rows: np.ndarray, wait: bool) -> list[Tensor]:
        recalibrate_batchnorm(model, layers.values(), run)
        return [value[None] for value in values]

    if store is None:
        compute(np.arange(1), True)
        return
    try:
        pixels = [split.fingerprint, model.mean, model.std]
        network = [fingerprint_layers(model.module, without=model.heads), list(layers)]
        environment = numeric_environment(fabric, model.module.parameters())
        key = fingerprint([pixels, network, batch_size, environment])
        entry = store.entry("statistics", [key], {"about": f"of {len(layers)} BatchNorm layers"})
        specs = [ArraySpec(tuple(value.shape), value.dtype) for value in values]
        kept = entry.table("batchnorm", 1, specs, compute).tensors()
        for value, table in zip(values, kept, strict=True):
            value.copy_(table[0])
    except (FingerprintError, StoreError) as error:
        log.warning("store: not caching BatchNorm statistics: %s.", error)
        compute(np.arange(1), True)
