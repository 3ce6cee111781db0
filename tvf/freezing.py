"""Which part of a backbone trains: ordered groups, deepest first, and the fraction of them that is unfrozen.

Freezing has two halves. Parameters stop moving through `requires_grad`; BatchNorm layers also carry running
statistics, which `module.train()` would go on updating, so `hold_frozen_batchnorm` puts those layers back in eval mode.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tvf.errors import InputError, require_choice

UNITS = ("groups", "params")
FROZEN_BN = ("eval", "batch", "recalibrate")


@dataclass(frozen=True)
class Group:
    """A layer, or several, that freeze and train as one: a name for people and full parameter names."""

    name: str
    parameters: tuple[str, ...]


def check_fraction(value: object) -> float:
    """Return `value` as a fraction; InputError unless it is a number in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"pct_unfreeze={value} is not a number: it is the fraction of the groups to train, in [0, 1].")
    if math.isnan(value) or not 0 <= value <= 1:
        hint = f", did you mean {value / 100:g}?" if 2 <= value <= 100 else "."
        raise InputError(f"pct_unfreeze={value} is outside [0, 1]: it is a fraction{hint}")
    return float(value)


def group_by_modules(module: nn.Module, layers: Sequence[Sequence[str]]) -> tuple[Group, ...]:
    """Groups from submodule names, deepest first: [["layer4"], ["layer3"], ["bn1", "conv1"]]."""
    return tuple(
        Group(
            "+".join(names),
            tuple(f"{layer}.{name}" for layer in names for name, _ in module.get_submodule(layer).named_parameters()),
        )
        for names in layers
    )


def check_groups(module: nn.Module, groups: Iterable[Group], head: str) -> None:
    """Every parameter outside the head must be in exactly one group; InputError names those that are not."""
    listed = [name for group in groups for name in group.parameters]
    expected = [name for name, _ in module.named_parameters() if not name.startswith(f"{head}.")]
    twice = sorted({name for name in listed if listed.count(name) > 1}) if len(set(listed)) < len(listed) else []
    for names, trouble in [
        (sorted(set(expected) - set(listed)), "belong to no group"),
        (sorted(set(listed) - set(expected)), "are in a group, but in the head or not in the backbone"),
        (twice, "are in more than one group"),
    ]:
        if names:
            raise InputError(
                f"backbone groups: these parameters {trouble}: {', '.join(names[:5])} ({len(names)} in all)."
            )


def select_groups(module: nn.Module, groups: Sequence[Group], pct: float, unit: str = "groups") -> tuple[Group, ...]:
    """The groups that train: a beginning of `groups`, which stand deepest first.

    unit "groups": `round(pct * len(groups))` of them, Python's round (half to even).
    unit "params": the fewest that hold at least `pct` of the backbone's parameters.
    """
    pct = check_fraction(pct)
    require_choice("model.unit", unit, UNITS)
    if unit == "groups":
        return tuple(groups[: round(pct * len(groups))])
    sizes = [sum(module.get_parameter(name).numel() for name in group.parameters) for group in groups]
    wanted, count = pct * sum(sizes), 0
    while sum(sizes[:count]) < wanted:
        count += 1
    return tuple(groups[:count])


def unfreeze(module: nn.Module, groups: Iterable[Group], head: str) -> None:
    """Let exactly the head and `groups` train."""
    training = {name for group in groups for name in group.parameters}
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in training or name.startswith(f"{head}."))


@contextmanager
def as_frozen(module: nn.Module) -> Iterator[None]:
    """Whatever is frozen or put into another mode inside is as it was afterwards."""
    trained = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    modes = [(layer, layer.training) for layer in module.modules()]
    try:
        yield
    finally:
        for parameter, trains in trained:
            parameter.requires_grad_(trains)
        for layer, mode in modes:
            layer.training = mode


def tabulate(
    module: nn.Module,
    groups: Sequence[Group],
    unit: str = "groups",
    fractions: Iterable[float] = (0, 0.25, 0.5, 0.75, 1.0),
) -> str:
    """A Markdown table: of each fraction the groups that train and how many parameters they have."""
    rows = ["| `pct_unfreeze` | groups that train, besides the head | parameters |", "|---|---|---|"]
    for pct in fractions:
        chosen = select_groups(module, groups, pct, unit)
        size = sum(module.get_parameter(name).numel() for group in chosen for name in group.parameters)
        rows.append(f"| {pct:g} | {', '.join(group.name for group in chosen) or 'none'} | {size:,} |")
    return "\n".join(rows)


def needs_batches(module: nn.Module) -> bool:
    """Whether a BatchNorm layer is in training mode: it has no statistics of a batch of one."""
    return any(isinstance(layer, _BatchNorm) and layer.training for layer in module.modules())


def frozen_batchnorm(module: nn.Module) -> dict[str, _BatchNorm]:
    """The BatchNorm layers that are frozen, by name.

    A layer is frozen when none of its parameters trains; one without parameters when nothing in its parent does.
    """
    frozen = {}
    for name, layer in module.named_modules():
        if isinstance(layer, _BatchNorm):
            own = list(layer.parameters()) or list(module.get_submodule(name.rpartition(".")[0]).parameters())
            if not any(parameter.requires_grad for parameter in own):
                frozen[name] = layer
    return frozen


def hold_frozen_batchnorm(module: nn.Module) -> None:
    """Put the frozen BatchNorm layers into eval mode: statistics fixed, and used instead of the batch's."""
    for layer in frozen_batchnorm(module).values():
        layer.eval()


def recalibrate_batchnorm(module: nn.Module, layers: Iterable[_BatchNorm], run: Callable[[], None]) -> None:
    """Give `layers` the mean statistics of the batches that `run` pushes through `module`; leave it in eval mode.

    As `torch.optim.swa_utils.update_bn` does for all layers of a network (Izmailov et al. 2018).
    """
    layers = [layer for layer in layers if layer.track_running_stats]
    momenta = [layer.momentum for layer in layers]
    module.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain mean over the batches
        layer.train()
    with torch.no_grad():
        run()
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        layer.eval()
