"""Checks a job's config for every mistake that can be found without reading images or weights.

This way a sweep is rejected as a whole, before its first job trains.
"""

import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from tvf.config.build import (
    JOB_OPTIONS,
    build_part,
    build_phases,
    check_node,
    own_checkpoint,
    target_node,
    to_plain,
)
from tvf.config.methods import (
    ADAPTERS,
    ignores_adapters,
    is_lora,
    is_probe,
    is_transfer,
    method_of,
    refuses_names,
)
from tvf.config.places import backbone_content, resolve_places
from tvf.config.selection import ignored_in_optimizer, ignored_options
from tvf.data import Augmentation
from tvf.distributed import count_devices, single_thread
from tvf.errors import (
    InputError,
    require_bool,
    require_choice,
    require_count,
    require_number,
    require_seed,
    unknown_key,
)
from tvf.frontier import RESIDENT
from tvf.mirror import check_mirror
from tvf.models import (
    FROZEN_BN_OPTIONS,
    UNITS,
    check_checkpoint,
    check_direction,
    check_dropout,
    check_fraction,
    check_group_names,
    check_library_name,
    check_lora,
    check_patterns,
    check_selection,
    find_weights,
    images_made_for,
    load_checkpoint,
)
from tvf.store import fingerprint_files
from tvf.training import GRAPH_MODES, make_schedule

NODES = (
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
    "average",
    "fabric",
    "store",
    "checkpoint",
    "tracker",
)
VALUES = (
    "name",
    "project",
    "epochs",
    "stop_after",
    "refit_epochs",
    "seed",
    "threads",
    "channels_last",
    "deterministic",
    "mirror",
    "report",
)
# Arguments that the code passes to a target, not its YAML.
SUPPLIED_BY_CODE = {
    "model": ("backbone", "adapt"),
    "backbone": ("num_classes",),
    "loss": ("class_weights",),
    "checkpoint": ("folder", "configuration"),
    "scheduler": ("optimizer", "epochs", "batches"),
}
# Options of data; null: as the weights of the backbone were made for.
READ_AS_WEIGHTS: tuple[str, ...] = ("image_size", "interpolation")
STRATEGIES = ("auto", "ddp")  # ddp is the only way to train on several devices
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "64-true", "bf16-true", "16-true")
SHORT_PRECISIONS = (32, 64, 16, "32", "64", "16", "bf16")  # Fabric's other names of these


