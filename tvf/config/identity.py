"""What each option of a job affects: the single table behind resuming, comparing and sharing.

A test fails if an option in conf/ is missing from this table. A user's own option is assumed to
affect everything that the options of its node affect.
"""

from collections.abc import Mapping, Sequence
from enum import Flag, auto
from functools import reduce
from operator import or_
from typing import Any

from tvf.config.methods import (
    ADAPTERS,
    FRACTION,
    OF_BACKBONE,
    SELECTION,
    Config,
    ignores_adapters,
    is_lora,
    is_transfer,
    method_of,
)
from tvf.config.places import PLACES, canonical


class Affects(Flag):
    """What an option can change."""

    NOTHING = 0
    NUMBERS = auto()  # losses, scores and weights of the job
    VALIDATION_IMAGES = auto()  # which images choose the epoch, and by which metric
    FROZEN_LAYERS = auto()  # the activations of frozen layers, or the store that holds them
    HEAD_PHASE = auto()  # the head after a phase that trains it alone


NOTHING, NUMBERS = Affects.NOTHING, Affects.NUMBERS
TRAINING = Affects.NUMBERS | Affects.HEAD_PHASE
PIXELS = TRAINING | Affects.FROZEN_LAYERS
DIVISION = TRAINING | Affects.VALIDATION_IMAGES  # activations belong to images, not to splits
IMAGES = EVERYTHING = PIXELS | Affects.VALIDATION_IMAGES

OPTIONS: dict[str, Affects] = {
    "name": NOTHING,
    "project": NOTHING,
    "epochs": NUMBERS,
    "stop_after": NOTHING,
    "refit_epochs": DIVISION,
    "seed": TRAINING,
    "threads": TRAINING,
    "channels_last": PIXELS,
    "deterministic": PIXELS,
    "mirror": NOTHING,
    "report.margin": NOTHING,
    "checkpoint._target_": NOTHING,
    "checkpoint.every_minutes": NOTHING,
    "model._target_": TRAINING,
    "model.pct_unfreeze": NUMBERS,
    "model.unit": NUMBERS,
    "model.direction": NUMBERS,
    "model.groups": NUMBERS,
    "model.train": NUMBERS,
    "model.rank": NUMBERS,
    "model.alpha": NUMBERS,
    "model.dropout": NUMBERS,
    "model.layers": NUMBERS,
    "model.head_dropout": TRAINING,
    "model.frozen_bn": PIXELS,
    "model.init_from": PIXELS,
    # Fingerprints of the files that these name, which `validate_config` adds.
    "init_from_content": PIXELS,
    "backbone_content": PIXELS,
    "recipe._target_": NUMBERS,
    "recipe.head_epochs": NUMBERS,
    "recipe.head_patience": NUMBERS,
    "recipe.lr": NUMBERS,
    "recipe.backbone_lr": NUMBERS,
    "recipe.epochs_each": NUMBERS,
    "recipe.phases": NUMBERS,
    "early_stopping._target_": NUMBERS,
    "early_stopping.patience": NUMBERS,
    "early_stopping.min_delta": NUMBERS,
    "backbone._target_": PIXELS,
    "backbone.name": PIXELS,
    "backbone.weights": PIXELS,
    "backbone.grouping": PIXELS,
    "backbone.pretrained": PIXELS,
    "backbone.checkpoint": PIXELS,
    "backbone.coarse": PIXELS,
    "backbone.options": PIXELS,
    "backbone.mean": PIXELS,
    "backbone.std": PIXELS,
    "data._target_": IMAGES,
    "data.root": IMAGES,
    "data.layout": IMAGES,
    "data.path": IMAGES,
    "data.ending": IMAGES,
    "data.config_name": IMAGES,
    "data.revision": IMAGES,
    "data.image_column": IMAGES,
    "data.label_column": IMAGES,
    "data.split_column": DIVISION,
    "data.group_column": DIVISION,
    "data.weight_column": TRAINING,
    "data.task": IMAGES,
    "data.limit": IMAGES,
    "data.train_limit": TRAINING,
    "data.split_seed": DIVISION,
    "data.split_by": DIVISION,
    "data.groups": DIVISION,
    "data.folds": DIVISION,
    "data.fold": DIVISION,
    "data.outer_folds": DIVISION,
    "data.outer_fold": DIVISION,
    "data.duplicates": DIVISION,
    "data.val_fraction": DIVISION,
    "data.test_fraction": DIVISION,
    "data.validate_on": DIVISION,
    "data.metric": TRAINING | Affects.VALIDATION_IMAGES,
    "data.image_size": PIXELS,
    "data.resize": PIXELS,
    "data.interpolation": PIXELS,
    "data.pad_color": PIXELS,
    "data.max_megapixels": PIXELS,
    "data.white_point": PIXELS,
    "data.window": PIXELS,
    "data.channels": PIXELS,
    "data.batch_size": TRAINING,
    "data.class_weights": TRAINING,
    "data.download": NOTHING,
    "augment._target_": PIXELS,
    "augment.horizontal": PIXELS,
    "augment.vertical": PIXELS,
    "augment.padding": PIXELS,
    "augment.transforms": PIXELS,
    "augment.views": PIXELS,
    "augment.seed": PIXELS,
    "mix._target_": TRAINING,
    "mix.kind": TRAINING,
    "mix.alpha": TRAINING,
    "loss._target_": TRAINING,
    "loss.label_smoothing": TRAINING,
    "optimizer._target_": TRAINING,
    "optimizer.algorithm._target_": TRAINING,
    "optimizer.algorithm._partial_": TRAINING,
    "optimizer.algorithm.momentum": TRAINING,
    "optimizer.lr": TRAINING,
    "optimizer.backbone_lr": NUMBERS,
    "optimizer.layer_decay": NUMBERS,
    "optimizer.weight_decay": TRAINING,
    "optimizer.l2_sp": NUMBERS,
    "optimizer.decay_all": TRAINING,
    "optimizer.clip_norm": TRAINING,
    "optimizer.fused": TRAINING,
    "scheduler._target_": TRAINING,
    "scheduler._partial_": TRAINING,
    "scheduler.factor": TRAINING,
    "scheduler.patience": TRAINING,
    "scheduler.min_delta": TRAINING,
    "scheduler.warmup": TRAINING,
    "scheduler.rising": TRAINING,
    "scheduler.start": TRAINING,
    "scheduler.end": TRAINING,
    "average._target_": TRAINING,
    "average.decay": TRAINING,
    "fabric._target_": PIXELS,
    "fabric.accelerator": PIXELS,
    "fabric.devices": PIXELS,
    "fabric.strategy": PIXELS,
    "fabric.precision": PIXELS,
    "fabric.tf32": PIXELS,
    "fabric.resident": NOTHING,
    "fabric.jobs_per_gpu": NOTHING,
    "store._target_": PIXELS,
    "store.dtype": PIXELS,
    "store.dir": Affects.FROZEN_LAYERS,
    "store.mode": Affects.FROZEN_LAYERS,
    "store.max_gb": NOTHING,
    "tracker._target_": NOTHING,
    "tracker.project": NOTHING,
    "tracker.entity": NOTHING,
    "tracker.mode": NOTHING,
    "tracker.tags": NOTHING,
    "tracker.timeout": NOTHING,
}

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

