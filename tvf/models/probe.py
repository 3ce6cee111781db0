"""A linear probe of all depths: one head on the pooled outputs of all groups, side by side.

After Head2Toe (Evci, Dumoulin, Larochelle and Mozer 2022), without their selection of features.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from tvf.errors import InputError
from tvf.models.backbones import Backbone, run_black_images
from tvf.models.depths import HEAD_INPUT, output_layers, pooled_axes
from tvf.models.finetune import FineTuneModel
from tvf.models.groups import preserve_freezing
from tvf.models.tracing import Calls, TraceError, trace_graph

USUAL_SIZE = 224  # pixels per side, for networks that do not say


class ProbeModel(FineTuneModel):
    """A frozen backbone with one linear head on the pooled outputs of all of its groups.

    Beside them the head reads what the backbone's own head would. `image_size` (pixels per side) is
    that of images to trace the network with, by default the size that it is made for. `frozen_bn`
    must be "eval": the backbone is only evaluated. Raises InputError if torch.fx cannot trace it.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        image_size: int | None = None,
        frozen_bn: str = "eval",
        head_dropout: float = 0.0,
    ) -> None:
        check_probe(frozen_bn)
        super().__init__(backbone, 0.0, frozen_bn=frozen_bn, head_dropout=head_dropout)
        self.module = JoinedNetwork(backbone, image_size or backbone.image_size or USUAL_SIZE)
        self.head = "head"
        self.heads = ("head",)
        self.head_is_new = True  # and no weights of another job's
        self.unfreeze()

    def train(self, mode: bool = True) -> "ProbeModel":
        """Like nn.Module.train, but the backbone stays in eval mode."""
        super().train(mode)
        self.module.backbone.eval()
        return self

    def load_plain_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load what `plain_state_dict` returns; RuntimeError unless names and shapes match."""
        super().load_plain_state_dict(state)
        self.head_is_new = False

    def what_trains(self) -> str:
        """What the head reads."""
        return f"a linear probe of {', '.join(self.module.widths)}; "


class JoinedNetwork(nn.Module):
    """A backbone without its head, and a linear layer on its pooled outputs, joined.

    `widths` are the numbers of values that each depth gives the head, by name, shallowest first.
    Values are divided by the square root of it, so that depths of all widths learn equally fast.
    """

    def __init__(self, backbone: Backbone, image_size: int) -> None:
        super().__init__()
        logits = run_black_images(backbone, image_size, 1)
        depths = _find_depths(backbone, torch.zeros(1, 3, image_size, image_size))
        self.backbone = _ending_at(backbone.module, [depth.node for depth in depths])
        self.axes = tuple(depth.axes for depth in depths)
        self.widths = {depth.name: depth.width for depth in depths}
        self.head = nn.Linear(sum(self.widths.values()), logits.shape[1])

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, classes] of normalised images [N, 3, H, W]."""
        pooled = [
            (output.float().mean(axes) if axes else output.float()) * width**-0.5
            for output, axes, width in zip(
                self.backbone(images), self.axes, self.widths.values(), strict=True
            )
        ]
        return self.head(torch.cat(pooled, 1))


def check_probe(frozen_bn: object) -> None:
    """Raise InputError if the options do not suit a probe."""
    if frozen_bn == "batch":
        raise InputError(
            "model.frozen_bn=batch must be eval or recalibrate with model=probe, whose backbone is "
            "only evaluated."
        )


@dataclass(frozen=True)
class _Depth:
    """A node of the backbone's graph, the axes to average its output over, and what is left."""

    name: str
    node: fx.Node
    axes: tuple[int, ...]
    width: int


def _find_depths(backbone: Backbone, example: Tensor) -> list[_Depth]:
    """The outputs of all groups, shallowest first, and last what the head reads.

    Leaves out groups whose layers are not called as modules, or whose output is no map, tokens or
    vector. The output of the deepest group is also left out where the head reads as many values:
    they are the same, or nearly.
    """
    module = backbone.module
    with preserve_freezing(module):
        module.eval()
        try:
            calls: Calls = {}
            trace_graph(module, calls)
            nodes = dict(_watched(backbone, calls))
            with torch.no_grad():
                outputs = _ending_at(module, [*nodes.values()])(example) if nodes else ()
        except (TraceError, RuntimeError) as error:
            raise InputError(
                f"model=probe must be able to trace backbone {backbone.name} for the outputs of "
                f"its groups: {error}. Choose another backbone, or model=transfer."
            ) from error
    depths = []
    for (name, node), output in zip(nodes.items(), outputs, strict=True):
        suits = isinstance(output, Tensor) and output.is_floating_point()
        axes = pooled_axes(output.shape) if suits else None
        if axes is not None:
            width = output.float().mean(axes).shape[1] if axes else output.shape[1]
            depths.append(_Depth(name, node, axes, width))
    widths = {depth.name: depth.width for depth in depths}
    deepest = backbone.groups[0].name if backbone.groups else None
    if HEAD_INPUT in widths and widths.get(str(deepest)) == widths[HEAD_INPUT]:
        depths = [depth for depth in depths if depth.name != deepest]
    if not depths:
        raise InputError(
            f"model=probe must find outputs of groups in backbone {backbone.name}, none of whose "
            "layers returns maps, tokens or vectors. Choose another backbone, or model=transfer."
        )
    return depths


def _watched(backbone: Backbone, calls: Calls) -> Iterator[tuple[str, fx.Node]]:
    """The names and nodes of all depths, shallowest first."""
    places = {layer: place for place, layer in enumerate(calls)}
    found: dict[str, Any] = {}
    for group in backbone.groups[::-1]:
        called = [each for each in output_layers(backbone.module, group) if each in calls]
        if called:
            _, found[group.name] = calls[max(called, key=lambda layer: places[layer])]
    head = backbone.module.get_submodule(backbone.head)
    if head in calls and calls[head][0]:
        found[HEAD_INPUT] = calls[head][0][0]
    for name, value in found.items():
        value = value[0] if isinstance(value, tuple | list) and value else value
        if isinstance(value, fx.Proxy):
            yield name, value.node


def _ending_at(module: nn.Module, nodes: Sequence[fx.Node]) -> fx.GraphModule:
    """The part of a network that computes these nodes of its graph, in eval mode; same layers."""
    graph, copies = fx.Graph(), {}
    needed, waiting = set(), [*nodes]
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            waiting += node.all_input_nodes
    for node in nodes[0].graph.nodes:
        if node in needed or node.op == "placeholder":
            copies[node] = graph.node_copy(node, lambda other: copies[other])
    graph.output(tuple(copies[node] for node in nodes))
    return fx.GraphModule(module, graph).eval()
