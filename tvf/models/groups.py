"""Which part of a backbone trains: ordered groups, deepest first, and which of them are unfrozen.

Freezing has two halves. Parameters stop moving through `requires_grad`; BatchNorm layers also carry running
statistics, which `module.train()` would go on updating, so `hold_frozen_batchnorm` puts those layers back in eval mode.
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
BLOCK = re.compile(r"block[:=](.+)")
DIRECTIONS = (
    "top (the deepest groups), bottom (those next to the pixels) or block:<group> (that one alone)"
)


@dataclass(frozen=True)
class Group:
    """A layer, or several, that freeze and train as one: a name for people and full parameter names."""

    name: str
    parameters: tuple[str, ...]


def check_fraction(value: object) -> float:
    """Return `value` as a fraction; InputError unless it is a number in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(
            f"pct_unfreeze={value} is not a number: it is the fraction of the groups to train, in [0, 1]."
        )
    if math.isnan(value) or not 0 <= value <= 1:
        hint = f", did you mean {value / 100:g}?" if 2 <= value <= 100 else "."
        raise InputError(f"pct_unfreeze={value} is outside [0, 1]: it is a fraction{hint}")
    return float(value)


def check_direction(value: object) -> str:
    """Return `value` as top, bottom or block:<group>, however it is spelled; InputError if it is none of them."""
    if isinstance(value, str):
        if value in ("top", "bottom"):
            return value
        if block := BLOCK.fullmatch(value):
            return f"block:{block[1]}"
    raise InputError(f"model.direction={value!r} is refused: choose {DIRECTIONS}.")


def check_patterns(value: object) -> list[str]:
    """Return `value`, a regular expression or several, as a list; InputError for what is none or does not compile."""
    patterns: list[Any] = [*value] if isinstance(value, list | tuple) else [value]
    if not patterns:
        raise InputError(
            "model.train=[] is refused: name what trains, or null for a fraction of the groups."
        )
    for pattern in patterns:
        try:
            if not isinstance(pattern, str) or not pattern:
                raise InputError(
                    f"model.train={pattern!r} is refused: give regular expressions of parameter names, such as 'bn'."
                )
            re.compile(pattern)
        except re.error as error:
            raise InputError(
                f"model.train={pattern!r} is no regular expression ({error}): write a \\ before a character that "
                "stands for itself."
            ) from error
    return patterns


def check_choice(direction: str, train: object) -> None:
    """InputError if both a direction and names say what trains."""
    if train is not None and direction != "top":
        raise InputError(
            f"model.direction={direction} and model.train={train} are refused together: each says what trains, choose "
            "one of them."
        )


def group_by_modules(module: nn.Module, layers: Sequence[Sequence[str]]) -> tuple[Group, ...]:
    """Groups from submodule names, deepest first: [["layer4"], ["layer3"], ["bn1", "conv1"]]."""
    return tuple(
        Group(
            "+".join(names),
            tuple(
                f"{layer}.{name}"
                for layer in names
                for name, _ in module.get_submodule(layer).named_parameters()
            ),
        )
        for names in layers
    )


def check_groups(module: nn.Module, groups: Iterable[Group], head: str) -> None:
    """Every parameter outside the head must be in exactly one group; InputError names those that are not."""
    listed = [name for group in groups for name in group.parameters]
    expected = [name for name, _ in module.named_parameters() if not name.startswith(f"{head}.")]
    twice = (
        sorted({name for name in listed if listed.count(name) > 1})
        if len(set(listed)) < len(listed)
        else []
    )
    for names, trouble in [
        (sorted(set(expected) - set(listed)), "belong to no group"),
        (
            sorted(set(listed) - set(expected)),
            "are in a group, but in the head or not in the backbone",
        ),
        (twice, "are in more than one group"),
    ]:
        if names:
            raise InputError(
                f"backbone groups: these parameters {trouble}: {', '.join(names[:5])} ({len(names)} in all)."
            )


