"""Groups of a backbone's layers, ordered deepest first, and the ways to select which of them train.

A fraction of them from one end (`select_groups`), groups by name (`pick_groups`), or single
parameters by name (`match_groups`).
"""

import difflib
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from tvf.errors import InputError, require_choice

UNITS = ("groups", "params")
DIRECTIONS = ("top", "bottom")


@dataclass(frozen=True)
class Group:
    """One or more layers that freeze and train together: a name and full parameter names."""

    name: str
    parameters: tuple[str, ...]


def group_by_modules(module: nn.Module, layers: Sequence[Sequence[str]]) -> tuple[Group, ...]:
    """Make groups from submodule names, deepest first: [["layer4"], ["bn1", "conv1"]]."""
    groups = []
    for names in layers:
        parameters = [
            f"{layer}.{name}"
            for layer in names
            for name, _ in module.get_submodule(layer).named_parameters()
        ]
        groups.append(Group("+".join(names), tuple(parameters)))
    return tuple(groups)


def check_groups(module: nn.Module, groups: Iterable[Group], head: str) -> None:
    """Raise InputError unless every parameter outside the head is in exactly one group."""
    listed = [name for group in groups for name in group.parameters]
    expected = {name for name, _ in module.named_parameters() if not name.startswith(f"{head}.")}
    repeated = {name for name in listed if listed.count(name) > 1}
    for names, problem in (
        (expected.difference(listed), "belong to no group"),
        (set(listed) - expected, "are in a group, but in the head or not in the backbone"),
        (repeated, "are in more than one group"),
    ):
        if names:
            raise InputError(
                f"backbone groups: these parameters {problem}: {', '.join(sorted(names)[:5])} "
                f"({len(names)} in all)."
            )


