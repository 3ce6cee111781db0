"""What each option of a job affects: the single table behind resuming, comparing and sharing.

A test fails if an option in conf/ is missing from this table. A user's own option is assumed to
affect everything that the options of its node affect.
"""

from enum import Flag, auto
from functools import reduce
from operator import or_
from typing import Any

from tvf.config.legacy import (
    LATER_DEFAULTS,
    LATER_FOLDER_DEFAULTS,
    LATER_TABLE_DEFAULTS,
    modern_options,
)
from tvf.config.methods import Config
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
    "fabric.compile": NOTHING,
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

# The options in which repetitions of one configuration differ.
REPETITIONS = ("data.split_seed", "data.outer_fold", "data.fold", "seed")
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
