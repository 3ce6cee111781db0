"""Recorded training steps compute what others compute. The CPU stands in for a GPU."""

import contextlib
import random
import weakref
from collections.abc import Callable
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import small_backbone
from helpers.devices import Forward, replay_on_cpu
from helpers.training import FABRIC, train
from tvf.models import FineTuneModel
from tvf.training import ExponentialMovingAverage, PassGraph, Phase, StepOptions, graphs

Numbers = list[tuple[float | None, ...]]
DECIDED_AFTER = graphs.WARM + 2 * graphs.TIMED  # full batches


def new_model(fraction: float = 1.0, **how: Any) -> FineTuneModel:
    torch.manual_seed(0)
    return FineTuneModel(small_backbone(), fraction, head_dropout=0.1, **how)


def history(model: FineTuneModel, phases: list[Phase], **how: Any) -> Numbers:
    """The losses and scores of the epochs, and sums over the weights at the end."""
    found: Numbers = []
    train(
        model,
        phases,
        on_epoch=lambda e: found.append((e.train_loss, e.train_acc, e.val_loss, e.val_macro_f1)),
        **how,
    )
    return [*found, tuple(float(value.double().sum()) for value in model.state_dict().values())]


def recording(made: list[PassGraph], **options: Any) -> Callable[..., PassGraph]:
    """Makes the recorders of each phase, for training and validation, and adds them to `made`."""

    def make(model: FineTuneModel, optimizer: Any) -> PassGraph:
        how = {"batch_size": 8, "mode": "on", "record": replay_on_cpu, "tag": "[job]"} | options
        made.append(PassGraph(FABRIC, model, optimizer, **how))
        return made[-1]

    return make


@pytest.mark.parametrize("bn", ["eval", "batch"])
@pytest.mark.parametrize("fraction", [0.5, 1.0])
def test_recorded_steps_give_the_same_bits(fraction: float, bn: str) -> None:
    """Batches of 8, 8, 8 and 9: the last one does not fit the graph."""

    def found(**how: Any) -> Numbers:
        model = new_model(fraction, frozen_bn=bn)
        average = ExponentialMovingAverage(0.5)(model)
        steps = StepOptions(8, seed=1, clip_norm=1.0, average=average)
        groups = len(model.trained_groups)
        phases = [Phase(2, groups - 1), Phase(2, groups)]
        return history(model, phases, steps=steps, **how)

    made: list[PassGraph] = []
    assert found(graph=recording(made)) == found()
    assert [graph.was_used for graph in made] == [True] * 4


def test_a_job_that_resumes_within_an_epoch_records_again() -> None:
    states: list[dict[str, Any]] = []
    made: list[PassGraph] = []
    whole = history(
        new_model(),
        [Phase(2, 4)],
        graph=recording(made),
        save=lambda state: states.append(deepcopy(state)),
    )
    state = states[1]
    assert len(state["losses"]) == 2
    resumed = history(new_model(), [Phase(2, 4)], graph=recording(made), state=state)
    assert resumed == whole and all(graph.was_used for graph in made)


class Clock:
    """A batch takes `plain` seconds, or `graph` if it is recorded; the first one takes longer."""

    def __init__(self, plain: float, graph: float) -> None:
        self.plain, self.graph, self.now, self.first = plain, graph, 0.0, True

    def read(self, step: PassGraph) -> float:
        if step._last is not None:
            self.now = step._last + self.plain if step._graph is None else step._last + self.graph
            self.now += 5.0 * self.first
            self.first = False
        return self.now


@pytest.mark.parametrize("plain, graph, text", [
    (0.004, 0.001, "recorded as CUDA graphs, 1.00 ms a batch instead of 4.00"),
    (0.004, 0.005, "kernel by kernel, 4.00 ms a batch; as CUDA graphs 5.00"),
])  # fmt: skip
def test_the_faster_way_is_chosen_by_time(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    plain: float,
    graph: float,
    text: str,
) -> None:
    caplog.set_level("INFO")
    clock, made, epochs = Clock(plain, graph), list[PassGraph](), DECIDED_AFTER // 3 + 2
    monkeypatch.setattr(PassGraph, "_now", lambda step: clock.read(step))
    found = history(new_model(), [Phase(epochs, 4)], graph=recording(made, mode="auto"))
    assert [message for message in caplog.messages if "training: " in message] == [
        f"[job] training: {text}."
    ]
    assert made[0].was_used == (graph < plain)
    assert found == history(new_model(), [Phase(epochs, 4)])


