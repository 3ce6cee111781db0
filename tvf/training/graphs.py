"""A phase's passes through the network as CUDA graphs.

A small network at a small batch leaves a GPU idle while Python launches one kernel after another. A
CUDA graph launches the recorded kernels of a whole pass at once, on new inputs of the same shape
(torch.cuda.make_graphed_callables): the same kernels, so the same numbers up to rounding.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from inspect import signature
from statistics import median
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import is_wrapped
from torch import Tensor, nn
from torch.optim import Optimizer

from tvf.frontier import EpochInputs, preserve_state
from tvf.training.generators import random_states, set_random_states

log = logging.getLogger(__name__)

GRAPH_MODES = ("auto", "on", "off")  # of fabric.compile
WARM = 3  # batches before the first that counts: libraries choose kernels and allocate memory
TIMED = 10  # batches of each kind whose median time decides
# How far logits and gradients may differ from those without a graph, relative to the largest.
EXACT, MIXED = 1e-3, 5e-2

Tensors = tuple[Tensor, ...]
Forward = Callable[..., Tensor]


def record_graph(module: nn.Module, samples: Tensors) -> Forward:
    """`module` as CUDA graphs of its forward and backward pass, for inputs shaped like `samples`.

    Raises an error, torch's or the module's, if it cannot be recorded. Its buffers and the random
    state change.
    """
    options: dict[str, Any] = {"allow_unused_input": True}
    if "capture_error_mode" in signature(torch.cuda.make_graphed_callables).parameters:
        options["capture_error_mode"] = "thread_local"  # another thread may be reading batches
    with torch.cuda.stream(torch.cuda.current_stream()):  # which an error could leave changed
        recorded: Any = torch.cuda.make_graphed_callables(module, samples, **options)
    return recorded


@dataclass
class PassGraph:
    """Decides how a phase computes the logits of a full batch: kernel by kernel or as a graph.

    It is for training with `optimizer`, or for validation without one. In `mode` "auto" it times
    both on the first batches, during which the host waits for the device; "on" records a graph at
    once. Batches of another size than `batch_size` are computed kernel by kernel. So are all if the
    network cannot be recorded, draws random numbers on the host, or its graph computes something
    else. `record` is `record_graph`, or stands in for it.
    """

    fabric: Fabric
    model: nn.Module
    optimizer: Optimizer | None
    batch_size: int
    mode: str = "auto"
    tag: str = ""
    record: Callable[[nn.Module, Tensors], Forward] = field(default_factory=lambda: record_graph)
    _graph: Forward | None = None
    _decided: bool = False
    _source: EpochInputs | None = None  # of the last batch: one for each epoch
    _places: tuple[int, ...] = ()  # of the weights in memory when the graph was recorded
    _last: float | None = None  # when the last full batch began, while times are taken
    _times: dict[bool, list[float]] = field(default_factory=lambda: {False: [], True: []})

    @property
    def in_use(self) -> bool:
        """Whether full batches are computed as a graph, after the decision."""
        return self._decided and self._graph is not None

    def choose(self, source: EpochInputs, inputs: Tensors) -> Forward:
        """What computes the logits of a batch with these inputs."""
        if source is not self._source:
            self._source, self._last = source, None
            if self._graph is not None and self._places != self._find_places():
                self._graph, self._decided = None, False
                self._times = {False: [], True: []}
        fits = len(inputs[0]) == self.batch_size and source.linear is None  # of few kernels
        if not self._decided:
            self._take_time()
            if fits:
                self._decide(source, inputs)
            self._last = self._now() if fits and not self._decided else None
        return self._graph if fits and self._graph is not None else source.module

    def _take_time(self) -> None:
        """Note how long the last batch took, if it was a full one of this epoch."""
        if self._last is not None:
            self._times[self._graph is not None].append(self._now() - self._last)

    def _decide(self, source: EpochInputs, inputs: Tensors) -> None:
        """Record a graph, or choose, once enough batches were timed."""
        plain, graph = self._times[False], self._times[True]
        if self.mode == "on":
            self._decided, self._graph = True, self._try(source, inputs)
            if self._graph is not None:
                log.info("%s: recorded as CUDA graphs.", self._name)
        elif self._graph is None and len(plain) >= WARM + TIMED:
            self._graph = self._try(source, inputs)
            self._decided = self._graph is None
        elif len(graph) >= TIMED:
            self._decided = True
            self._compare(median(plain[WARM:]), median(graph))

    def _compare(self, plain: float, graph: float) -> None:
        """Keep the graph if it is faster."""
        if graph < plain:
            text = "%s: recorded as CUDA graphs, %.2f ms a batch instead of %.2f."
            log.info(text, self._name, 1e3 * graph, 1e3 * plain)
        else:
            self._graph = None
            text = "%s: kernel by kernel, %.2f ms a batch; as CUDA graphs %.2f."
            log.info(text, self._name, 1e3 * plain, 1e3 * graph)

    @property
    def _name(self) -> str:
        return f"{self.tag} {'training' if self.optimizer else 'validation'}"

    def _try(self, source: EpochInputs, inputs: Tensors) -> Forward | None:
        """The graph for inputs of this shape; None, with a line in the log, if there is none."""
        before = random_states()
        try:
            graph = self._record(source, inputs)
        except Exception as error:  # whatever it is, the job can train without a graph
            reason = str(error).strip().partition("\n")[0]
            log.info("%s: kernel by kernel, as no CUDA graph works: %s.", self._name, reason)
            if self.fabric.device.type == "cuda":
                torch.cuda.empty_cache()
            return None
        finally:
            set_random_states(before)
        self._places = self._find_places()
        return graph

    def _record(self, source: EpochInputs, inputs: Tensors) -> Forward:
        """The graph. Raises RuntimeError if there is none that computes the same."""
        groups = self.optimizer.param_groups if self.optimizer else ()
        trained = [parameter for group in groups for parameter in group["params"]]
        step = _Step(self._forward(source.module), trained)
        samples = tuple(tensor.clone() for tensor in inputs)
        with preserve_state(self.model):
            before = _host_states(self.fabric)
            expected = _results(step, samples, trained)
            if _host_states(self.fabric) != before:
                raise RuntimeError("the network draws random numbers on the host")
        with preserve_state(self.model):
            graph = self.record(step, samples)
        with preserve_state(self.model):
            found = _results(graph, samples, trained)
        exact = self.fabric.strategy.precision.precision in ("32-true", "64-true")
        if _difference(found, expected) > (EXACT if exact else MIXED):
            raise RuntimeError("it computes something else than the network")
        return graph

    def _forward(self, module: Forward) -> Forward:
        """What `module` computes, without hooks by which Fabric insists on its own backward."""
        if not is_wrapped(module):
            return module
        network, precision = module.module, self.fabric.strategy.precision  # type: ignore[attr-defined]

        def forward(*inputs: Tensor) -> Tensor:
            inputs = precision.convert_input(inputs)
            with precision.forward_context():
                return precision.convert_output(network(*inputs))

        return forward

    def _find_places(self) -> tuple[int, ...]:
        """Where the network's weights and statistics are: a graph reads and writes there."""
        tensors = (*self.model.parameters(), *self.model.buffers())
        return tuple(tensor.data_ptr() for tensor in tensors)

    def _now(self) -> float:
        """The time, after the device has done all its work."""
        if self.fabric.device.type == "cuda":
            torch.cuda.synchronize(self.fabric.device)
        return time.perf_counter()


