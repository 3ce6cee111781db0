"""A phase's passes through the network as CUDA graphs.

A small network at a small batch leaves a GPU idle while Python launches one kernel after another. A
CUDA graph launches the recorded kernels of a whole pass at once, on new inputs of the same shape
(torch.cuda.make_graphed_callables): the same kernels, so the same numbers up to rounding.
"""

import gc
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
from torch.func import functional_call
from torch.optim import Optimizer

from tvf.frontier import EpochInputs, preserve_state
from tvf.training.generators import random_states, set_random_states

log = logging.getLogger(__name__)

GRAPH_MODES = ("auto", "on", "off")  # of fabric.compile
WARM = 3  # batches before the first that counts: libraries choose kernels and allocate memory
TIMED = 10  # batches of each kind whose median time decides
IDLE = 2  # epochs without two batches in a row; one can be the rest of an epoch that resumes
# How far each result may differ from that without a graph: relative to its largest value, or to so
# much of the largest of all logits, gradients or statistics. Some gradients are rounding errors.
EXACT, MIXED = (1e-3, 1e-2), (5e-2, 1e-1)

Tensors = tuple[Tensor, ...]
Forward = Callable[..., Tensor]


def record_graph(forward: Forward, tensors: Tensors) -> Forward:
    """`forward` as CUDA graphs: of its pass and, for `tensors` that require it, of the gradients'.

    The graphs compute in the memory of `tensors`, and take others of the same shapes. Raises
    whatever torch or the network raises if recording fails. Statistics and the random state change.
    """
    # Another thread may be reading batches. And where torch is too old for this option, a recording
    # that fails leaves its generator unusable.
    options: dict[str, Any] = {"allow_unused_input": True, "capture_error_mode": "thread_local"}
    if not options.keys() <= signature(torch.cuda.make_graphed_callables).parameters.keys():
        raise RuntimeError(f"torch {torch.__version__} is too old")
    with torch.cuda.stream(torch.cuda.current_stream()):  # which an error could leave changed
        recorded: Any = torch.cuda.make_graphed_callables(forward, tensors, **options)
    return recorded


