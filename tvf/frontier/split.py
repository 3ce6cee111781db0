"""The frontier: where a network's graph is cut into prefix (frozen, deterministic) and suffix.

torch.fx traces the network once. Parameters and BatchNorm modes tell which nodes are frozen, so one
trace can be cut for every freezing pattern. A cut is identified by digests of everything that
determines its values, so a deeper cut can continue from a shallower one of any other job.
"""

import hashlib
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from tvf.frontier.digests import NodeDigests, dependents_of
from tvf.frontier.known import known_of
from tvf.frontier.trace import (
    NodeInfo,
    TensorInfo,
    TraceError,
    follows_batch_size,
    observe_nodes,
    preserve_state,
    rebuild_shape,
    trace_graph,
)
from tvf.models import adapter_parameters, has_state


@dataclass(frozen=True)
class TensorLayout:
    """One tensor on a cut: its shape without the batch, dtype, and whether it is channels_last."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    channels_last: bool


@dataclass(frozen=True)
class Cut:
    """The nodes whose values leave the prefix, in graph order, and what they are computed from.

    Nodes with equal `digests` compute equal tensors from equal pixels. `depth` counts the nodes
    that compute them, `weights` the parameters of these nodes; a cut without weights is not worth
    storing.
    """

    nodes: tuple[fx.Node, ...]
    layouts: tuple[TensorLayout, ...]
    digests: tuple[str, ...]
    depth: int
    weights: int

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the whole cut."""
        return hashlib.blake2b(" ".join(self.digests).encode(), digest_size=16).hexdigest()


