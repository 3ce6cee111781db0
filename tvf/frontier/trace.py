"""What torch.fx makes of a network, and what each node of the graph does when it runs."""

import operator
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode


class TraceError(ValueError):
    """The network cannot be cut; the message says why. It trains all the same, as a whole."""


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's shape, dtype, and whether it lies as channels_last."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    channels_last: bool


@dataclass(frozen=True)
class NodeInfo:
    """What a node gave for batches of two and of three samples, and what it did besides.

    `random`: it drew random numbers. `mixes`: what it gave for a sample depends on others, or it kept statistics.
    """

    two: Any
    three: Any
    random: bool
    mixes: bool


def trace_graph(model: nn.Module) -> fx.Graph:
    """The graph of `model` in its present mode, BatchNorm layers and what timm says cannot be traced as single nodes.

    Raises Untraceable.
    """
    try:
        return _Tracer(autowrap_functions=tuple(_timm_functions())).trace(model)
    except Exception as error:  # whatever the network's own code makes of symbolic values
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TraceError(f"torch.fx cannot trace it: {reason}") from error


def observe_nodes(model: nn.Module, graph: fx.Graph, example: Tensor) -> dict[fx.Node, NodeInfo]:
    """What each node does with two and with three samples of `example`. Raises Untraceable; changes nothing."""
    two, three = _Watcher(model, graph), _Watcher(model, graph)
    with preserve_state(model), torch.no_grad():
        try:
            two.run(example[:2].clone())
            three.run(example[:3].clone())
        except Exception as error:
            raise TraceError(f"its graph does not run: {error}") from error
    return {
        node: NodeInfo(
            two.values.get(node), three.values.get(node), node in two.random, node in two.mixes
        )
        for node in graph.nodes
    }


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # BatchNorm is never traced through: its mode is read off the layer, which changes with what is frozen.
        leaf = isinstance(m, (_BatchNorm, *_timm_modules()))
        return leaf or super().is_leaf_module(m, module_qualified_name)


def _timm_modules() -> Sequence[type[nn.Module]]:
    timm = sys.modules.get("timm.layers")
    return tuple(timm.get_notrace_modules()) if timm else ()


def _timm_functions() -> Sequence[Callable[..., Any]]:
    timm = sys.modules.get("timm.layers")
    return tuple(f for f in timm.get_notrace_functions() if callable(f)) if timm else ()


class _Watcher(fx.Interpreter):
    """Runs the graph and notes of each node its value's shape, and whether it is random or mixes samples (see Seen)."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        super().__init__(model, graph=graph)
        self.gpus = _gpus(model)
        self.values: dict[fx.Node, Any] = {}
        self.random: set[fx.Node] = set()
        self.mixes: set[fx.Node] = set()

    def run_node(self, n: fx.Node) -> Any:
        before, layers = self._random_states(), self._layers(n)
        versions = [buffer._version for layer in layers for buffer in layer.buffers(recurse=False)]
        with _Operations() as operations:
            value = super().run_node(n)
        if not all(map(torch.equal, before, self._random_states())):
            self.random.add(n)
        # BatchNorm layers are asked for their mode when a cut is made; others may keep statistics of their own.
        moved = versions != [
            buffer._version for layer in layers for buffer in layer.buffers(recurse=False)
        ]
        if moved or (operations.batch_statistics and n.op != "call_module"):
            self.mixes.add(n)
        self.values[n] = _short(value)
        return value

    def _layers(self, n: fx.Node) -> list[nn.Module]:
        inside = self.fetch_attr(str(n.target)).modules() if n.op == "call_module" else ()
        return [layer for layer in inside if not isinstance(layer, _BatchNorm)]

    def _random_states(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(gpu) for gpu in self.gpus)]


class _Operations(TorchDispatchMode):
    """Notes whether an operation normalised by the statistics of its batch."""

    batch_statistics = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, schema = kwargs or {}, func._schema
        if "batch_norm" in schema.name:
            named = dict(zip((a.name for a in schema.arguments), args, strict=False)) | kwargs
            self.batch_statistics |= bool(named.get("training")) or "with_update" in schema.name
        return func(*args, **kwargs)


def _short(value: Any) -> Any:
    if isinstance(value, Tensor):
        last = value.dim() == 4 and not value.is_contiguous()
        last = last and value.is_contiguous(memory_format=torch.channels_last)
        return TensorInfo(tuple(value.shape), value.dtype, last)
    if isinstance(value, (tuple, list)):
        return tuple(map(_short, value))
    return value


def follows(two: Any, three: Any) -> bool:
    """Whether a value is a number, or numbers, equal in both batches or proportional to their sizes."""
    if isinstance(two, tuple) and isinstance(three, tuple):
        return len(two) == len(three) > 0 and all(map(follows, two, three))
    if isinstance(two, bool) or isinstance(three, bool):
        return two is three
    if isinstance(two, int) and isinstance(three, int):
        return two == three or (two % 2 == 0 and two * 3 == three * 2)
    return isinstance(two, torch.dtype | torch.device) and two == three


def shape_again(graph: fx.Graph, first: fx.Node, seen: NodeInfo) -> Any:
    """The numbers as they were, those that follow the batch taken from its first tensor."""

    def again(two: Any, three: Any) -> Any:
        if isinstance(two, tuple):
            return tuple(map(again, two, three))
        if two == three:
            return two
        size = graph.call_method("size", (first, 0))
        return size if two == 2 else graph.call_function(operator.mul, (size, two // 2))

    return again(seen.two, seen.three)


@contextmanager
def preserve_state(model: nn.Module) -> Iterator[None]:
    """Whatever runs inside leaves buffers, modes and torch's random states as they were."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    modes = {module: module.training for module in model.modules()}
    with torch.random.fork_rng(devices=_gpus(model)):
        try:
            yield
        finally:
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
            for module, mode in modes.items():
                module.training = mode


def _gpus(model: nn.Module) -> list[int]:
    """The numbers of the GPUs that hold the model: random states of others are not ours to touch."""
    return sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