class _Step(nn.Module):
    """A forward pass as a module, whose parameters are those that train."""

    def __init__(self, forward: Forward, trained: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.trained = nn.ParameterList(trained)
        self._forward_pass = lambda *inputs: forward(*inputs)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self._forward_pass(*inputs)


def _results(forward: Forward, inputs: Tensors, trained: Sequence[nn.Parameter]) -> list[Tensor]:
    """Copies of the logits, and of the gradients of a sum of them if anything trains."""
    logits = forward(*inputs)
    if not trained:
        return [logits.clone()]
    weights = torch.linspace(-1, 1, logits.numel(), device=logits.device).view_as(logits)
    gradients = torch.autograd.grad(logits, trained, weights.to(logits), allow_unused=True)
    return [t.detach().clone() for t in (logits, *gradients) if t is not None]


def _difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference of logits and of gradients, relative to the largest of each.

    Infinite if they cannot be compared.
    """
    if len(found) != len(expected):
        return float("inf")
    worst = 0.0
    for part in (slice(1), slice(1, None)):
        pairs = [*zip(found[part], expected[part], strict=True)]
        gap = max((float((a - b).abs().max()) for a, b in pairs), default=0.0)
        scale = max((float(b.abs().max()) for _, b in pairs), default=0.0)
        ratio = gap / scale if scale else gap
        worst = max(worst, ratio) if ratio == ratio else float("inf")
    return worst


def _host_states(fabric: Fabric) -> str:
    """The states of the host's generators; torch's is the device's own if that is the CPU."""
    states = random_states()
    if fabric.device.type == "cpu":
        states.pop("torch")
    states.pop("cuda", None)
    return repr([(name, _plain(value)) for name, value in sorted(states.items())])


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    return [*map(_plain, value)] if isinstance(value, tuple) else value