def other(forward: Forward, tensors: tuple[Tensor, ...]) -> Forward:
    return lambda *given: 2 * forward(*given)


def unable(forward: Forward, tensors: tuple[Tensor, ...]) -> Forward:
    forward(*tensors)
    raise RuntimeError("operation not permitted when stream is capturing\nmore")


def hungry(forward: Forward, tensors: tuple[Tensor, ...]) -> Forward:
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")


@pytest.mark.parametrize(
    "place, spoil", [(0, "zero"), (3, "nan"), (4, "larger"), (7, "nan"), (7, "zero")]
)
def test_a_single_wrong_gradient_is_noticed(place: int, spoil: str) -> None:
    """Also a small one. Biases before BatchNorm have none: theirs are rounding errors."""
    change = {
        "nan": lambda g: g * float("nan"),
        "zero": torch.zeros_like,
        "larger": lambda g: 2 * g,
    }

    class Spoilt(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: Tensor) -> Tensor:
            return value.view_as(value)

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
            return change[spoil](gradient)

    def record(forward: Forward, tensors: tuple[Tensor, ...]) -> Forward:
        def spoilt(*given: Tensor) -> Tensor:
            weights = [*given]
            if len(given) > 1:  # training
                weights[1 + place] = Spoilt.apply(given[1 + place])  # type: ignore
            return forward(*weights)

        return spoilt

    made = list[PassGraph]()
    train(new_model(), [Phase(1, 4)], graph=recording(made, record=record))
    assert not made[0].was_used and made[1].was_used