def supplied_by_code(config: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """The arguments that the code passes to the target of a node."""
    supplied = SUPPLIED_BY_CODE.get(name, ())
    return (*supplied, "image_size") if name == "model" and is_probe(config[name]) else supplied


def validate_config(cfg: DictConfig, command_folder: str | None = None) -> dict[str, Any]:
    """The resolved config as plain data, with every key and every value checked.

    Relative places are relative to `command_folder`, by default the working directory. Raises
    InputError with the key, its value, the rule and the remedy.
    """
    config = to_plain(cfg)
    _check_values(config)
    command_folder = command_folder or os.getcwd()
    resolve_places(config, command_folder, needed=True)
    for name in NODES:
        known = JOB_OPTIONS.get(name, ())
        check_node(target_node(config, name), name, supplied_by_code(config, name), known)
    _normalise_model(config["model"])
    if config["model"].get("init_from") is not None and own_checkpoint(config) is not None:
        raise InputError(
            "model.init_from and backbone.checkpoint cannot be combined: the weights of the first "
            "would replace those of the second. Leave one out."
        )
    _follow_weights(config)
    if (origin := config["model"].get("init_from")) is not None:  # the file may change later
        config["init_from_content"] = fingerprint_files([find_weights(origin)])
    if (content := backbone_content(config["backbone"])) is not None:
        config["backbone_content"] = content
    _check_parts(config)
    config["optimizer"] |= dict.fromkeys(ignored_in_optimizer(config["model"], config["optimizer"]))
    resolve_places(config, command_folder)
    return config


def _check_values(config: dict[str, Any]) -> None:
    for key in config:
        if key not in (*NODES, *VALUES):
            raise unknown_key(str(key), (*NODES, *VALUES))
    for key in (*NODES, *VALUES):
        if key not in config:
            raise InputError(f"{key} is missing from the config.")
    require_count("epochs", config["epochs"], 1)
    require_seed("seed", config["seed"])
    for key in ("channels_last", "deterministic"):
        require_bool(key, config[key])
    for key in ("stop_after", "threads"):
        if config[key] is not None:
            require_count(key, config[key], 1)
    if config["mirror"] is not None:
        check_mirror(config["mirror"])
    _check_refit(config)
    _check_report(config["report"])
    _check_fabric(config["fabric"])


def _check_refit(config: dict[str, Any]) -> None:
    epochs = config["refit_epochs"]
    if epochs is None:
        return
    if not isinstance(epochs, list) or not epochs:
        raise InputError(
            f"refit_epochs={epochs} must be a list of the epochs of each phase, such as [4]."
        )
    for number, count in enumerate(epochs):
        require_count(f"refit_epochs[{number}]", count, 1)
    data = config["data"]
    if isinstance(data, dict) and data.get("validate_on") == "test":
        raise InputError(
            "refit_epochs trains on the validation images too, but with data.validate_on=test "
            "these are the test images. Train, or sweep, with data.validate_on=split."
        )


def _check_fabric(fabric: dict[str, Any]) -> None:
    count_devices(fabric.get("devices"))
    if fabric.get("_target_") == "lightning_fabric.Fabric":
        require_choice("fabric.accelerator", fabric.get("accelerator", "auto"), ACCELERATORS)
        if (precision := fabric.get("precision")) not in (None, *SHORT_PRECISIONS):
            require_choice("fabric.precision", precision, PRECISIONS)
    require_choice("fabric.strategy", fabric.get("strategy", "auto"), STRATEGIES)
    require_choice("fabric.resident", fabric.get("resident", "auto"), RESIDENT)
    require_choice("fabric.compile", fabric.get("compile", "auto"), GRAPH_MODES)
    require_bool("fabric.tf32", fabric.get("tf32", False))
    jobs = fabric.get("jobs_per_gpu", 1)
    if jobs != "auto" and (type(jobs) is not int or jobs < 1):
        raise InputError(
            f"fabric.jobs_per_gpu={jobs} must be a whole number of at least 1, or auto."
        )


def _check_report(report: Any) -> None:
    if not isinstance(report, dict):
        raise InputError(f"report={report} must be a mapping with the key margin.")
    for key in report:
        if key != "margin":
            raise unknown_key(f"report.{key}", ["margin"], "report.")
    require_number("report.margin", report.get("margin"), 0, 1)


def _normalise_model(model: dict[str, Any]) -> None:
    """Check the node and convert it in place to the form that records keep.

    Options it ignores become null.
    """
    if refuses_names(model) and model.get("train") is not None:
        raise InputError(
            f"model.train={model['train']!r} must be null with model={method_of(model).choice}, "
            "which itself says what trains in the groups. Use it with model=finetune"
            + ("; model.layers chooses layers by name." if is_lora(model) else ".")
        )
    if not is_transfer(model):
        _check_selection(model)
    model |= dict.fromkeys(ignored_options(model))
    if model.get("pct_unfreeze") is not None:
        check_fraction(model["pct_unfreeze"])
    if model.get("unit") is not None:
        require_choice("model.unit", model["unit"], UNITS)
    if model.get("frozen_bn") is not None:
        require_choice("model.frozen_bn", model["frozen_bn"], FROZEN_BN_OPTIONS)
        if is_probe(model) and model["frozen_bn"] == "batch":
            raise InputError(
                "model.frozen_bn=batch must be eval or recalibrate with model=probe, whose network "
                "is never in training mode."
            )
    if model.get("head_dropout") is not None:
        check_dropout(model["head_dropout"])
    if is_lora(model) and not ignores_adapters(model):
        given = {key: model[key] for key in ADAPTERS if key in model}
        check_lora(**{"rank": 1, "alpha": 1, "dropout": 0, "layers": None, **given})
    if model.get("init_from") is not None:
        find_weights(model["init_from"])


def _follow_weights(config: dict[str, Any]) -> None:
    """Set in place what follows from the backbone's weights: how images are read."""
    backbone, data = config["backbone"], config["data"]
    check_library_name(backbone)
    if (checkpoint := own_checkpoint(config)) is not None:
        content = fingerprint_files([check_checkpoint(checkpoint)])
        if str(backbone["_target_"]).startswith("tvf."):  # code of others runs in the job alone
            _check_fit(json.dumps(backbone, sort_keys=True), content)
    ours = str(data["_target_"]).startswith("tvf.")  # in data of the user's own null is their word
    unset = [key for key in READ_AS_WEIGHTS if ours and key in data and data[key] is None]
    if unset:
        found = dict(zip(READ_AS_WEIGHTS, images_made_for(backbone), strict=True))
        data |= {key: found[key] for key in unset}


@cache
def _check_fit(backbone: str, content: str) -> None:
    """Raise InputError unless the checkpoint of a node, given as JSON, has all of its tensors."""
    node = json.loads(backbone)
    network = build_part({"backbone": node}, "backbone", num_classes=2)
    load_checkpoint(network.module, network.heads, node["checkpoint"])


def _check_selection(model: dict[str, Any]) -> None:
    if model.get("direction") is not None:
        check_direction(model["direction"])
    if model.get("groups") is not None:
        model["groups"] = sorted(check_group_names(model["groups"]))
    if model.get("train") is not None:
        check_patterns(model["train"])
    direction = model.get("direction") or "top"
    check_selection(direction, model.get("groups"), model.get("train"))


def _check_parts(config: dict[str, Any]) -> None:
    """Build the parts that need no images or weights, so that their own checks run."""
    for name in ("data", "optimizer", "store", "tracker", "mix", "loss", "average"):
        build_part(config, name)
    if (clip_norm := config["optimizer"].get("clip_norm")) is not None:
        require_number("optimizer.clip_norm", clip_norm, 0, above=True)
    devices = config["fabric"].get("devices")
    number = len(devices) if isinstance(devices, list) else devices
    if is_probe(config["model"]) and isinstance(number, int) and number > 1:
        raise InputError(
            f"fabric.devices={devices} must be 1 with model=probe: a head on frozen layers needs "
            "no more."
        )
    head_alone = is_transfer(config["model"]) or config["model"].get("pct_unfreeze") == 0
    build_phases(config, groups=0 if head_alone else 1)
    optimizer = torch.optim.SGD([torch.zeros(1)])
    scheduler = build_part(config, "scheduler")
    schedule = make_schedule(scheduler, optimizer, config["epochs"], batches=2)
    if config["refit_epochs"] is not None and schedule.follows_scores:
        raise InputError(
            "the scheduler follows validation scores, which a job without validation images "
            "(tvf refit, refit_epochs) does not have. Train, or sweep, with another one, such as "
            "scheduler=cosine."
        )
    build_part(config, "checkpoint", folder=Path(), configuration="")
    augment = build_part(config, "augment")
    if not isinstance(augment, Augmentation):
        target = config["augment"]["_target_"]
        raise InputError(f"augment._target_={target!r} must build a tvf.data.Augmentation.")
    size = config["data"].get("image_size")
    if isinstance(size, int):
        with single_thread():
            augment(torch.zeros(1, 3, size, size, dtype=torch.uint8), np.arange(1), 1)