# The options in which repetitions of one configuration differ.
REPETITIONS = ("data.split_seed", "data.outer_fold", "data.fold", "seed")
# The options that are in the names of jobs whose command sets them, and what they are called there.
NAME_WORDS = {
    "data.train_limit": "train",
    "data.split_seed": "split",
    "data.outer_fold": "outer",
    "data.fold": "fold",
    "seed": "seed",
    "refit_epochs": "refit",
    "model.rank": "rank",
    "optimizer.lr": "lr",
    "optimizer.backbone_lr": "backbone_lr",
}
NEWER_WORDS = ("optimizer.lr", "optimizer.backbone_lr")  # which were not in folders' names

SAME = "same"  # in a sweep's manifest: folders of jobs by what their own would be called


def affects(key: str) -> Affects:
    """What the option with this dotted key affects.

    An unknown one affects all that its node does, or everything if the node is unknown too.
    """
    if key in OPTIONS:
        return OPTIONS[key]
    node = key.partition(".")[0]
    known = [effect for name, effect in OPTIONS.items() if name.partition(".")[0] == node]
    return reduce(or_, known, NOTHING) if known else EVERYTHING


def result_config(config: Config) -> dict[str, Any]:
    """The options that a job's numbers depend on, by dotted key: equal options, equal numbers."""
    return select_options(config, Affects.NUMBERS)


def head_phase_config(config: Config) -> dict[str, Any]:
    """What a phase that trains the head alone depends on, besides its own length and rates."""
    return select_options(config, Affects.HEAD_PHASE)


def frozen_layers_config(config: Config) -> dict[str, Any]:
    """The options that two jobs must share for their frozen layers to compute the same values."""
    options = select_options(config, Affects.FROZEN_LAYERS)
    # What training images decide: statistics of their batches, percentiles of their values.
    recalibrated = options.get("model.frozen_bn") == "recalibrate"
    if recalibrated or has_percentiles(options.get("data.window")):
        data = {f"data.{key}": value for key, value in (config.get("data") or {}).items()}
        decisive = ("data.train_limit", *(["data.batch_size"] if recalibrated else []))
        for key, value in data.items():
            if key in decisive or Affects.VALIDATION_IMAGES in affects(key):
                options[key] = value
    return options


def has_percentiles(window: Any) -> bool:
    """Whether the option `data.window` is of percentiles, whose values training images give."""
    return isinstance(window, list | tuple) and any(isinstance(each, str) for each in window)


