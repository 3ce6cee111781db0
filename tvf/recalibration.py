"""New statistics for frozen BatchNorm layers, from one pass over the training images."""

import logging
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from tvf.content import Unkeyable, circumstances, describe, describe_layers
from tvf.data import Labelled
from tvf.data.order import batches
from tvf.freezing import frozen_batchnorm, recalibrate_batchnorm
from tvf.models import FineTuneModel
from tvf.store import Store
from tvf.table import Column, StoreUnusable

log = logging.getLogger(__name__)


def recalibrate(fabric: Fabric, module: FineTuneModel, part: Labelled, batch_size: int, store: Store | None) -> None:
    """Set the statistics of the frozen BatchNorm layers from one pass over `part`, without augmentation.

    With a store the statistics are kept for all jobs that start from the same weights and freeze the same layers.
    """
    model: Any = module.module
    layers = frozen_batchnorm(model.module)

    def run() -> None:
        for samples in batches(np.arange(len(part)), batch_size):
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
        pixels = [part.key or part.images, model.mean, model.std]
        network = [describe_layers(model.module, without=model.head), list(layers)]
        key = describe([pixels, network, batch_size, circumstances(fabric, model)])
        entry = store.entry("statistics", [key], {"about": f"of {len(layers)} BatchNorm layers"})
        columns = [Column(tuple(value.shape), value.dtype) for value in values]
        for value, kept in zip(values, entry.table("batchnorm", 1, columns, statistics).tensors(), strict=True):
            value.copy_(kept[0])
    except (Unkeyable, StoreUnusable) as error:
        log.warning("store: BatchNorm statistics are not kept: %s.", error)
        statistics(slice(0, 1), True)
