"""Groups and head of a network whose library names neither: found by running it once.

The order in which a pass first uses the parameters is the order of its graph; the modules say what
belongs together.
"""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tvf.models.groups import Group, is_below

FEWEST_GROUPS = 4
LARGEST_SHARE = 0.8  # of the layers: a single module that holds more is divided further


def use_order(module: nn.Module, example: Tensor) -> list[str]:
    """The names of the parameters in the order in which a pass over `example` first uses them.

    The pass is in eval mode. Parameters that it does not use are left out. Raises what the
    network's code raises.
    """
    recorder = _FirstUses(module)
    modes = [(layer, layer.training) for layer in module.modules()]
    try:
        with torch.no_grad(), recorder:
            module.eval()(example)
    finally:
        for layer, mode in modes:
            layer.training = mode
    return [*recorder.used]


def last_layer(module: nn.Module, used: Sequence[str]) -> str:
    """The path of the layer whose parameters a pass uses last: `used` is from `use_order`."""
    return used[-1].rpartition(".")[0]


def find_groups(module: nn.Module, heads: Sequence[str], used: Sequence[str]) -> tuple[Group, ...]:
    """Groups of all parameters outside `heads`, deepest first; `used` is from `use_order`.

    They are the network's modules: the largest is divided into the modules inside it until there
    are FEWEST_GROUPS and none has more than LARGEST_SHARE of the layers. Normalisation alone, and
    parameters beside the modules, such as tokens, join the group before them.
    """
    names = [name for name, _ in module.named_parameters() if not is_below(name, heads)]
    place = {name: index for index, name in enumerate(used)}
    units = [_Unit(module, "", names)]
    while divided := _divide_largest(units):
        units = divided
    # What no pass uses has no place: it joins what was registered before it.
    for unit in units:
        unit.layers *= any(name in place for name in unit.names)
    last = -1
    for name in names:
        last = place.setdefault(name, last)
    units.sort(key=lambda unit: min(place[name] for name in unit.names))
    joined: list[list[_Unit]] = []
    for unit in units:
        if joined and not (unit.layers and any(each.layers for each in joined[-1])):
            joined[-1].append(unit)
        else:
            joined.append([unit])
    if len(joined) > 1 and not any(unit.layers for unit in joined[-1]):
        joined[-2:] = [joined[-2] + joined[-1]]
    return tuple(
        Group(
            "+".join(unit.name for unit in units),
            tuple(name for unit in units for name in unit.names),
        )
        for units in reversed(joined)
    )


def common_name(parameters: Sequence[str]) -> str:
    """Name the layers that hold `parameters`, by their common paths.

    blocks.3.0.weight, blocks.3.1.weight: blocks.3; blocks.6.0.weight, head.weight: blocks.6.0+head.
    """
    paths = [name.split(".")[:-1] or [name] for name in parameters]
    tops = dict.fromkeys(path[0] for path in paths)
    return "+".join(
        ".".join(os.path.commonprefix([path for path in paths if path[0] == top])) for top in tops
    )


def name_groups(groups: Sequence[Sequence[str]]) -> tuple[Group, ...]:
    """Groups of these parameters, called after their layers: blocks.3, or features.a-features.b."""
    common = [common_name(parameters) for parameters in groups]
    named = []
    for name, parameters in zip(common, groups, strict=True):
        if common.count(name) > 1:
            depth = len(name.split(".")) + 1
            ends = (
                common_name([end]).split(".")[:depth] for end in (parameters[0], parameters[-1])
            )
            name = "-".join(dict.fromkeys(".".join(end) for end in ends))
        named.append(Group(name, (*parameters,)))
    return tuple(named)


class _Unit:
    """A module with those of its parameters that are in no head, or a single parameter."""

    def __init__(self, module: nn.Module, path: str, names: Sequence[str]) -> None:
        self.path, self.names, self._module = path, names, module
        self.layers = sum(module.get_parameter(name).dim() > 1 for name in names)
        if path in names:  # a token or an embedding of positions
            self.layers = 0

    def parts(self) -> "list[_Unit]":
        """The units inside: one for each module, and for each parameter of the module itself."""
        start = f"{self.path}." if self.path else ""
        inside: dict[str, list[str]] = {}
        for name in self.names:
            inside.setdefault(start + name[len(start) :].partition(".")[0], []).append(name)
        return [_Unit(self._module, path, names) for path, names in inside.items()]

    @property
    def name(self) -> str:
        """Where its layers are, as narrowly as can be said."""
        return self.path if self.path in self.names else common_name(self.names)

    @property
    def is_divisible(self) -> bool:
        """Whether there are modules with layers inside, other than layers themselves."""
        return self.layers > 1 and self.path not in self.names


def _divide_largest(units: "Sequence[_Unit]") -> "list[_Unit] | None":
    """The units with the largest one divided; None if that is not needed, or not possible."""
    total = sum(unit.layers for unit in units)
    number = sum(unit.layers > 0 for unit in units)
    largest = max((unit for unit in units if unit.is_divisible), key=_layers, default=None)
    if largest is None:
        return None
    if number >= FEWEST_GROUPS and largest.layers <= LARGEST_SHARE * total:
        return None
    rest = [unit for unit in units if unit is not largest]
    return [*rest, *largest.parts()]


def _layers(unit: _Unit) -> int:
    return unit.layers


class _FirstUses(TorchDispatchMode):
    """Records the names of a module's parameters when an operation first takes them."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.used: dict[str, None] = {}
        self._names = {id(parameter): name for name, parameter in module.named_parameters()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for value in _flat((args, tuple(kwargs.values()))):
            if name := self._names.get(id(value)):
                self.used.setdefault(name)
        return func(*args, **kwargs)


def _flat(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        else:
            yield value
