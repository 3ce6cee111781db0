"""The torch.fx graph of a network, and what each of its nodes does when it runs.

Whether a node is deterministic per sample is observed, not declared: the graph runs on batches of
two and of three samples, and each node's values, random states and buffers are compared.
"""

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

# What returns whatever was in memory, to be filled with random numbers.
UNINITIALISED = ("new_empty", "new_empty_strided", torch.empty, torch.empty_like)


class TraceError(ValueError):
    """The network cannot be split; the message says why. It still trains as a whole."""


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's shape, dtype, and whether its memory format is channels_last."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    channels_last: bool


@dataclass(frozen=True)
class NodeInfo:
    """A node's values for batches of two and of three samples (tensors as TensorInfo).

    `random`: it draws random numbers, or makes room for them. `mixes`: its value for a sample
    depends on the rest of the batch, or it updates statistics. `updates`: it changes a buffer that
    is not its own layer's.
    """

    two: Any
    three: Any
    random: bool
    mixes: bool
    updates: bool


def trace_graph(model: nn.Module) -> fx.Graph:
    """Return the graph of `model` in its current mode.

    BatchNorm layers, and modules that timm marks as untraceable, are single nodes. Raises
    TraceError.
    """
    own = [(layer, dict(vars(layer)), dict(layer._buffers)) for layer in model.modules()]
    try:
        return _Tracer(autowrap_functions=tuple(_timm_functions())).trace(model)
    except Exception as error:  # a network's code can do anything with symbolic values
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TraceError(f"torch.fx cannot trace the network: {reason}") from error
    finally:  # code that assigns to its own attributes has assigned symbols
        for layer, attributes, buffers in own:
            vars(layer).update(attributes)
            layer._buffers.update(buffers)


def observe_nodes(model: nn.Module, graph: fx.Graph, example: Tensor) -> dict[fx.Node, NodeInfo]:
    """Run the graph on two and on three samples of `example` and return what each node does.

    Leaves the model unchanged. Raises TraceError.
    """
    two, three = _Observer(model, graph), _Observer(model, graph)
    with preserve_state(model), torch.no_grad():
        try:
            two.observe(example[:2].clone())
            three.observe(example[:3].clone())
        except Exception as error:
            raise TraceError(f"the traced graph fails to run: {error}") from error
    return {
        node: NodeInfo(
            two.values.get(node),
            three.values.get(node),
            node in two.random,
            node in two.mixes,
            node in two.updates,
        )
        for node in graph.nodes
    }


def follows_batch_size(two: Any, three: Any) -> bool:
    """Whether the values are numbers that are equal for both batches or proportional to their size.

    Also true for nested tuples of such numbers, dtypes and devices.
    """
    if isinstance(two, tuple) and isinstance(three, tuple):
        return len(two) == len(three) > 0 and all(map(follows_batch_size, two, three))
    if isinstance(two, bool) or isinstance(three, bool):
        return two is three
    if isinstance(two, int) and isinstance(three, int):
        return two == three or (two % 2 == 0 and two * 3 == three * 2)
    return isinstance(two, torch.dtype | torch.device) and two == three


