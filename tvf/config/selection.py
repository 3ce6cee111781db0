"""What the node `model` selects to train, and what it ignores, for names, tables and messages."""

from collections.abc import Sequence
from typing import Any

from tvf.config.methods import (
    ADAPTERS,
    FRACTION,
    OF_BACKBONE,
    OF_WEIGHTS,
    SELECTION,
    Config,
    ignores_adapters,
    is_lora,
    is_transfer,
    method_of,
)

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


def ignored_in_optimizer(model: Config, optimizer: Config) -> tuple[str, ...]:
    """The keys given in `optimizer` that concern what `model` does not train.

    That is the whole backbone for one that trains the head alone, and its own weights for LoRA.
    """
    if not str(optimizer.get("_target_")).startswith("tvf."):  # a user's may mean anything
        return ()
    ignored = OF_BACKBONE if is_transfer(model) else OF_WEIGHTS if is_lora(model) else ()
    return tuple(key for key in ignored if optimizer.get(key) is not None)


def explain_ignored(name: str, model: Config, optimizer: Config) -> str | None:
    """One line that names the options given but ignored; None if there are none."""
    given = [key for key in ignored_options(model) if model.get(key) is not None]
    unused = ignored_in_optimizer(model, optimizer)
    if not given and not unused:
        return None
    keys = [*(f"model.{key}" for key in given), *(f"optimizer.{key}" for key in unused)]
    return f"{name}: {_why_ignored(model, given)}; ignoring {', '.join(keys)}."


def _why_ignored(model: Config, given: Sequence[str]) -> str:
    """Why `model` ignores its options `given`, or options of the optimizer alone."""
    if not is_transfer(model) and not given:
        return f"model={method_of(model).choice} keeps the weights of its layers"
    reason = f"model={method_of(model).choice} trains only the head"
    if not is_transfer(model):
        named = "train" if model.get("train") is not None else "groups"
        reason = f"model.{named} selects what trains"
        if not {*given} & {*FRACTION}:
            reason = f"model={method_of(model).choice} has no adapters"
            reason += " at model.pct_unfreeze=0" if is_lora(model) else ""
        elif {*given} & {*ADAPTERS}:
            reason += ", without adapters"
    return reason


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
