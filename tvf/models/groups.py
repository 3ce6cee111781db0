"""Which part of a backbone trains: its layers in groups, deepest first, and a selection of them.

A selection is a fraction of the groups from either end, groups by name, or parameters by name.
"""

import difflib
import math
import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from tvf.errors import InputError, require_choice

UNITS = ("groups", "params")
DIRECTIONS = ("top", "bottom")


@dataclass(frozen=True)
class Group:
    """Layers that freeze and train together: a display name, and full parameter names."""

    name: str
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class Selection:
    """What trains besides the head: `train` if given, else `groups` if given, else a fraction.

    `pct_unfreeze` is the fraction, `unit` what it counts ("groups" or "params"), `direction` the
    end that it counts from: "top" is next to the head, "bottom" next to the pixels. `groups` are
    group names; `train` is one or more regular expressions that match parameter names.
    """

    pct_unfreeze: float | None = None
    unit: str | None = "groups"
    direction: str = "top"
    groups: Sequence[str] | None = None
    train: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        check_direction(self.direction)
        check_selection(self.direction, self.groups, self.train)

    @property
    def is_named(self) -> bool:
        """Whether names, not a fraction, select what trains."""
        return self.groups is not None or self.train is not None


def select_layers(
    module: nn.Module, groups: Sequence[Group], selection: Selection
) -> tuple[Group, ...]:
    """The groups of a backbone that a selection trains, in the order of `groups`, deepest first.

    Raises InputError for names that the backbone does not have.
    """
    if selection.train is not None:
        return match_groups(module, groups, selection.train)
    if selection.groups is not None:
        return pick_groups(groups, selection.groups)
    fraction = check_fraction(selection.pct_unfreeze)
    return select_groups(module, groups, fraction, selection.unit, selection.direction)


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
    """Return `value` if it is "top" or "bottom", else raise InputError."""
    if value not in DIRECTIONS:
        raise InputError(
            f"model.direction={value!r} must be top (the deepest groups) or bottom (those next to "
            "the pixels). To train single groups, name them: model.groups=[layer3]."
        )
    return str(value)


def check_group_names(value: object) -> list[str]:
    """Return `value` as a list of group names; InputError unless it is one, without repeats."""
    names: list[Any] = (
        [*value] if isinstance(value, Sequence) and not isinstance(value, str) else []
    )
    if not names or not all(isinstance(name, str) and name for name in names):
        raise InputError(
            f"model.groups={value!r} must be a list of group names, such as [layer3]; tvf groups "
            "shows them. null trains a fraction of the groups."
        )
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(
            f"model.groups={names} must name each group once, but repeats {repeated[0]}."
        )
    return names


def check_patterns(value: object) -> list[str]:
    """Return `value`, a regular expression or several, as a list; InputError if one is invalid."""
    patterns: list[Any] = [*value] if isinstance(value, list | tuple) else [value]
    if not patterns:
        raise InputError(
            "model.train=[] must name what trains; null trains a fraction of the groups."
        )
    for pattern in patterns:
        if not isinstance(pattern, str) or not pattern:
            raise InputError(
                f"model.train={pattern!r} must be a regular expression for parameter names, such "
                "as 'bn'."
            )
        try:
            re.compile(pattern)
        except re.error as error:
            raise InputError(
                f"model.train={pattern!r} is not a valid regular expression ({error}): escape "
                "special characters with \\."
            ) from error
    return patterns


