"""Every mistake in a job's config that can be known without reading images or weights: a sweep can be refused whole."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from tvf.config.build import build, build_phases, check_node, to_plain
from tvf.config.identity import ignored_options, is_transfer
from tvf.data import Augmentation
from tvf.distributed import count_devices, single_thread
from tvf.errors import (
    InputError,
    require_bool,
    require_choice,
    require_count,
    require_seed,
    unknown_key,
)
from tvf.models import (
    FROZEN_BN,
    UNITS,
    check_choice,
    check_direction,
    check_dropout,
    check_fraction,
    check_patterns,
    find_weights,
)
from tvf.store import fingerprint_files
from tvf.training import make_schedule

NODES = (
    *(
        "model",
        "recipe",
        "early_stopping",
        "backbone",
        "data",
        "augment",
        "mix",
        "loss",
        "optimizer",
        "scheduler",
    ),
    *("average", "fabric", "store", "checkpoint", "tracker"),
)
STRATEGIES = ("auto", "ddp")  # of training on several devices there is one way
VALUES = ("name", "project", "epochs", "stop_after", "seed", "threads", "channels_last")
# What the code, not the YAML, gives to a target.
SUPPLIED_BY_CODE = {
    **{"model": ("backbone",), "backbone": ("num_classes",), "loss": ("class_weights",)},
    **{"checkpoint": ("folder", "of"), "scheduler": ("optimizer", "epochs", "batches")},
}


def validate_config(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config as plain data, if every key is known and every value that can be checked by itself is right.

    Raises InputError with the key, its value, the rule and the remedy.
    """
    config = to_plain(cfg)
    for key in config:
        if key not in (*NODES, *VALUES):
            raise unknown_key(str(key), (*NODES, *VALUES))
    for key in (*NODES, *VALUES):
        if key not in config:
            raise InputError(f"{key} is missing from the config.")
    require_count("epochs", config["epochs"], 1)
    require_seed("seed", config["seed"])
    require_bool("channels_last", config["channels_last"])
    for key in ("stop_after", "threads"):
        if config[key] is not None:
            require_count(key, config[key], 1)
    count_devices(config["fabric"].get("devices"))
    if (strategy := config["fabric"].get("strategy", "auto")) not in STRATEGIES:
        raise InputError(
            f"fabric.strategy={strategy} is refused: choose one of {', '.join(STRATEGIES)}."
        )
    for name in NODES:
        check_node(config[name], name, SUPPLIED_BY_CODE.get(name, ()))
    _check_model(config["model"])
    if (origin := config["model"].get("init_from")) is not None:  # the file may become another
        config["init_from_content"] = fingerprint_files([find_weights(origin)])
    for name in ("data", "optimizer", "store", "tracker", "mix", "loss", "average"):
        build(config[name], name)
    head_alone = is_transfer(config["model"]) or config["model"].get("pct_unfreeze") == 0
    build_phases(config, groups=0 if head_alone else 1)
    make_schedule(
        build(config["scheduler"], "scheduler"),
        torch.optim.SGD([torch.zeros(1)]),
        config["epochs"],
        batches=2,
    )
    build(config["checkpoint"], "checkpoint", folder=Path(), of="")
    augment = build(config["augment"], "augment")
    if not isinstance(augment, Augmentation):
        raise InputError(
            f"augment._target_={config['augment']['_target_']!r} is refused: it makes no tvf Views."
        )
    size = config["data"].get("image_size")
    if isinstance(size, int):
        with single_thread():
            augment(torch.zeros(1, 3, size, size, dtype=torch.uint8), np.arange(1), 1)
    return config


def _check_model(model: dict[str, Any]) -> None:
    """Check the node, and bring it into the form that records keep: what it ignores is null, paths are absolute."""
    if not is_transfer(model):
        if model.get("direction") is not None:
            model["direction"] = check_direction(model["direction"])
            check_choice(model["direction"], model.get("train"))
        if model.get("train") is not None:
            check_patterns(model["train"])
    model |= {key.removeprefix("model."): None for key in ignored_options(model)}
    if model.get("pct_unfreeze") is not None:
        check_fraction(model["pct_unfreeze"])
    for key, choices in (("unit", UNITS), ("frozen_bn", FROZEN_BN)):
        if model.get(key) is not None:
            require_choice(f"model.{key}", model[key], choices)
    if model.get("head_dropout") is not None:
        check_dropout(model["head_dropout"])
    if model.get("init_from") is not None:
        find_weights(model["init_from"])
        model["init_from"] = os.path.abspath(Path(model["init_from"]).expanduser())