def rebuild_shape(graph: fx.Graph, tensor: fx.Node, info: NodeInfo) -> Any:
    """Return the numbers of a node that `follows_batch_size`, for use in `graph`.

    Numbers that depend on the batch are computed from the batch size of `tensor`.
    """

    def rebuild(two: Any, three: Any) -> Any:
        if isinstance(two, tuple):
            return tuple(map(rebuild, two, three))
        if two == three:
            return two
        size = graph.call_method("size", (tensor, 0))
        return size if two == 2 else graph.call_function(operator.mul, (size, two // 2))

    return rebuild(info.two, info.three)


@contextmanager
def preserve_state(model: nn.Module) -> Iterator[None]:
    """Restore the model's buffers and modes and torch's random states on exit."""
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


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # BatchNorm stays one node: its mode is read off the layer, and depends on what is frozen.
        leaf = isinstance(m, (_BatchNorm, *_timm_modules()))
        return leaf or super().is_leaf_module(m, module_qualified_name)


def _timm_modules() -> Sequence[type[nn.Module]]:
    timm = sys.modules.get("timm.layers")
    return tuple(timm.get_notrace_modules()) if timm else ()


def _timm_functions() -> Sequence[Callable[..., Any]]:
    timm = sys.modules.get("timm.layers")
    return tuple(f for f in timm.get_notrace_functions() if callable(f)) if timm else ()


class _Observer(fx.Interpreter):
    """Runs the graph and records each node's value, and whether it is random or mixes samples."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        super().__init__(model, graph=graph)
        self.nodes: list[fx.Node] = list(graph.nodes)
        self.gpus = _gpus(model)
        self.values: dict[fx.Node, Any] = {}
        self.random: set[fx.Node] = set()
        self.mixes: set[fx.Node] = set()
        self.updates: set[fx.Node] = set()
        self.of_batch: set[fx.Node] = set()  # nodes that depend on the images
        self._all_layers = list(model.modules())

    def observe(self, images: Tensor) -> None:
        """Run every node on `images`.

        Instead of `run`, whose disabled progress bar (tqdm) leaves a semaphore behind in a process
        that ends with os._exit, as the jobs of a sweep do.
        """
        self.env, self.args_iter = {}, iter((images,))  # as `run` sets them
        for node in self.nodes:
            self.env[node] = self.run_node(node)
            for unused in self.user_to_last_uses.get(node, ()):
                del self.env[unused]

    def run_node(self, n: fx.Node) -> Any:
        """Run a node, and record what it draws, changes and normalises by its batch."""
        states, layers = self._random_states(), self._layers(n)
        versions = _buffer_versions(layers)
        with _BatchStatisticsMode() as operations:
            value = super().run_node(n)
        if n.target in UNINITIALISED or not all(map(torch.equal, states, self._random_states())):
            self.random.add(n)
        # A BatchNorm layer's mode is read when a cut is made; this covers all other statistics.
        # Those of weights, as in standardised convolutions, are the same for every batch.
        updated = versions != _buffer_versions(layers)
        if n.op == "placeholder" or any(source in self.of_batch for source in n.all_input_nodes):
            self.of_batch.add(n)
        if updated or (operations.used and n.op != "call_module" and n in self.of_batch):
            self.mixes.add(n)
        if updated and n.op != "call_module":
            self.updates.add(n)
        self.values[n] = _summarize(value)
        return value

    def _layers(self, n: fx.Node) -> list[nn.Module]:
        """The layers whose buffers the node may update, other than BatchNorm layers of its own."""
        if n.op in ("call_function", "call_method"):
            return self._all_layers
        layers = self.fetch_attr(str(n.target)).modules() if n.op == "call_module" else ()
        return [layer for layer in layers if not isinstance(layer, _BatchNorm)]

    def _random_states(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(gpu) for gpu in self.gpus)]


class _BatchStatisticsMode(TorchDispatchMode):
    """Records whether an operation normalizes with the statistics of its batch."""

    used = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, schema = kwargs or {}, func._schema
        if "batch_norm" in schema.name:
            names = (argument.name for argument in schema.arguments)
            arguments = dict(zip(names, args, strict=False)) | kwargs
            self.used |= bool(arguments.get("training")) or "with_update" in schema.name
        return func(*args, **kwargs)


def _buffer_versions(layers: Sequence[nn.Module]) -> list[tuple[int, int]]:
    """What changes with every update of the layers' buffers, in place or by replacing them."""
    buffers = [buffer for layer in layers for buffer in layer.buffers(recurse=False)]
    return [(id(buffer), buffer._version) for buffer in buffers]


def _summarize(value: Any) -> Any:
    if isinstance(value, Tensor):
        channels_last = (
            value.dim() == 4
            and not value.is_contiguous()
            and value.is_contiguous(memory_format=torch.channels_last)
        )
        return TensorInfo(tuple(value.shape), value.dtype, channels_last)
    if isinstance(value, (tuple, list)):
        return tuple(map(_summarize, value))
    return value


def _gpus(model: nn.Module) -> list[int]:
    """Return the GPUs that hold the model; random states of other GPUs are left alone."""
    return sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