@dataclass
class PassGraph:
    """Decides how a phase computes the logits of a full batch: kernel by kernel or as a graph.

    It is for training with `optimizer`, or for validation without one. In `mode` "auto" it times
    both on the first batches, during which the host waits for the device; "on" records a graph at
    once. Batches of another size than `batch_size` are computed kernel by kernel. So are all if the
    network cannot be recorded, draws random numbers on the host, or its graph's results differ, and
    if epochs have too few batches to take times. `record` is `record_graph`, or stands in for it.
    """

    fabric: Fabric
    model: nn.Module
    optimizer: Optimizer | None
    batch_size: int
    mode: str = "auto"
    tag: str = ""
    record: Callable[[Forward, Tensors], Forward] = field(default_factory=lambda: record_graph)
    was_used: bool = False  # whether it was decided that full batches are computed as a graph
    _graph: Forward | None = None
    _decided: bool = False
    _source: EpochInputs | None = None  # of the last batch: one for each epoch
    _kind: Any = None  # of the inputs that the graph takes, and where its weights are
    _last: float | None = None  # when the last full batch began, while times are taken
    _times: dict[bool, list[float]] = field(default_factory=lambda: {False: [], True: []})
    _taken: int = 0  # times before this epoch
    _idle: int = 0  # epochs that added none

    def choose(self, source: EpochInputs, inputs: Tensors) -> Forward:
        """What computes the logits of a batch with these inputs."""
        if source is not self._source:
            self._begin_epoch(source)
        # A linear layer alone has too few kernels to gain.
        fits = len(inputs[0]) == self.batch_size and source.linear is None
        if not self._decided:
            self._take_time()
            if fits:
                self._decide(source, inputs)
            self._last = self._now() if fits and not self._decided else None
        takes = self._graph is not None and fits and self._kind[0] == _kind_of(inputs)
        return self._graph if takes and self._graph is not None else source.module

    def close(self) -> None:
        """Give up the graph and its memory; batches are computed kernel by kernel from here on."""
        self._decided, self._source = True, None
        if self._graph is not None:
            self._graph = None
            _free_memory(self.fabric)

    def _begin_epoch(self, source: EpochInputs) -> None:
        """Let times be of batches of one epoch, and a graph of weights that are where they were."""
        self._source, self._last = source, None
        if self._graph is not None and self._kind[1] != self._find_weights():
            self.close()
            self._decided, self._source = False, source
            self._times, self._idle, self.was_used = {False: [], True: []}, 0, False
        if not self._decided and self.mode == "auto":
            taken = sum(map(len, self._times.values()))
            self._idle = 0 if taken != self._taken else self._idle + 1
            self._taken = taken
            if self._idle > IDLE:
                self.close()

    def _take_time(self) -> None:
        """Note how long the last batch took, if it was a full one of this epoch."""
        if self._last is not None:
            self._times[self._graph is not None].append(self._now() - self._last)

    def _decide(self, source: EpochInputs, inputs: Tensors) -> None:
        """Record a graph, or choose, once enough batches were timed."""
        plain, graph = self._times[False], self._times[True]
        if self.mode == "on":
            self._decided, self._graph = True, self._try(source, inputs)
            self.was_used = self._graph is not None
            if self.was_used:
                log.info("%s: recorded as CUDA graphs.", self._name)
        elif self._graph is None and len(plain) >= WARM + TIMED:
            self._graph = self._try(source, inputs)
            self._decided = self._graph is None
        elif len(graph) >= TIMED:
            self._decided = True
            self._compare(median(plain[WARM:]), median(graph))

    def _compare(self, plain: float, graph: float) -> None:
        """Keep the graph if it is faster."""
        self.was_used = graph < plain
        if self.was_used:
            text = "%s: recorded as CUDA graphs, %.2f ms a batch instead of %.2f."
            log.info(text, self._name, 1e3 * graph, 1e3 * plain)
        else:
            self.close()
            text = "%s: kernel by kernel, %.2f ms a batch; as CUDA graphs %.2f."
            log.info(text, self._name, 1e3 * plain, 1e3 * graph)

    @property
    def _name(self) -> str:
        return f"{self.tag} {'training' if self.optimizer else 'validation'}"

    def _try(self, source: EpochInputs, inputs: Tensors) -> Forward | None:
        """The graph for inputs of this shape; None, with a line in the log, if there is none."""
        before, reason = random_states(), ""
        try:
            graph = self._record(source.module, inputs)
        except Exception as error:  # whatever it is, the job can train without a graph
            if isinstance(error.__context__, KeyboardInterrupt):  # which ended the recording
                raise error.__context__ from None
            graph, reason = None, str(error).strip().partition("\n")[0]
        finally:
            set_random_states(before)
        if graph is None:
            log.info("%s: kernel by kernel, without CUDA graphs: %s.", self._name, reason)
            _free_memory(self.fabric)
        self._kind = _kind_of(inputs), self._find_weights()
        return graph

    def _record(self, module: nn.Module, inputs: Tensors) -> Forward:
        """The graph. Raises RuntimeError if there is none that computes the same.

        It is recorded on aliases of the weights. Autograd's nodes that add up the gradients of the
        weights themselves would live on in it, and belong to the stream of the recording: each
        later step would have to wait for that stream.
        """
        groups = self.optimizer.param_groups if self.optimizer else ()
        trained = [parameter for group in groups for parameter in group["params"]]
        layers = _Layers(self.model, module, self.fabric)
        places, count = layers.places_of(trained), len(inputs)

        def forward(*tensors: Tensor) -> Tensor:
            weights = {name: tensors[count + number] for name, number in places.items()}
            return functional_call(layers, weights, tensors[:count], tie_weights=False)

        samples = tuple(tensor.clone() for tensor in inputs)
        aliases = tuple(parameter.detach().requires_grad_() for parameter in trained)
        with preserve_state(self.model):
            recorded = self.record(forward, (*samples, *aliases))
        others = tuple(tensor.flip(0) for tensor in inputs)
        with preserve_state(self.model):
            found = self._results(lambda *given: recorded(*given, *trained), others, trained)
        # Afterwards, when the graph has its memory: other batches need theirs beside it.
        with preserve_state(self.model):
            before = _host_states(self.fabric), self._find_weights()
            expected = self._results(layers, others, trained)
            after = _host_states(self.fabric), self._find_weights()
        if after[0] != before[0]:
            raise RuntimeError("the network draws random numbers on the host")
        if after[1] != before[1]:
            raise RuntimeError("the network replaces its buffers")
        exact = self.fabric.strategy.precision.precision in ("32-true", "64-true")
        if not _agree(found, expected, *(EXACT if exact else MIXED)):
            raise RuntimeError("its results differ from the network's")
        return lambda *given: recorded(*given, *trained)

    def _results(
        self, forward: Forward, inputs: Tensors, trained: Sequence[nn.Parameter]
    ) -> list[list[Tensor]]:
        """Copies of the logits, of the gradients of a sum of them, and of the statistics."""
        logits, gradients = forward(*inputs), ()
        if trained:
            weights = torch.linspace(-1, 1, logits.numel(), device=logits.device).view_as(logits)
            gradients = torch.autograd.grad(logits, trained, weights.to(logits), allow_unused=True)
        results = [logits], [g for g in gradients if g is not None], [*self.model.buffers()]
        return [[tensor.detach().clone() for tensor in part] for part in results]

    def _find_weights(self) -> tuple[int, ...]:
        """Where the network's weights and statistics are: a graph reads and writes there."""
        tensors = (*self.model.parameters(), *self.model.buffers())
        return tuple(tensor.data_ptr() for tensor in tensors)

    def _now(self) -> float:
        """The time, after the device has done all its work."""
        if self.fabric.device.type == "cuda":
            torch.cuda.synchronize(self.fabric.device)
        return time.perf_counter()