@pytest.mark.parametrize(
    "mode, record, reason",
    [
        ("on", other, "its results differ from the network's"),
        ("auto", unable, "operation not permitted when stream is capturing"),
        ("on", hungry, "CUDA out of memory"),
    ],
)
def test_what_cannot_be_recorded_trains_kernel_by_kernel(
    mode: str, record: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    made, phases = list[PassGraph](), [Phase(5 if mode == "auto" else 1, 4)]
    found = history(new_model(), phases, graph=recording(made, record=record, mode=mode))
    lines = [line for line in caplog.messages if "training: " in line]
    assert len(lines) == 1 and reason in lines[0] and not made[0].was_used
    assert found == history(new_model(), phases)


def test_a_network_that_draws_on_the_host_is_not_recorded(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A graph would repeat the draws of its recording for ever."""
    caplog.set_level("INFO")

    def model() -> FineTuneModel:
        random.seed(0)
        drawn = new_model()
        scale = lambda module, inputs: (inputs[0] * (1 + 0.1 * random.random()),)  # noqa: E731
        drawn.module.register_forward_pre_hook(scale)
        return drawn

    made = list[PassGraph]()
    found = history(model(), [Phase(2, 4)], graph=recording(made))
    assert "draws random numbers on the host" in caplog.text and not made[0].was_used
    assert found == history(model(), [Phase(2, 4)])


def test_a_network_that_replaces_its_buffers_is_not_recorded(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A graph would go on with the memory of the recording."""
    caplog.set_level("INFO")

    def model() -> FineTuneModel:
        drawn = new_model()
        drawn.module.register_buffer("count", torch.zeros(1))

        def replace(module: Any, inputs: Any) -> None:
            module.count = module.count + 1

        drawn.module.register_forward_pre_hook(replace)
        return drawn

    made = list[PassGraph]()
    found = history(model(), [Phase(2, 4)], graph=recording(made))
    assert "the network replaces its buffers" in caplog.text and not made[0].was_used
    assert found == history(model(), [Phase(2, 4)])


def test_a_torch_that_is_too_old_records_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", lambda callables, sample_args: None)
    with pytest.raises(RuntimeError, match="is too old"):
        graphs.record_graph(torch.relu, (torch.ones(1),))


def test_weights_that_have_moved_are_recorded_anew() -> None:
    records: list[bool] = []

    def record(forward: Forward, tensors: tuple[Tensor, ...]) -> Forward:
        records.append(torch.is_grad_enabled())
        return replay_on_cpu(forward, tensors)

    model, made = new_model(), list[PassGraph]()

    def move(epoch: Any) -> None:
        if epoch.epoch == 2:
            buffer = next(model.buffers())
            buffer.data = buffer.data.clone()

    train(model, [Phase(4, 4)], graph=recording(made, record=record), on_epoch=move)
    assert records == [True, False, True, False] and all(graph.was_used for graph in made)


def test_torch_takes_what_is_to_be_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything of torch's function but the GPU: a replay here computes nothing."""
    replayed: list[str] = []
    graph = SimpleNamespace(replay=lambda: replayed.append("pass"))
    for name, instead in {
        "CUDAGraph": lambda: graph,
        "graph": lambda *_, **__: contextlib.nullcontext(),
        "Stream": lambda: None,
        "stream": lambda _: contextlib.nullcontext(),
        "current_stream": lambda: None,
        "synchronize": lambda: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, instead)
    monkeypatch.setattr(torch.cuda.graphs, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(graphs, "_agree", lambda *results: True)
    made, model = list[PassGraph](), new_model()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer: Any = SimpleNamespace(param_groups=[{"params": trained}])
    step = recording(made, record=graphs.record_graph)(model, optimizer)
    images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    source: Any = SimpleNamespace(module=FABRIC.setup_module(model), linear=None)
    forward = step.choose(source, (images,))
    assert step.was_used and forward is not source.module
    for parameter in trained:  # the recording holds none, or they would stay on its stream
        adds_up(parameter).metadata["seen"] = True
    assert not any(adds_up(parameter).metadata for parameter in trained)
    logits = forward(images)
    logits.sum().backward()
    assert len(replayed) == 4  # of the check, and here
    assert all(parameter.grad is not None for parameter in trained)


def adds_up(parameter: Tensor) -> Any:
    """Autograd's node that adds up the gradient of a parameter."""
    grad_fn: Any = parameter.view_as(parameter).grad_fn
    return grad_fn.next_functions[0][0]


@pytest.mark.parametrize("faster", [True, False])
def test_a_graph_that_is_not_used_any_more_is_freed(
    faster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it, its memory is not there for what comes next: a GPU's could not hold both."""
    graphs_left = weakref.WeakSet[Any]()

    def record(forward: Forward, tensors: tuple[Tensor, ...]) -> Forward:
        replay = Replay(replay_on_cpu(forward, tensors))
        if torch.is_grad_enabled():
            graphs_left.add(replay)
        return replay

    clock, made = Clock(0.002, 0.001 if faster else 0.003), list[PassGraph]()
    monkeypatch.setattr(PassGraph, "_now", lambda step: clock.read(step))
    epochs = DECIDED_AFTER // 3 + 2
    train(new_model(), [Phase(epochs, 4)], graph=recording(made, mode="auto", record=record))
    assert made[0].was_used == faster and len(graphs_left) == faster
    made[0].close()
    assert not graphs_left and made[0].was_used == faster


class Replay:
    """A replay that is part of a reference cycle, as torch's are."""

    def __init__(self, replay: Forward) -> None:
        self.replay, self.itself = replay, self

    def __call__(self, *given: Tensor) -> Tensor:
        return self.replay(*given)


def test_an_epoch_of_a_single_batch_takes_no_times() -> None:
    made = list[PassGraph]()
    make = recording(made, mode="auto", batch_size=20)  # of 33 images 20 and 13, of 20 a single one
    steps = StepOptions(20, seed=1)
    train(new_model(), [Phase(6, 4)], steps=steps, graph=make)
    training, validation = made
    assert not training._decided and len(training._times[False]) == 6
    assert validation._decided and not validation.was_used and validation._last is None


def test_other_inputs_than_those_of_the_recording_are_computed_without_a_graph() -> None:
    model, made = new_model(), list[PassGraph]()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer: Any = SimpleNamespace(param_groups=[{"params": trained}])
    step = recording(made)(model, optimizer)
    source: Any = SimpleNamespace(module=FABRIC.setup_module(model), linear=None)
    images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    assert step.choose(source, (images,)) is not source.module
    assert step.choose(source, (images.float(),)) is source.module
    assert step.choose(source, (images[..., :8],)) is source.module


def test_an_interruption_within_a_recording_ends_the_job() -> None:
    def record(forward: Forward, tensors: tuple[Tensor, ...]) -> Forward:
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("the capture was invalidated")

    with pytest.raises(KeyboardInterrupt):
        train(new_model(), [Phase(1, 4)], graph=recording([], record=record))
