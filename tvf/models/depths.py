"""The depths of a backbone: the pooled outputs of its groups, and what its head reads."""

from collections.abc import Sequence

from torch import nn

from tvf.models.groups import Group, is_below

HEAD_INPUT = "input of the head"


def output_layers(module: nn.Module, group: Group) -> list[nn.Module]:
    """The largest layers all of whose parameters are in `group`; the last to run is its output."""
    names, found = set(group.parameters), {}
    for path, layer in module.named_modules():
        own = {name for name, _ in layer.named_parameters(prefix=path)}
        if own and own <= names and not is_below(path, found):
            found[path] = layer
    return [*found.values()]


def pooled_axes(shape: Sequence[int]) -> tuple[int, ...] | None:
    """The axes of a layer's output over space or tokens; None if it is no map, tokens or vector.

    Maps are [N, width, H, W], or [N, H, W, width] where H = W and width differs; tokens are
    [N, tokens, width], vectors [N, width].
    """
    if len(shape) == 4:
        _, a, b, c = shape
        return (1, 2) if a == b != c else (2, 3)
    return {2: (), 3: (1,)}.get(len(shape))