class _Layers(nn.Module):
    """What `module` computes, as part of one module that has all weights of `model`.

    Fabric's wrapper is left out: its hooks insist on a backward pass of Fabric's own.
    """

    def __init__(self, model: nn.Module, module: nn.Module, fabric: Fabric) -> None:
        super().__init__()
        self.model, self._precision = model, fabric.strategy.precision
        self._wrapped = is_wrapped(module)
        self.module: Any = module.module if self._wrapped else module

    def forward(self, *inputs: Tensor) -> Tensor:
        if not self._wrapped:
            return self.module(*inputs)
        inputs = self._precision.convert_input(inputs)
        with self._precision.forward_context():
            return self._precision.convert_output(self.module(*inputs))

    def places_of(self, parameters: Sequence[nn.Parameter]) -> dict[str, int]:
        """The names of all places that hold one of these parameters, with its number.

        Each place once: modules have several names here. Raises RuntimeError if a parameter has no
        place.
        """
        numbers = {id(parameter): number for number, parameter in enumerate(parameters)}
        places = {
            f"{module_name}.{name}": numbers[id(parameter)]
            for module_name, module in self.named_modules()
            for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
            if id(parameter) in numbers
        }
        if len({*places.values()}) < len(numbers):
            raise RuntimeError("what trains is not part of the network")
        return places


def _kind_of(inputs: Tensors) -> list[tuple[torch.Size, torch.dtype]]:
    return [(tensor.shape, tensor.dtype) for tensor in inputs]


def _free_memory(fabric: Fabric) -> None:
    """Free the memory of graphs that were given up: they are part of reference cycles."""
    gc.collect()
    if fabric.device.type == "cuda":
        torch.cuda.empty_cache()


def _agree(
    found: Sequence[Sequence[Tensor]],
    expected: Sequence[Sequence[Tensor]],
    tolerance: float,
    floor: float,
) -> bool:
    """Whether results are finite and equal up to `tolerance`: see EXACT."""
    for one, other in zip(found, expected, strict=True):
        if len(one) != len(other):
            return False
        sizes = [float(b.abs().max()) if b.numel() else 0.0 for b in map(Tensor.float, other)]
        least = floor * max(sizes, default=0.0)
        for a, b, size in zip(one, other, sizes, strict=True):
            gap = float((a.float() - b.float()).abs().max()) if b.numel() else 0.0
            if not gap <= tolerance * max(size, least):  # nor if it is not a number
                return False
    return True


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
