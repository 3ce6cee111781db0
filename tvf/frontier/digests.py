"""Digests of the nodes of a graph: of all that determines their values.

Nodes with equal digests compute equal tensors from equal pixels, whichever job computes them.
"""

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from tvf.frontier.trace import TraceError
from tvf.models import is_below
from tvf.store import FingerprintError, fingerprint

# Layers that do not look at their mode, so that training and validation share their activations.
# Code outside of layers is traced in the mode that it runs in.
SAME_IN_BOTH_MODES = frozenset(
    {
        *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.Embedding, nn.Identity, nn.Flatten),
        *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish),
        *(nn.Sigmoid, nn.Tanh, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.Softmax, nn.Softplus),
        *(nn.LayerNorm, nn.GroupNorm, nn.ZeroPad2d, nn.Upsample, nn.PixelShuffle),
        *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
        *(nn.Sequential, nn.ModuleList, nn.ModuleDict),
    }
)


class NodeDigests:
    """The digests of the nodes of `graph`, which computes `model`.

    `known` are those that were found before, by the nodes' places in the graph.
    """

    def __init__(self, model: nn.Module, graph: fx.Graph, known: Mapping[int, str]) -> None:
        self._model, self._graph = model, graph
        self._modules: dict[Any, nn.Module] = dict(model.named_modules())
        nodes = [*graph.nodes]
        self._found = {nodes[place]: digest for place, digest in known.items()}

    def of(self, node: fx.Node) -> str:
        """Return a digest of the node's operation, its weights, and the digests of its inputs."""
        # In graph order inputs come first, so no recursion is needed.
        for other in self._graph.nodes:
            if node in self._found:
                break
            if other not in self._found and other.op != "output":
                try:
                    self._found[other] = self._from_inputs(other)
                except (FingerprintError, KeyError):
                    continue  # the nodes that depend on it have no digest either
        if node not in self._found:
            raise TraceError(f"the value of its node {node.name} cannot be fingerprinted")
        return self._found[node]

    def note(self, known: dict[int, str]) -> None:
        """Add the digests of nodes that do not depend on the head, whose weights differ."""
        heads = [f"module.{head}" for head in getattr(self._model, "heads", ())]
        named = {
            node: str(node.target) for node in self._graph.nodes if isinstance(node.target, str)
        }
        own = {node for node, name in named.items() if name in heads or is_below(name, heads)}
        of_head = dependents_of(self._graph, own)
        for place, node in enumerate(self._graph.nodes):
            if node in self._found and node not in of_head:
                known[place] = self._found[node]

    def _from_inputs(self, node: fx.Node) -> str:
        target: Any = node.target
        mode = None
        if node.op == "call_module":
            target = self._modules[node.target]
            mode = [layer.training for layer in target.modules() if _depends_on_mode(layer)]
        elif node.op == "get_attr":
            target = operator.attrgetter(str(node.target))(self._model)
        elif node.op == "placeholder":
            target = "pixels"
        digest_input: Any = lambda n: _Digest(self._found[n])  # noqa: E731
        arguments = fx.map_arg((node.args, node.kwargs), digest_input)
        return fingerprint([node.op, mode, target, arguments])


def dependents_of(graph: fx.Graph, sources: set[fx.Node]) -> set[fx.Node]:
    """Return `sources` and all nodes that depend on them."""
    dependents = set(sources)
    for node in graph.nodes:
        if any(source in dependents for source in node.all_input_nodes):
            dependents.add(node)
    return dependents


def _depends_on_mode(layer: nn.Module) -> bool:
    """Whether the layer may compute something else in training mode than in eval mode."""
    return type(layer) not in SAME_IN_BOTH_MODES


@dataclass(frozen=True)
class _Digest:
    """Stands for an input node among the arguments of a node."""

    value: str
