"""The frontier: a network's graph, cut between what is frozen and deterministic (the prefix) and the rest (the suffix).

torch.fx traces the network once; which nodes are frozen is read off its parameters and BatchNorm modes, so the same
trace is cut anew for each freezing pattern. A cut is named by a digest of all that determines the values on it, so a
deeper cut recognises a shallower one, in whichever job that was made, and can go on from there.
"""

import hashlib
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tvf.frontier.trace import (
    TensorInfo,
    TraceError,
    follows,
    observe_nodes,
    preserve_state,
    shape_again,
    trace_graph,
)
from tvf.store import FingerprintError, fingerprint


@dataclass(frozen=True)
class TensorLayout:
    """One tensor on a cut, for one sample: shape without the batch, dtype, and whether it lies as channels_last."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    channels_last: bool


@dataclass(frozen=True)
class Cut:
    """The nodes whose values leave the prefix, in the graph's order, and how much lies before them.

    `digests` name the values: equal digests, equal tensors for equal pixels. `depth` counts the nodes that they are
    computed by and `weights` the parameters in these; a cut without any weights is not worth storing.
    """

    nodes: tuple[fx.Node, ...]
    layouts: tuple[TensorLayout, ...]
    digests: tuple[str, ...]
    depth: int
    weights: int

    @cached_property
    def key(self) -> str:
        """One digest for the whole cut."""
        return hashlib.blake2b(" ".join(self.digests).encode(), digest_size=16).hexdigest()


class TracedModel:
    """The graph of `model` in its present mode (training or not), and what each node does with images like `example`.

    `example` is a batch of at least three samples. Raises Untraceable. Neither weights, statistics nor torch's random
    state are changed. Under mixed precision, make it within the autocast that the network runs under.
    """

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        self.model, self.training = model, model.training
        self.graph = trace_graph(model)
        self._modules: dict[Any, nn.Module] = dict(model.named_modules())
        (self.pixels,) = [node for node in self.graph.nodes if node.op == "placeholder"][:1]
        self._seen = observe_nodes(model, self.graph, example)
        self._digests: dict[fx.Node, str] = {}

    def find_cut(self) -> Cut:
        """The frontier for what is frozen now; the model must have been put into training mode.

        A node is in the prefix if its inputs are, none of its parameters trains, it draws no random numbers, and no
        BatchNorm layer in it uses or updates batch statistics in training.
        """
        frozen = self._frozen()
        depends = self._depending({self.pixels})
        while True:
            prefix = frozen & depends
            used = [
                node
                for node in self.graph.nodes
                if node in prefix and any(user not in prefix for user in node.users)
            ]
            tensors = [node for node in used if not self._is_shape(node)]
            odd = {node for node in tensors if self._layout(node) is None}
            if not odd:
                break
            # What has no row for each sample cannot be kept by sample: it is computed in the suffix instead.
            frozen -= self._depending(odd)
        if not tensors:
            raise TraceError("nothing in it depends on trained weights")
        layouts = tuple(layout for node in tensors if (layout := self._layout(node)))
        weights = sum(p.numel() for p in {p for node in prefix for p in self._parameters(node)})
        return Cut(
            tuple(tensors),
            layouts,
            tuple(map(self._digest, tensors)),
            self._depth(tensors),
            weights,
        )

    def extract(self, start: Cut | None, end: Cut | None) -> fx.GraphModule | None:
        """The part from `start` (None: pixels) to `end` (None: logits), as a module that shares the model's layers.

        It takes one tensor for each node of `start` and returns a tuple for `end`, or the logits. None where `end`
        cannot be computed from `start` alone.
        """
        begins = {self.pixels} if start is None else set(start.nodes)
        ends = [self._output()] if end is None else list(end.nodes)
        if self._needed(ends, begins, frozenset({self.pixels}) - begins) is None:
            return None
        return self._build(start, end)

    def continues(self, start: Cut, end: Cut) -> bool:
        """Whether `end` lies deeper than `start` and can be computed from it.

        Depth makes this an order that all jobs share: whoever waits for another process waits for a shallower cut.
        """
        blocked = frozenset({self.pixels}) - set(start.nodes)
        return (
            start.depth < end.depth
            and self._needed(end.nodes, set(start.nodes), blocked) is not None
        )

    def locate(self, digests: Sequence[str], within: Cut) -> Cut | None:
        """The cut with these digests among the nodes before `within`; None if it is not there."""
        before = self._needed(within.nodes, {self.pixels}, frozenset()) or set()
        found = {
            self._digest(node): node
            for node in self.graph.nodes
            if node in before and self._layout(node)
        }
        if not set(digests) <= found.keys():
            return None
        nodes = [found[digest] for digest in digests]
        inside = self._needed(nodes, {self.pixels}, frozenset()) or set()
        weights = sum(p.numel() for p in {p for node in inside for p in self._parameters(node)})
        layouts = tuple(layout for node in nodes if (layout := self._layout(node)))
        return Cut(tuple(nodes), layouts, tuple(digests), self._depth(nodes), weights)

    def check(self, cut: Cut, example: Tensor) -> None:
        """Compare the parts with the whole on `example`, at least three samples; Untraceable if they differ.

        Also that what the prefix makes of a sample does not depend on the others in its batch.
        """
        prefix, suffix = self.extract(None, cut), self.extract(cut, None)
        assert prefix is not None and suffix is not None
        with preserve_state(self.model), torch.no_grad():
            self.model.train(self.training)
            torch.manual_seed(0)
            whole = self.model(example[:3].clone())
            activations = [tensor.clone() for tensor in prefix(example[:3].clone())]
            others = prefix(example[[0, 2]].clone())
            if not all(
                _near(one[0], other[0]) for one, other in zip(activations, others, strict=True)
            ):
                raise TraceError("its frozen part mixes the samples of a batch")
            torch.manual_seed(0)
            if not _near(whole, suffix(*activations)):
                raise TraceError("its parts compute something else than the whole")

    def _frozen(self) -> set[fx.Node]:
        frozen: set[fx.Node] = set()
        for node in self.graph.nodes:
            seen = self._seen[node]
            fixed = not (seen.random or seen.mixes) and node.op != "output"
            fixed = fixed and not any(p.requires_grad for p in self._parameters(node))
            if fixed and node.op == "call_module":
                inside = self._modules[node.target].modules()
                fixed = not any(
                    isinstance(layer, _BatchNorm) and layer.training for layer in inside
                )
            if fixed and all(each in frozen for each in node.all_input_nodes):
                frozen.add(node)
        return frozen

    def _depending(self, sources: set[fx.Node]) -> set[fx.Node]:
        depending = set(sources)
        for node in self.graph.nodes:
            if any(each in depending for each in node.all_input_nodes):
                depending.add(node)
        return depending

    def _needed(
        self, ends: Iterable[fx.Node], begins: set[fx.Node], blocked: frozenset[fx.Node]
    ) -> set[fx.Node] | None:
        """All nodes between; None if one of `blocked` is among them. Shapes are known, so they need nothing."""
        needed: set[fx.Node] = set()
        waiting = list(ends)
        while waiting:
            node = waiting.pop()
            if node in needed or node in begins:
                continue
            if node in blocked:
                return None
            needed.add(node)
            if not self._is_shape(node):
                waiting += node.all_input_nodes
        return needed

    def _build(self, start: Cut | None, end: Cut | None) -> fx.GraphModule:
        sources = (self.pixels,) if start is None else start.nodes
        ends = [self._output()] if end is None else list(end.nodes)
        needed = self._needed(ends, set(sources), frozenset()) or set()
        graph = fx.Graph()
        made: dict[fx.Node, Any] = {}
        for node in sources:
            made[node] = graph.placeholder(node.name)
        first = made[sources[0]]
        for node in self.graph.nodes:
            if node not in needed or node.op == "output":
                continue
            if self._is_shape(node):
                made[node] = shape_again(graph, first, self._seen[node])
            else:
                made[node] = graph.node_copy(node, lambda n: made[n])
        if end is None:
            graph.output(fx.map_arg(self._output().args[0], lambda n: made[n]))
        else:
            graph.output(tuple(made[node] for node in end.nodes))
        return fx.GraphModule(self.model, graph)

    def _depth(self, nodes: Sequence[fx.Node]) -> int:
        """How many nodes it takes to compute these from pixels."""
        return len(self._needed(nodes, {self.pixels}, frozenset()) or ())

    def _output(self) -> fx.Node:
        return next(node for node in reversed(self.graph.nodes) if node.op == "output")

    def _parameters(self, node: fx.Node) -> Iterator[nn.Parameter]:
        if node.op == "call_module":
            yield from self._modules[node.target].parameters()
        elif node.op == "get_attr":
            value = operator.attrgetter(str(node.target))(self.model)
            if isinstance(value, nn.Parameter):
                yield value

    def _is_shape(self, node: fx.Node) -> bool:
        """Whether the node gives numbers that follow from the batch size alone."""
        computed = node.op not in ("placeholder", "output", "get_attr") and node.target not in (
            "item",
            "tolist",
        )
        return computed and follows(self._seen[node].two, self._seen[node].three)

    def _layout(self, node: fx.Node) -> TensorLayout | None:
        two, three = self._seen[node].two, self._seen[node].three
        if not isinstance(two, TensorInfo) or two.shape[:1] != (2,) or three.shape[:1] != (3,):
            return None
        return (
            TensorLayout(two.shape[1:], two.dtype, two.channels_last)
            if two.shape[1:] == three.shape[1:]
            else None
        )

    def _digest(self, node: fx.Node) -> str:
        """Of the node's operation, all weights in it, and the digests of its inputs."""
        for (
            each
        ) in self.graph.nodes:  # in the graph's order, so inputs come first and nothing recurses
            if node in self._digests:
                break
            if each not in self._digests and each.op != "output":
                try:
                    self._digests[each] = self._digest_one(each)
                except (FingerprintError, KeyError):
                    continue  # nothing that depends on it has a name either
        if node not in self._digests:
            raise TraceError(f"what {node.name} computes has no content key")
        return self._digests[node]

    def _digest_one(self, node: fx.Node) -> str:
        target: Any = node.target
        if node.op == "call_module":
            target = self._modules[node.target]
        elif node.op == "get_attr":
            target = operator.attrgetter(str(node.target))(self.model)
        elif node.op == "placeholder":
            target = "pixels"
        named: Any = lambda n: _Named(self._digests[n])  # noqa: E731
        arguments = fx.map_arg((node.args, node.kwargs), named)
        return fingerprint([node.op, self.training, target, arguments])


@dataclass(frozen=True)
class _Named:
    digest: str


def _near(one: Tensor, other: Tensor) -> bool:
    tolerance = 1e-4 if one.dtype == torch.float32 else 5e-2
    return one.shape == other.shape and bool(
        (one - other).abs().max() <= tolerance * one.abs().max().clamp(min=1e-6)
    )
