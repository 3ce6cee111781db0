"""Builds single parts of a job from its config: its network, optimizer, steps, first weights."""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from inspect import signature
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from tvf.config import (
    OWN_MODELS,
    Config,
    build_part,
    build_phases,
    is_lora,
    is_probe,
    own_checkpoint,
)
from tvf.data import Augmentation, DataSource, DataSplits, Split, require_plain_variant
from tvf.errors import InputError
from tvf.job.origin import check_checkpoint_origin, check_origin
from tvf.job.phases import Sibling
from tvf.job.resources import JobContext
from tvf.models import (
    Backbone,
    FineTuneModel,
    LoraModel,
    check_network,
    load_checkpoint,
    load_initial_weights,
    needs_batches,
    preserve_freezing,
)
from tvf.records import sibling_configs
from tvf.training import (
    DiscriminativeOptimizer,
    Phase,
    StartingPoint,
    StepOptions,
    balanced_weights,
)

log = logging.getLogger(__name__)


def build_network(
    config: Config, source: DataSource, data: DataSplits, *, known: bool = False
) -> tuple[Backbone, FineTuneModel]:
    """Draw the network of a job; `known` ones that differ only in weights need no check."""
    torch.manual_seed(config["seed"])  # the new head's weights, and dropout
    backbone = build_part(config, "backbone", num_classes=len(data.classes))
    if not known:
        check_network(backbone, source.image_size, len(data.classes))
    reads = {"image_size": source.image_size} if is_probe(config["model"]) else {}
    model = build_part(config, "model", backbone=backbone, **reads)
    if isinstance(model, LoraModel):
        model.leave_out_unused(backbone, source.image_size)
    batchwise = needs_batches(model.train()) or config["model"].get("frozen_bn") == "recalibrate"
    if batchwise and min(source.batch_size, len(data.train)) == 1:
        raise InputError(
            "BatchNorm layers cannot train on single images: raise data.batch_size (or data.limit)."
        )
    if config["channels_last"]:
        model = model.to(memory_format=torch.channels_last)
    return backbone, model


def build_augmentation(config: Config, train: Split) -> Augmentation:
    augment = build_part(config, "augment")
    few = np.arange(min(len(train), 32))
    require_plain_variant(augment, train.pixels(few), train.places[few])
    return augment


def build_optimizer(config: Config, fabric: Fabric, model: FineTuneModel) -> Any:
    """The optimizer's factory. Assumes that the model has the weights that training starts from."""
    optimizer = build_part(config, "optimizer")
    if not isinstance(optimizer, DiscriminativeOptimizer):
        return optimizer
    changed = config["optimizer"].get("clip_norm") is not None or optimizer.l2_sp is not None
    if changed and fabric.strategy.precision.precision == "16-mixed":
        # Fused kernels would unscale the gradients themselves, after they have been changed.
        optimizer = replace(optimizer, fused=False)
    if optimizer.l2_sp is None:
        return optimizer
    groups = map(model.parameters_of, model.trained_groups)
    return StartingPoint(optimizer, [parameter for group in groups for parameter in group])


def build_steps(
    config: Config, batch_size: int, model: FineTuneModel, data: DataSplits
) -> StepOptions:
    """How the job trains on a batch. Raises InputError for a loss that cannot weight images."""
    weights = None
    if config["data"].get("class_weights"):
        weights = balanced_weights(data.train.labels, data.classes, data.train.weights)
    average = build_part(config, "average")
    loss = build_part(config, "loss", class_weights=weights)
    if data.train.weights is not None and "weights" not in signature(loss.sum).parameters:
        raise InputError(
            f"loss._target_={config['loss']['_target_']!r} cannot weight images: its method sum "
            "must take weights, as tvf.training.CrossEntropyLoss has it, or set "
            "data.weight_column=null."
        )
    return StepOptions(
        batch_size=batch_size,
        seed=config["seed"],
        loss=loss,
        mix=build_part(config, "mix"),
        clip_norm=config["optimizer"].get("clip_norm"),
        average=average(model) if average else None,
    )


def build_siblings(
    config: Config, context: JobContext, backbone: Backbone, model: FineTuneModel
) -> list[Sibling]:
    """The unfinished jobs of the sweep whose images pass through the same frozen layers."""
    configs = sibling_configs(context.sweep, config) if context.sweep else []
    by_model: dict[str, list[Config]] = {}
    probed = is_probe(config["model"])  # whose network is not that of other models
    for other in configs:
        # A user's own class might do anything to the backbone that it is built over.
        if other["model"]["_target_"] in OWN_MODELS and is_probe(other["model"]) == probed:
            by_model.setdefault(json.dumps(other["model"], sort_keys=True), []).append(other)
    siblings = []
    with preserve_freezing(model):
        for alike in by_model.values():
            try:
                node = alike[0]["model"]
                extra = {"adapt": False} if is_lora(node) else {}
                other = model
                if not probed:
                    other = build_part({"model": node}, "model", backbone=backbone, **extra)
                siblings.append(Sibling(other, _phases_of(alike, len(other.trained_groups))))
            except InputError:  # for the other job to report
                continue
    return siblings


def _phases_of(configs: Sequence[Config], groups: int) -> list[tuple[Phase, ...]]:
    """The phases of each of these jobs, which train `groups` groups."""
    built: dict[str, tuple[Phase, ...]] = {}  # a sweep of many jobs has few schedules
    phases = []
    for config in configs:
        schedule = {key: config[key] for key in ("epochs", "recipe", "early_stopping")}
        key = json.dumps(schedule, sort_keys=True)
        if key not in built:
            built[key] = build_phases(schedule, groups)
        phases.append(built[key])
    return phases


def load_own_checkpoint(
    config: Config, backbone: Backbone, data: DataSplits, tag: str
) -> np.ndarray:
    """Load the weights of `backbone.checkpoint`; return the ids of images they were trained on."""
    if (checkpoint := own_checkpoint(config)) is None:
        return np.empty(0, "S32")
    seen = check_checkpoint_origin(checkpoint, data)
    log.info("%s %s.", tag, load_checkpoint(backbone.module, backbone.heads, checkpoint))
    return seen


def start_from_weights(
    config: Config, model: FineTuneModel, backbone: str, data: DataSplits, tag: str
) -> np.ndarray:
    """Load the weights of `model.init_from`; return the ids of the images they were trained on."""
    if (init_from := config["model"].get("init_from")) is None:
        return np.empty(0, "S32")
    seen = check_origin(init_from, backbone, data, config)
    weights = load_initial_weights(model, init_from, *(f"module.{h}" for h in model.heads))
    log.info("%s starts from the weights in %s.", tag, weights)
    return seen