class TracedModel:
    """The graph of `model` in its current mode, and what each node does with images like `example`.

    `example` is a batch of at least three samples. Weights, statistics and torch's random state do
    not change. `network` is what identifies it, if that is known: what other traces have found out
    about the same network is not found out again. Under mixed precision, construct it within the
    autocast of the network. Raises TraceError.
    """

    def __init__(self, model: nn.Module, example: Tensor, network: str | None = None) -> None:
        self.model, self.training = model, model.training
        self.graph = trace_graph(model)
        self._modules: dict[Any, nn.Module] = dict(model.named_modules())
        (self.pixels,) = [node for node in self.graph.nodes if node.op == "placeholder"][:1]
        self.known = known_of(network, model, example)
        self._info = self._observe(example)
        self._check_updates()
        self._digests = NodeDigests(model, self.graph, self.known.digests)

    def find_cut(self) -> Cut:
        """Return the frontier for what is frozen now; call `model.train()` first.

        A node is in the prefix if its inputs are, none of its parameters trains, it draws no random
        numbers, and no BatchNorm layer in it uses or updates batch statistics in training. Raises
        TraceError.
        """
        frozen = self._frozen_nodes()
        depends_on_pixels = dependents_of(self.graph, {self.pixels})
        while True:
            prefix = frozen & depends_on_pixels
            leaving = [
                node
                for node in self.graph.nodes
                if node in prefix and any(user not in prefix for user in node.users)
            ]
            tensors = [node for node in leaving if not self._is_shape(node)]
            without_rows = {node for node in tensors if self._layout(node) is None}
            if not without_rows:
                break
            # A tensor without one row per sample cannot be stored: the suffix computes it.
            frozen -= dependents_of(self.graph, without_rows)
        if not tensors:
            raise TraceError("its output depends on no trainable weights")
        return self._make_cut(tensors, tuple(map(self._digests.of, tensors)))

    def extract(self, start: Cut | None, end: Cut | None) -> fx.GraphModule | None:
        """Return the module from `start` (None: pixels) to `end` (None: logits).

        It shares the model's layers, takes one tensor per node of `start`, and returns a tuple of
        one tensor per node of `end`, or the logits. Returns None if `end` cannot be computed from
        `start` alone.
        """
        sources = {self.pixels} if start is None else set(start.nodes)
        ends = [self._output()] if end is None else list(end.nodes)
        if self._nodes_between(sources, ends, frozenset({self.pixels}) - sources) is None:
            return None
        return self._build(start, end)

    def continues(self, start: Cut, end: Cut) -> bool:
        """Whether `end` is deeper than `start` and can be computed from it.

        Depth makes this the same order in all jobs, so they cannot deadlock: a process only ever
        waits for a shallower cut.
        """
        if start.depth >= end.depth:
            return False
        sources = set(start.nodes)
        blocked = frozenset({self.pixels}) - sources
        return self._nodes_between(sources, end.nodes, blocked) is not None

    def locate(self, digests: Sequence[str], within: Cut) -> Cut | None:
        """Return the cut with these digests among the nodes before `within`, or None."""
        before = self._ancestors(within.nodes)
        found = {
            self._digests.of(node): node
            for node in self.graph.nodes
            if node in before and self._layout(node)
        }
        if not set(digests) <= found.keys():
            return None
        nodes = [found[digest] for digest in digests]
        return self._make_cut(nodes, tuple(digests))

    def check(self, cut: Cut, example: Tensor) -> None:
        """Raise TraceError unless prefix and suffix reproduce the full network on `example`.

        Also checks that the prefix computes a sample independently of the others in its batch.
        `example` has at least three samples.
        """
        if cut.fingerprint in self.known.checked:
            return
        prefix, suffix = self.extract(None, cut), self.extract(cut, None)
        assert prefix is not None and suffix is not None
        with preserve_state(self.model), torch.no_grad():
            self.model.train(self.training)
            torch.manual_seed(0)
            logits = self.model(example[:3].clone())
            activations = [tensor.clone() for tensor in prefix(example[:3].clone())]
            others = prefix(example[[0, 2]].clone())
            if not all(_is_close(a[0], b[0]) for a, b in zip(activations, others, strict=True)):
                raise TraceError("its frozen layers mix the samples of a batch")
            torch.manual_seed(0)
            if not _is_close(logits, suffix(*activations)):
                raise TraceError("its prefix and suffix do not reproduce the full network")
        self.known.checked.add(cut.fingerprint)
        self._digests.note(self.known.digests)
        self.known.keep()

    def _observe(self, example: Tensor) -> dict[fx.Node, NodeInfo]:
        """What each node does, unless that is known."""
        if len(self.known.infos) != len(self.graph.nodes):
            self.known.infos = [*observe_nodes(self.model, self.graph, example).values()]
        return dict(zip(self.graph.nodes, self.known.infos, strict=True))

    def _make_cut(self, nodes: Sequence[fx.Node], digests: tuple[str, ...]) -> Cut:
        layouts = tuple(layout for node in nodes if (layout := self._layout(node)))
        before = self._ancestors(nodes)
        weights = sum(p.numel() for p in {p for node in before for p in self._parameters(node)})
        return Cut(tuple(nodes), layouts, digests, len(before), weights)

    def _frozen_nodes(self) -> set[fx.Node]:
        frozen: set[fx.Node] = set()
        for node in self.graph.nodes:
            if self._is_fixed(node) and all(source in frozen for source in node.all_input_nodes):
                frozen.add(node)
        return frozen

    def _is_fixed(self, node: fx.Node) -> bool:
        """Whether the node, apart from its inputs, is frozen and deterministic per sample."""
        info = self._info[node]
        if info.random or info.mixes or node.op == "output":
            return False
        if any(p.requires_grad for p in self._parameters(node)):
            return False
        layers = self._modules[node.target].modules() if node.op == "call_module" else ()
        return not any(has_state(layer) and layer.training for layer in layers)

    def _check_updates(self) -> None:
        """Raise TraceError if a node updates the network's state and only a full pass runs it."""
        needed = self._ancestors([self._output()])
        for node in self.graph.nodes:
            if self._info[node].updates and node not in needed:
                raise TraceError(f"its code updates a buffer in place ({node.name})")

    def _ancestors(self, nodes: Iterable[fx.Node]) -> set[fx.Node]:
        """Return the nodes that compute `nodes` from pixels, including themselves."""
        return self._nodes_between({self.pixels}, nodes, frozenset()) or set()

    def _nodes_between(
        self, sources: set[fx.Node], ends: Iterable[fx.Node], blocked: frozenset[fx.Node]
    ) -> set[fx.Node] | None:
        """Return the nodes that compute `ends` from `sources`; None if that takes a `blocked` node.

        Shapes are known, so they need no inputs.
        """
        needed: set[fx.Node] = set()
        waiting = list(ends)
        while waiting:
            node = waiting.pop()
            if node in needed or node in sources:
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
        needed = self._nodes_between(set(sources), ends, frozenset()) or set()
        graph = fx.Graph()
        copies: dict[fx.Node, Any] = {node: graph.placeholder(node.name) for node in sources}
        for node in self.graph.nodes:
            if node not in needed or node.op == "output":
                continue
            if self._is_shape(node):
                copies[node] = rebuild_shape(graph, copies[sources[0]], self._info[node])
            else:
                copies[node] = graph.node_copy(node, lambda n: copies[n])
        if end is None:
            graph.output(fx.map_arg(self._output().args[0], lambda n: copies[n]))
        else:
            graph.output(tuple(copies[node] for node in end.nodes))
        return fx.GraphModule(self.model, graph)

    def _output(self) -> fx.Node:
        return next(node for node in reversed(self.graph.nodes) if node.op == "output")

    def _parameters(self, node: fx.Node) -> Iterator[nn.Parameter]:
        if node.op == "call_module":
            yield from self._modules[node.target].parameters()
            yield from adapter_parameters(self._modules[node.target])
        elif node.op == "get_attr":
            value = operator.attrgetter(str(node.target))(self.model)
            if isinstance(value, nn.Parameter):
                yield value

    def _is_shape(self, node: fx.Node) -> bool:
        """Whether the node's value consists of numbers that depend only on the batch size."""
        computed = node.op not in ("placeholder", "output", "get_attr") and node.target not in (
            "item",
            "tolist",
        )
        info = self._info[node]
        return computed and follows_batch_size(info.two, info.three)

    def _layout(self, node: fx.Node) -> TensorLayout | None:
        """Return the layout of the value; None unless it is a tensor with one row per sample."""
        two, three = self._info[node].two, self._info[node].three
        if not isinstance(two, TensorInfo) or two.shape[:1] != (2,) or three.shape[:1] != (3,):
            return None
        if two.shape[1:] != three.shape[1:]:
            return None
        return TensorLayout(two.shape[1:], two.dtype, two.channels_last)


def _is_close(a: Tensor, b: Tensor) -> bool:
    tolerance = 1e-4 if a.dtype == torch.float32 else 5e-2
    bound = tolerance * a.abs().max().clamp(min=1e-6)
    return a.shape == b.shape and bool((a - b).abs().max() <= bound)
