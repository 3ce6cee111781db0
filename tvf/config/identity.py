"""From a config node with a `_target_` to the object it names; keys that the target does not take are refused."""

from collections.abc import Mapping
from typing import Any

# What a sweep over both models may name, and transfer learning ignores.
IGNORED_BY_TRANSFER = ("model.pct_unfreeze", "model.unit", "model.direction", "model.train")
# What a model whose trained layers are named ignores.
IGNORED_BY_NAMES = ("model.pct_unfreeze", "model.unit")


def is_transfer(model: Mapping[str, Any]) -> bool:
    """Whether the node `model` trains the head alone, and so ignores IGNORED_BY_TRANSFER."""
    return str(model["_target_"]).endswith("TransferModel")


def selection_name(model: Mapping[str, Any]) -> str | None:
    """What the node `model` trains, for names: bottom-0.5, block-layer3, train; None for the deepest fraction."""
    direction = str(model.get("direction") or "top")
    if is_transfer(model):
        return None
    if model.get("train") is not None:
        return "train"
    if direction[:6] in ("block:", "block="):
        return f"block-{direction[6:]}"
    return None if direction == "top" else f"{direction}-{model.get('pct_unfreeze')}"


def ignored_options(model: Mapping[str, Any]) -> tuple[str, ...]:
    """The options that the node `model` may have and makes no use of."""
    if is_transfer(model):
        return IGNORED_BY_TRANSFER
    return IGNORED_BY_NAMES if (selection_name(model) or "").startswith(("train", "block-")) else ()


def known_fraction(model: Mapping[str, Any]) -> float | None:
    """The node's pct_unfreeze; None where names say what trains: it takes the network to know their share."""
    if not is_transfer(model) and ignored_options(model):
        return None
    fraction = model.get("pct_unfreeze") or 0
    return float(fraction) if isinstance(fraction, int) else fraction


WITHOUT_EFFECT = ("checkpoint", "project", "stop_after", "tracker")  # on a job's numbers
# What was done where a record is older than the option that it does not name.
LEGACY_DEFAULTS = {
    "data": {"metric": "accuracy", "class_weights": None},
    "model": {"direction": "top", "train": None, "head_dropout": 0.0, "init_from": None},
    "optimizer": {"decay_all": True, "layer_decay": None, "clip_norm": None},
}
LEGACY_NODES = {
    "recipe": {"_target_": "tvf.training.Direct"},
    "early_stopping": {
        "_target_": "tvf.training.EarlyStopping",
        "patience": None,
        "min_delta": 0.0,
    },
    "mix": {"_target_": "tvf.training.no_mixing"},
    "loss": {"_target_": "tvf.training.CrossEntropyLoss", "label_smoothing": 0.0},
    "average": {"_target_": "tvf.training.no_average"},
}


def result_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a config that a job's numbers depend on: not who is told of them, or where its store lies."""
    store = {
        key: value
        for key, value in config.get("store", {}).items()
        if key not in ("dir", "mode", "max_gb")
    }
    rest = LEGACY_NODES | {key: value for key, value in config.items() if key not in WITHOUT_EFFECT}
    for name, values in LEGACY_DEFAULTS.items():
        if isinstance(node := config.get(name), dict):
            rest[name] = {**values, **node}
    if isinstance(model := config.get("model"), dict):
        rest["model"]["direction"] = model.get("direction") or "top"
    return rest | {"store": store}


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """The values of a nested config by their dotted keys."""
    if not isinstance(node, dict):
        return {prefix: node}
    dot = f"{prefix}." if prefix else ""
    return {
        key: value
        for name, item in node.items()
        for key, value in flatten(item, dot + str(name)).items()
    }
