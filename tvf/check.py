"""Every mistake in a job's config that can be known without reading images or weights: a sweep can be refused whole."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from tvf.build import IGNORED_BY_TRANSFER, build, check_node, is_transfer, plain, unknown_key
from tvf.data.views import Views
from tvf.devices import one_thread
from tvf.errors import InputError, require_bool, require_choice, require_count, require_seed
from tvf.freezing import FROZEN_BN, UNITS, check_fraction

NODES = ("model", "backbone", "data", "augment", "optimizer", "scheduler", "fabric", "store", "checkpoint", "tracker")
VALUES = ("name", "project", "epochs", "stop_after", "seed", "threads", "channels_last")
# What the code, not the YAML, gives to a target.
GIVEN = {"model": ("backbone",), "backbone": ("num_classes",), "checkpoint": ("folder", "of")}


def check(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config as plain data, if every key is known and every value that can be checked by itself is right.

    Raises InputError with the key, its value, the rule and the remedy.
    """
    config = plain(cfg)
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
    for name in NODES:
        check_node(config[name], name, GIVEN.get(name, ()))
    model = config["model"]
    if is_transfer(model):
        model |= {key.removeprefix("model."): None for key in IGNORED_BY_TRANSFER}
    if model.get("pct_unfreeze") is not None:
        check_fraction(model["pct_unfreeze"])
    for key, choices in (("unit", UNITS), ("frozen_bn", FROZEN_BN)):
        if model.get(key) is not None:
            require_choice(f"model.{key}", model[key], choices)
    for name in ("data", "optimizer", "store", "tracker"):
        build(config[name], name)
    build(config["checkpoint"], "checkpoint", folder=Path(), of="")
    augment = build(config["augment"], "augment")
    if not isinstance(augment, Views):
        raise InputError(f"augment._target_={config['augment']['_target_']!r} is refused: it makes no tvf Views.")
    size = config["data"].get("image_size")
    if isinstance(size, int):
        with one_thread():
            augment(torch.zeros(1, 3, size, size, dtype=torch.uint8), np.arange(1), 1)
    return config