def check_fraction(value: object) -> float:
    """Return `value` as a fraction; InputError unless it is a number in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(
            f"pct_unfreeze={value} is not a number: it is the fraction of the groups to train, in "
            "[0, 1]."
        )
    if math.isnan(value) or not 0 <= value <= 1:
        hint = f", did you mean {value / 100:g}?" if 2 <= value <= 100 else "."
        raise InputError(f"pct_unfreeze={value} is outside [0, 1]: it is a fraction{hint}")
    return float(value)


def check_direction(value: object) -> str:
    """Return `value`; InputError unless it is "top" or "bottom"."""
    if isinstance(value, str) and value in DIRECTIONS:
        return value
    raise InputError(
        f"model.direction={value} must be top (the deepest groups) or bottom (those next to the "
        "pixels). To train groups by name, use model.groups=[layer3]."
    )


def check_group_names(value: object) -> list[str]:
    """Return `value` as a list; InputError unless it is a list of different group names."""
    if not isinstance(value, list | tuple):
        raise InputError(
            f"model.groups={value} must be a list of group names, such as model.groups=[layer3]."
        )
    names = list(value)
    if not names:
        raise InputError(
            "model.groups=[] must name at least one group. To train the head alone, use "
            "model=transfer; for a fraction of the groups, model.groups=null."
        )
    for name in names:
        if not isinstance(name, str) or not name:
            raise InputError(f"model.groups={names}: {name!r} must be the name of a group.")
        if names.count(name) > 1:
            raise InputError(f"model.groups={names} must name {name} only once.")
    return names


def check_patterns(value: object) -> list[str]:
    """Return `value` as a list; InputError unless it is one or more regular expressions."""
    patterns: list[Any] = [*value] if isinstance(value, list | tuple) else [value]
    if not patterns:
        raise InputError(
            "model.train=[] must name what trains; for a fraction of the groups, model.train=null."
        )
    for pattern in patterns:
        if not isinstance(pattern, str) or not pattern:
            raise InputError(
                f"model.train={pattern!r} must be a regular expression of parameter names, such as "
                "'bn'."
            )
        try:
            re.compile(pattern)
        except re.error as error:
            raise InputError(
                f"model.train={pattern!r} is not a regular expression ({error}): write a \\ before "
                "a character that stands for itself."
            ) from error
    return patterns


def check_selection(direction: str, groups: object, train: object) -> None:
    """Raise InputError if more than one option selects what trains."""
    chosen = [
        f"model.direction={direction}" if direction != "top" else None,
        f"model.groups={_brackets(groups)}" if groups is not None else None,
        f"model.train={_brackets(train)}" if train is not None else None,
    ]
    given = [option for option in chosen if option]
    if len(given) > 1:
        raise InputError(
            f"{' and '.join(given)} cannot be combined: each selects what trains. Choose one."
        )


def select_groups(
    module: nn.Module,
    groups: Sequence[Group],
    pct: float | None,
    unit: str | None = "groups",
    direction: str = "top",
) -> tuple[Group, ...]:
    """The fraction `pct` of `groups`, which are ordered deepest first, in the same order.

    direction "top" takes them from the beginning of `groups`, "bottom" from the end.
    unit "groups" takes `round(pct * len(groups))` of them, by Python's round (half to even);
    "params" the fewest that hold at least `pct` of the backbone's parameters.
    """
    check_direction(direction)
    pct = check_fraction(pct)
    require_choice("model.unit", unit, UNITS)
    if direction == "bottom":
        return select_groups(module, groups[::-1], pct, unit)[::-1]
    if unit == "groups":
        return tuple(groups[: round(pct * len(groups))])
    sizes = [_count_parameters(module, group) for group in groups]
    wanted, count = pct * sum(sizes), 0
    while sum(sizes[:count]) < wanted:
        count += 1
    return tuple(groups[:count])


def pick_groups(groups: Sequence[Group], names: Sequence[str]) -> tuple[Group, ...]:
    """The groups called `names`, in the order of `groups`: surgical fine-tuning (Lee et al. 2023).

    InputError for a name that no group has.
    """
    names = check_group_names(names)
    known = [group.name for group in groups]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise InputError(
                f"model.groups=[{name}] names no group of this backbone.{hint} Its groups are "
                f"{', '.join(known)}."
            )
    return tuple(group for group in groups if group.name in names)


def match_groups(module: nn.Module, groups: Sequence[Group], patterns: object) -> tuple[Group, ...]:
    """`groups`, reduced to the parameters whose names one of `patterns` is found in (`re.search`).

    A group that keeps only some of its parameters is called name(part). InputError for a pattern
    that is found in no name.
    """
    names = [name for group in groups for name in group.parameters]
    found: set[str] = set()
    for pattern in check_patterns(patterns):
        matching = {name for name in names if re.search(pattern, name)}
        if not matching:
            firsts = dict.fromkeys(group.parameters[0] for group in groups if group.parameters)
            raise InputError(
                f"model.train={pattern!r} must be found in the name of a parameter outside the "
                f"head. Some of the {len(names)} names: {', '.join(firsts)}."
            )
        found |= matching
    chosen = []
    for group in groups:
        parameters = tuple(name for name in group.parameters if name in found)
        if parameters:
            whole = parameters == group.parameters
            chosen.append(group if whole else Group(f"{group.name}(part)", parameters))
    return tuple(chosen)


def unfreeze(module: nn.Module, groups: Iterable[Group], head: str) -> None:
    """Let exactly the head and `groups` train."""
    training = {name for group in groups for name in group.parameters}
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in training or name.startswith(f"{head}."))


@contextmanager
def preserve_freezing(module: nn.Module) -> Iterator[None]:
    """Restore afterwards what was frozen, and the mode of every layer."""
    trained = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    modes = [(layer, layer.training) for layer in module.modules()]
    try:
        yield
    finally:
        for parameter, trains in trained:
            parameter.requires_grad_(trains)
        for layer, mode in modes:
            layer.training = mode


def tabulate_groups(
    module: nn.Module,
    groups: Sequence[Group],
    unit: str | None = "groups",
    fractions: Iterable[float] = (0, 0.25, 0.5, 0.75, 1.0),
    direction: str = "top",
    names: Sequence[str] | None = None,
    train: object = None,
) -> str:
    """A Markdown table of the groups that train at each fraction, and their parameter counts.

    If `names` or `train` selects what trains, a single row, with the share of the groups.
    """
    check_direction(direction)
    check_selection(direction, names, train)
    if names is not None:
        selections = [pick_groups(groups, names)]
    elif train is not None:
        selections = [match_groups(module, groups, train)]
    else:
        fractions = list(fractions)
        selections = [select_groups(module, groups, pct, unit, direction) for pct in fractions]
    if names is not None or train is not None:
        fractions = [group_share(selections[0], groups)]
    rows = [
        "| `pct_unfreeze` | groups that train, besides the head | parameters |",
        "|---|---|---|",
    ]
    for pct, chosen in zip(fractions, selections, strict=True):
        listed = ", ".join(group.name for group in chosen) or "none"
        size = sum(_count_parameters(module, group) for group in chosen)
        rows.append(f"| {pct:g} | {listed} | {size:,} |")
    return "\n".join(rows)


def group_share(trained: Sequence[Group], groups: Sequence[Group]) -> float:
    """The share of a backbone's groups that train at least in part, to four digits."""
    return round(len(trained) / max(len(groups), 1), 4)


def _count_parameters(module: nn.Module, group: Group) -> int:
    return sum(module.get_parameter(name).numel() for name in group.parameters)


def _brackets(value: object) -> str:
    """A value as the shell takes it: [layer3,layer4]."""
    return f"[{','.join(map(str, value))}]" if isinstance(value, list | tuple) else str(value)