def check_selection(direction: str, groups: object, train: object) -> None:
    """Raise InputError if more than one of them selects what trains."""
    given = {
        "direction": direction if direction != "top" else None,
        "groups": groups,
        "train": train,
    }
    named = [f"model.{key}={value}" for key, value in given.items() if value is not None]
    if len(named) > 1:
        raise InputError(
            f"{' and '.join(named)} cannot be combined: each selects what trains, so choose one."
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


def check_groups(module: nn.Module, groups: Iterable[Group], *heads: str) -> None:
    """Check that the groups partition the parameters outside the head, the layers `heads`.

    Raises InputError that names missing, repeated and unknown parameters.
    """
    listed = [name for group in groups for name in group.parameters]
    expected = {name for name, _ in module.named_parameters() if not is_below(name, heads)}
    unknown = "are in a group, but in the head or not in the backbone"
    repeated = {name for name, count in Counter(listed).items() if count > 1}
    for names, trouble in (
        (expected - {*listed}, "belong to no group"),
        ({*listed} - expected, unknown),
        (repeated, "are in more than one group"),
    ):
        if names:
            shown = ", ".join(sorted(names)[:5])
            raise InputError(
                f"backbone groups: these parameters {trouble}: {shown} ({len(names)} in all)."
            )


def select_groups(
    module: nn.Module,
    groups: Sequence[Group],
    pct: float,
    unit: str | None = "groups",
    direction: str = "top",
) -> tuple[Group, ...]:
    """The groups that a fraction trains, in the order of `groups`, deepest first.

    direction "top": the first of `groups`; "bottom": the same number from the end.
    unit "groups": `round(pct * len(groups))` of them, Python's round (half to even).
    unit "params": the fewest that hold at least `pct` of the backbone's parameters.
    """
    pct = check_fraction(pct)
    require_choice("model.unit", unit, UNITS)
    if check_direction(direction) == "bottom":
        return select_groups(module, groups[::-1], pct, unit)[::-1]
    if unit == "groups":
        return tuple(groups[: round(pct * len(groups))])
    sizes = [size_of_group(module, group) for group in groups]
    wanted, count = pct * sum(sizes), 0
    while sum(sizes[:count]) < wanted:
        count += 1
    return tuple(groups[:count])


def pick_groups(groups: Sequence[Group], names: object) -> tuple[Group, ...]:
    """The groups with these names, in the order of `groups`, whatever the order of the names.

    Surgical fine-tuning (Lee et al. 2023) trains a single group. InputError for an unknown name.
    """
    wanted, known = check_group_names(names), [group.name for group in groups]
    for name in wanted:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise InputError(
                f"model.groups={wanted}: this backbone has no group {name}.{hint} Its groups are "
                f"{', '.join(known)}."
            )
    return tuple(group for group in groups if group.name in wanted)


def match_groups(module: nn.Module, groups: Sequence[Group], patterns: object) -> tuple[Group, ...]:
    """`groups` reduced to the parameters whose names match one of `patterns` (`re.search`).

    A group reduced this way is called name(part). Raises InputError for a pattern without a match.
    """
    names, matched = [name for group in groups for name in group.parameters], set()
    for pattern in check_patterns(patterns):
        matching = {name for name in names if re.search(pattern, name)}
        if not matching:
            first = [group.parameters[0] for group in groups if group.parameters]
            raise InputError(
                f"model.train={pattern!r} must match the name of a parameter outside the head. "
                f"Some of the {len(names)} names: {', '.join(dict.fromkeys(first))}."
            )
        matched |= matching
    chosen = []
    for group in groups:
        own = tuple(name for name in group.parameters if name in matched)
        if own:
            chosen.append(group if own == group.parameters else Group(f"{group.name}(part)", own))
    return tuple(chosen)


def keep_parameters(groups: Iterable[Group], names: Container[str]) -> tuple[Group, ...]:
    """`groups` reduced to the parameters in `names`, without groups that have none of them."""
    reduced = (Group(g.name, tuple(n for n in g.parameters if n in names)) for g in groups)
    return tuple(group for group in reduced if group.parameters)


def unfreeze(module: nn.Module, groups: Iterable[Group], *heads: str) -> None:
    """Unfreeze the head, the layers `heads`, and `groups`, and freeze everything else."""
    training = {name for group in groups for name in group.parameters}
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in training or is_below(name, heads))


def is_below(name: str, layers: Iterable[str]) -> bool:
    """Whether a parameter or layer `name` is in one of `layers`, given by their paths."""
    return name.startswith(tuple(f"{layer}." for layer in layers))


@contextmanager
def preserve_freezing(module: nn.Module) -> Iterator[None]:
    """Restore what is frozen, and every layer's mode, when the context ends."""
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
    selection: Selection,
    fractions: Iterable[float] = (0, 0.25, 0.5, 0.75, 1.0),
    sizes: Callable[[Sequence[Group]], dict[str, int]] | None = None,
    counted: str = "parameters",
) -> str:
    """A Markdown table: for each fraction the groups that train, and how many parameters they have.

    A selection by name gives a single row, with the share of the groups that train. `sizes` maps
    the groups that are selected to how many parameters train in each, by default all; `counted` is
    the heading of that column.
    """
    sizes = sizes or (lambda chosen: {group.name: size_of_group(module, group) for group in chosen})
    if selection.is_named:
        named = select_layers(module, groups, selection)
        chosen = [(group_share(named, groups), named)]
    else:
        unit, direction = selection.unit, selection.direction
        chosen = [(f, select_groups(module, groups, f, unit, direction)) for f in fractions]
    rows = [
        f"| `pct_unfreeze` | groups that train, besides the head | {counted} |",
        "|---|---|---|",
    ]
    for fraction, trained in chosen:
        by_name = sizes(trained)
        names = ", ".join(by_name) or "none"
        rows.append(f"| {fraction:g} | {names} | {sum(by_name.values()):,} |")
    return "\n".join(rows)


def group_share(trained: Sequence[Group], groups: Sequence[Group]) -> float:
    """The share of a backbone's groups that train at least in part, to four digits."""
    return round(len(trained) / max(len(groups), 1), 4)


def size_of_group(module: nn.Module, group: Group) -> int:
    """The number of values in the parameters of a group."""
    return sum(module.get_parameter(name).numel() for name in group.parameters)
