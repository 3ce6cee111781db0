"""Configs that earlier versions recorded, in today's names and with today's options."""

from collections.abc import Mapping
from typing import Any

from tvf.config.methods import Config

# Targets in configs from before the modules moved into rooms, and their current names.
LEGACY_TARGETS = {
    "tvf.average.Ema": "tvf.training.ExponentialMovingAverage",
    "tvf.average.none": "tvf.training.no_average",
    "tvf.backbones.efficientnet_lite0": "tvf.models.efficientnet_lite0",
    "tvf.backbones.resnet": "tvf.models.resnet",
    "tvf.backbones.timm_backbone": "tvf.models.timm_backbone",
    "tvf.checkpoint.Checkpoints": "tvf.job.Checkpoints",
    "tvf.data.cifar10.Cifar10": "tvf.data.Cifar10",
    "tvf.data.elpv.Elpv": "tvf.data.Elpv",
    "tvf.data.image_folder.ImageFolder": "tvf.data.ImageFolder",
    "tvf.data.views.Augment": "tvf.data.FlipsAndCrops",
    "tvf.data.views.Transforms": "tvf.data.TorchvisionTransforms",
    "tvf.objective.Mix": "tvf.training.ImageMixing",
    "tvf.objective.Objective": "tvf.training.CrossEntropyLoss",
    "tvf.objective.unmixed": "tvf.training.no_mixing",
    "tvf.optim.TwoRates": "tvf.training.DiscriminativeOptimizer",
    "tvf.recipes.Direct": "tvf.training.Direct",
    "tvf.recipes.EarlyStopping": "tvf.training.EarlyStopping",
    "tvf.recipes.Gradual": "tvf.training.Gradual",
    "tvf.recipes.LpFt": "tvf.training.LpFt",
    "tvf.recipes.Phases": "tvf.training.Phases",
    "tvf.schedules.cosine": "tvf.training.cosine",
    "tvf.schedules.one_cycle": "tvf.training.one_cycle",
    "tvf.schedules.plateau": "tvf.training.plateau",
    "tvf.tracking.NoTracker": "tvf.records.NoTracker",
    "tvf.tracking.WandbTracker": "tvf.records.WandbTracker",
}
# What jobs did whose configs predate the option. Options that divide the images are not here: other
# rules divided them before there were folds and groups.
LEGACY_DEFAULTS: dict[str, Any] = {
    "average._target_": "tvf.training.no_average",
    "data.class_weights": None,
    "data.metric": "accuracy",
    "early_stopping._target_": "tvf.training.EarlyStopping",
    "early_stopping.min_delta": 0.0,
    "early_stopping.patience": None,
    "loss._target_": "tvf.training.CrossEntropyLoss",
    "loss.label_smoothing": 0.0,
    "mix._target_": "tvf.training.no_mixing",
    "model.alpha": None,
    "model.direction": "top",
    "model.dropout": None,
    "model.groups": None,
    "model.head_dropout": 0.0,
    "model.init_from": None,
    "model.layers": None,
    "model.rank": None,
    "model.train": None,
    "optimizer.clip_norm": None,
    "optimizer.decay_all": True,
    "optimizer.l2_sp": None,
    "optimizer.layer_decay": None,
    "recipe._target_": "tvf.training.Direct",
}
# The same for options that older checkpoints, known by the options as they were written, lack.
LATER_DEFAULTS: dict[str, Any] = {
    "backbone.checkpoint": None,
    "deterministic": False,
    "fabric.tf32": False,
    "refit_epochs": None,
}
# And for image folders.
LATER_FOLDER_DEFAULTS: dict[str, Any] = {
    "data.layout": "auto",
    "data.resize": "crop",
    "data.interpolation": "bilinear",
    "data.pad_color": "black",
    "data.white_point": None,
    "data.window": None,
    "data.channels": "auto",
}

# And for tables. Weights that are not as they were are found by the images' digests.
LATER_TABLE_DEFAULTS: dict[str, Any] = {"data.weight_column": "auto", "data.channels": "auto"}


def modern_options(config: Config) -> dict[str, Any]:
    """All options by dotted key; an older config gets current names and the missing defaults."""
    options = {
        key: LEGACY_TARGETS.get(value, value) if key.endswith("_target_") else value
        for key, value in flatten(config).items()
    }
    nodes = {key.partition(".")[0] for key in options}
    for key, value in LEGACY_DEFAULTS.items():
        node = key.partition(".")[0]
        if key not in options and (node in nodes or node not in ("data", "model", "optimizer")):
            options[key] = value
    direction = options.get("model.direction") or "top"
    if str(direction).startswith("block"):
        options["model.groups"] = [direction[len("block:") :]]
        direction = "top"
    if "model.direction" in options:
        options["model.direction"] = direction
    return options


def modern_node(node: Config) -> dict[str, Any]:
    """A node of an older config with today's `_target_`."""
    target = node.get("_target_", "")
    return {**node, "_target_": LEGACY_TARGETS.get(target, target)}


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """The values of a nested config by their dotted keys."""
    if not isinstance(node, Mapping):
        return {prefix: node}
    dot = f"{prefix}." if prefix else ""
    return {
        key: value
        for name, item in node.items()
        for key, value in flatten(item, dot + str(name)).items()
    }