def select_groups(
    module: nn.Module,
    groups: Sequence[Group],
    pct: float | None,
    unit: str | None = "groups",
    direction: str = "top",
) -> tuple[Group, ...]:
    """The groups that train, in the order of `groups`, which stand deepest first.

    direction "top": a beginning of `groups`; "bottom": as many from their end; "block:<name>": that group alone, as in
    surgical fine-tuning (Lee et al. 2023), whatever the fraction. InputError for a name that no group has.
    unit "groups": `round(pct * len(groups))` of them, Python's round (half to even).
    unit "params": the fewest that hold at least `pct` of the backbone's parameters.
    """
    direction = check_direction(direction)
    if block := BLOCK.fullmatch(direction):
        names = [group.name for group in groups]
        if block[1] not in names:
            near = difflib.get_close_matches(block[1], names, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise InputError(
                f"model.direction={direction} names no group of this backbone.{hint} Its groups are {', '.join(names)}."
            )
        return (groups[names.index(block[1])],)
    pct = check_fraction(pct)
    require_choice("model.unit", unit, UNITS)
    if direction == "bottom":
        return select_groups(module, groups[::-1], pct, unit)[::-1]
    if unit == "groups":
        return tuple(groups[: round(pct * len(groups))])
    sizes = [
        sum(module.get_parameter(name).numel() for name in group.parameters) for group in groups
    ]
    wanted, count = pct * sum(sizes), 0
    while sum(sizes[:count]) < wanted:
        count += 1
    return tuple(groups[:count])


def match_groups(module: nn.Module, groups: Sequence[Group], patterns: object) -> tuple[Group, ...]:
    """`groups` with those parameters alone whose names one of `patterns` is found in (`re.search`).

    A group of which only a part is left is called name(part). InputError for a pattern that is found in no name.
    """
    names, found = [name for group in groups for name in group.parameters], set()
    for pattern in check_patterns(patterns):
        matching = {name for name in names if re.search(pattern, name)}
        if not matching:
            some = ", ".join(
                dict.fromkeys(group.parameters[0] for group in groups if group.parameters)
            )
            raise InputError(
                f"model.train={pattern!r} is refused: it must be found in the name of a parameter outside the head. "
                f"Some of the {len(names)} names: {some}."
            )
        found |= matching
    chosen = []
    for group in groups:
        own = tuple(name for name in group.parameters if name in found)
        if own:
            chosen.append(group if own == group.parameters else Group(f"{group.name}(part)", own))
    return tuple(chosen)


def unfreeze(module: nn.Module, groups: Iterable[Group], head: str) -> None:
    """Let exactly the head and `groups` train."""
    training = {name for group in groups for name in group.parameters}
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in training or name.startswith(f"{head}."))


@contextmanager
def preserve_freezing(module: nn.Module) -> Iterator[None]:
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


def tabulate_groups(
    module: nn.Module,
    groups: Sequence[Group],
    unit: str | None = "groups",
    fractions: Iterable[float] = (0, 0.25, 0.5, 0.75, 1.0),
    direction: str = "top",
    train: object = None,
) -> str:
    """A Markdown table: of each fraction the groups that train and how many parameters they have.

    One row, with the share of the groups that train, where `direction` or `train` names what does.
    """
    check_choice(check_direction(direction), train)
    named = None
    if train is not None:
        named = match_groups(module, groups, train)
    elif BLOCK.fullmatch(direction):
        named = select_groups(module, groups, None, direction=direction)
    rows = [
        "| `pct_unfreeze` | groups that train, besides the head | parameters |",
        "|---|---|---|",
    ]
    for pct in fractions if named is None else [group_share(named, groups)]:
        chosen = named if named is not None else select_groups(module, groups, pct, unit, direction)
        size = sum(
            module.get_parameter(name).numel() for group in chosen for name in group.parameters
        )
        rows.append(
            f"| {pct:g} | {', '.join(group.name for group in chosen) or 'none'} | {size:,} |"
        )
    return "\n".join(rows)


def group_share(trained: Sequence[Group], groups: Sequence[Group]) -> float:
    """The share of a backbone's groups that train at least in part, to four digits."""
    return round(len(trained) / max(len(groups), 1), 4)