def select_options(config: Config, effect: Affects) -> dict[str, Any]:
    """The options of `config` that affect `effect`, by dotted key, with current names.

    Equal numbers and equal places have one form, see `canonical`.
    """
    options = written_options(config, effect)
    later = {
        "tvf.data.ImageFolder": LATER_FOLDER_DEFAULTS,
        "tvf.data.ImageTable": LATER_TABLE_DEFAULTS,
    }.get(str(options.get("data._target_")), {})
    for key, value in (later | LATER_DEFAULTS).items():
        if effect in affects(key):
            options.setdefault(key, value)
    return {key: canonical(key, value) for key, value in options.items()}


def written_options(config: Config, effect: Affects) -> dict[str, Any]:
    """Like `select_options`, with numbers and places as they are written in `config`."""
    return {key: value for key, value in modern_options(config).items() if effect in affects(key)}


def earlier_options(config: Config) -> list[dict[str, Any]]:
    """The options by which a checkpoint of a recorded job may be named instead.

    Those that affect its numbers: as they are written, by earlier versions; in one form each,
    without options that its record lacks because they were added later; or with places as they are
    written, since a folder that was moved may be reached by a link now.
    """
    written = written_options(config, Affects.NUMBERS)
    known = result_config(config)
    places = {key: written[key] for key in PLACES if key in written}
    return [written, {key: known[key] for key in known if key in written}, known | places]


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


def selection_name(model: Config) -> str | None:
    """What the node `model` trains, for names: bottom-0.5, groups-layer3, train.

    None for transfer learning and the deepest fraction, which are the usual cases.
    """
    if is_transfer(model):
        return None
    if model.get("train") is not None:
        return "train"
    if model.get("groups") is not None:
        groups = model["groups"]
        names = groups if isinstance(groups, Sequence) and not isinstance(groups, str) else [groups]
        return f"groups-{'+'.join(map(str, names))}"
    direction = str(model.get("direction") or "top")
    if direction.startswith("block"):  # configs from before model.groups
        return f"groups-{direction[len('block:') :]}"
    return None if direction == "top" else f"{direction}-{name_fraction(model.get('pct_unfreeze'))}"


def name_fraction(value: Any) -> str:
    """A fraction in names, however it is written: 0, 0.25, 1.0."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return str(float(value)) if value else "0"


def ignored_options(model: Config) -> tuple[str, ...]:
    """The keys that the node `model` may have but ignores."""
    if is_transfer(model):
        ignored = SELECTION
    else:
        named = (selection_name(model) or "").startswith(("train", "groups-"))
        ignored = FRACTION if named else ()
    return (*ignored, *ADAPTERS) if ignores_adapters(model) else ignored


def name_value(value: Any) -> str:
    """The value of one of NAME_WORDS in names: 100; all for no limit; 2+4 for a list."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "+".join(map(str, value))
    if isinstance(value, float):
        return f"{value:g}"
    return "all" if value is None else str(value)


def ignored_by_head(model: Config, optimizer: Config) -> tuple[str, ...]:
    """The keys given in `optimizer` that only concern a backbone, if `model` trains none of it."""
    given = [key for key in OF_BACKBONE if optimizer.get(key) is not None]
    own = str(optimizer.get("_target_")).startswith("tvf.")  # a user's may mean anything
    return tuple(given) if own and is_transfer(model) else ()


def explain_ignored(name: str, model: Config, optimizer: Config) -> str | None:
    """One line that names the options given but ignored; None if there are none."""
    given = [key for key in ignored_options(model) if model.get(key) is not None]
    unused = ignored_by_head(model, optimizer)
    if not given and not unused:
        return None
    reason = f"model={method_of(model).choice} trains only the head"
    if not is_transfer(model):
        named = "train" if model.get("train") is not None else "groups"
        reason = f"model.{named} selects what trains"
        if not {*given} & {*FRACTION}:
            reason = f"model={method_of(model).choice} has no adapters"
            reason += " at model.pct_unfreeze=0" if is_lora(model) else ""
        elif {*given} & {*ADAPTERS}:
            reason += ", without adapters"
    keys = [*(f"model.{key}" for key in given), *(f"optimizer.{key}" for key in unused)]
    return f"{name}: {reason}; ignoring {', '.join(keys)}."


def trained_label(model: Config) -> str:
    """What the node `model` trains and how: 0.5, 0.5 with LoRA, groups-layer3."""
    part = selection_name(model) or f"{known_fraction(model) or 0:g}"
    return f"{part} {method_of(model).label}".strip()


def known_fraction(model: Config) -> float | None:
    """The node's pct_unfreeze; None if layers are named, as their share depends on the network."""
    if not is_transfer(model) and "pct_unfreeze" in ignored_options(model):
        return None
    fraction = model.get("pct_unfreeze") or 0
    return float(fraction) if isinstance(fraction, int) else fraction
