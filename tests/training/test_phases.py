"""Phases: what recipes return, and the invariants of training through them."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils import parameters_to_vector
from torch.optim import Optimizer

from helpers import small_backbone
from helpers.training import train
from tvf.errors import InputError
from tvf.models.finetune import FineTuneModel
from tvf.training.ema import ExponentialMovingAverage
from tvf.training.loop import LoopOptions
from tvf.training.optimizer import DiscriminativeOptimizer
from tvf.training.phases import Direct, EarlyStopping, Gradual, LpFt, Phase, Phases
from tvf.training.state import EpochResult
from tvf.training.step import StepOptions

NEVER = EarlyStopping()
SGD = DiscriminativeOptimizer(torch.optim.SGD, 0.01, 0.001, weight_decay=0.1)
MOMENTUM = DiscriminativeOptimizer(
    lambda groups: torch.optim.SGD(groups, momentum=0.9), 0.01, 0.001, weight_decay=0.1
)
RECIPES = {
    "lp_ft": LpFt(head_epochs=2),
    "gradual": Gradual(),
    "more, less, more": Phases(
        [{"share": 0.4}, {"share": 0.2, "fraction": 0}, {"share": 0.4, "fraction": 0.5}]
    ),
}


def _values(model: FineTuneModel) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_in_every_phase_exactly_the_unfrozen_parameters_change(recipe: Any) -> None:
    """Momentum and weight decay would move any weight that the optimizer still has."""
    model = FineTuneModel(small_backbone(), 1.0)
    at_start: list[tuple[dict[str, Tensor], set[str]]] = []

    def begun(index: int, optimizer: Optimizer) -> None:
        training = {name for name, p in model.named_parameters() if p.requires_grad}
        at_start.append((_values(model), training))

    def after(epoch: EpochResult) -> None:
        before, training = at_start[-1]
        assert len(at_start) == epoch.phase
        for name, value in _values(model).items():
            assert torch.equal(value, before[name]) == (name not in training), name

    train(model, recipe(5, 4, NEVER), optimizer=MOMENTUM, begun=begun, on_epoch=after)
    assert len(at_start) == len(recipe(5, 4, NEVER))


@given(epochs=st.integers(2, 40), groups=st.integers(0, 12), epochs_each=st.integers(1, 3))
def test_phases_add_up_to_all_epochs_and_end_with_the_groups_of_direct(
    epochs: int, groups: int, epochs_each: int
) -> None:
    (direct,) = Direct()(epochs, groups, NEVER)
    recipes = [LpFt(), LpFt(head_epochs=1), Phases([{"share": 0.5, "fraction": 0}, {"share": 0.5}])]
    if epochs > epochs_each:
        recipes.append(Gradual(epochs_each))
    for recipe in recipes:
        phases = recipe(epochs, groups, NEVER)
        assert sum(phase.epochs for phase in phases) == direct.epochs
        assert all(phase.epochs > 0 for phase in phases)
        assert phases[-1].groups == direct.groups
        joined = [phase.groups for phase in phases]
        assert joined == sorted(set(joined)) or (groups == 0 and set(joined) == {0})


@given(epochs=st.integers(1, 30), groups=st.integers(0, 9), patience=st.none() | st.integers(1, 5))
def test_lp_ft_without_a_head_phase_is_direct(
    epochs: int, groups: int, patience: int | None
) -> None:
    stopping, direct = EarlyStopping(patience), Direct()
    assert LpFt()(epochs, 0, stopping) == direct(epochs, 0, stopping)
    recipe = LpFt(head_epochs=0, lr=1e-5, backbone_lr=1e-6)
    assert recipe(epochs, groups, stopping) == direct(epochs, groups, stopping)


@pytest.mark.parametrize(
    ("recipe", "epochs", "groups", "expected"),
    [
        (Gradual(), 6, 3, [(0, 1), (1, 1), (2, 1), (3, 3)]),
        (Gradual(), 3, 9, [(0, 1), (4, 1), (9, 1)]),
        (Gradual(2), 6, 9, [(0, 2), (4, 2), (9, 2)]),
    ],
)
def test_gradual_unfreezes_group_by_group_or_several_at_once_if_epochs_are_few(
    recipe: Gradual, epochs: int, groups: int, expected: list[tuple[int, int]]
) -> None:
    phases = recipe(epochs, groups, NEVER)
    assert [(phase.groups, phase.epochs) for phase in phases] == expected


@pytest.mark.parametrize(
    "optimizer",
    [MOMENTUM, DiscriminativeOptimizer(torch.optim.Adam, 0.01, 0.001)],
    ids=["momentum", "Adam"],
)
def test_splitting_a_phase_in_two_changes_nothing(optimizer: DiscriminativeOptimizer) -> None:
    """The second phase keeps the optimizer's state: two equal phases are one, bit for bit."""
    found = []
    for phases in ([Phase(4, 2)], [Phase(1, 2), Phase(3, 2)]):
        model = FineTuneModel(small_backbone(), 0.5)
        train(model, phases, optimizer=optimizer)
        found.append(_values(model))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_groups_keep_their_momenta_when_another_one_joins() -> None:
    model = FineTuneModel(small_backbone(), 0.5)
    states: list[list[Any]] = []

    def begun(index: int, optimizer: Optimizer) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        states.append([optimizer.state[p].get("momentum_buffer") for p in parameters])

    train(model, [Phase(1, 0), Phase(1, 1), Phase(1, 2)], optimizer=MOMENTUM, begun=begun)
    # Weight and bias of the head, then of bn2, then of conv2.
    assert [[buffer is not None for buffer in buffers] for buffers in states] == [
        [False, False],
        [True, True, False, False],
        [True, True, True, True, False, False],
    ]


def test_a_layer_decay_of_1_is_none_and_a_smaller_one_slows_groups_further_from_the_head() -> None:
    found = []
    for layer_decay in (None, 1.0):
        model = FineTuneModel(small_backbone(), 1.0)
        adam = DiscriminativeOptimizer(torch.optim.Adam, 0.01, 0.001, layer_decay=layer_decay)
        train(model, [Phase(2, 4)], optimizer=adam)
        found.append(_values(model))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    model = FineTuneModel(small_backbone(), 1.0)
    slowing = DiscriminativeOptimizer(torch.optim.Adam, 0.01, 0.001, layer_decay=0.5)
    groups = slowing(model.head_parameters(), model.unfrozen_parameters()).param_groups
    assert [group["lr"] for group in groups] == pytest.approx(
        [0.01, 0.001, 0.0005, 0.00025, 0.000125]
    )


def test_weight_decay_spares_biases_and_normalisation_unless_decay_all() -> None:
    model = FineTuneModel(small_backbone(), 1.0)
    for decay_all in (True, False):
        optimizer = DiscriminativeOptimizer(torch.optim.SGD, 0.1, 0.01, 0.5, decay_all=decay_all)
        groups = optimizer(model.head_parameters(), model.unfrozen_parameters()).param_groups
        spared = {p for group in groups if not group["weight_decay"] for p in group["params"]}
        expected = {p for p in model.parameters() if p.ndim <= 1}
        assert spared == (set() if decay_all else expected)
        assert sum(len(group["params"]) for group in groups) == len([*model.parameters()])
        assert {group["lr"] for group in groups if group["part"] == "head"} == {0.1}


def test_an_average_with_decay_0_equals_the_weights() -> None:
    found = []
    for average in (None, ExponentialMovingAverage(0.0)):
        model = FineTuneModel(small_backbone(), 0.5)
        history: list[EpochResult] = []
        train(
            model,
            [Phase(2, 2)],
            steps=StepOptions(8, seed=1, average=average and average(model)),
            on_epoch=history.append,
        )
        found.append((_values(model), [(epoch.val_loss, epoch.val_acc) for epoch in history]))
    assert found[0][1] == found[1][1]
    assert all(torch.equal(found[0][0][name], found[1][0][name]) for name in found[0][0])


def test_an_average_soon_forgets_the_initial_weights_and_leaves_the_model_alone() -> None:
    """d is the smaller of decay and (1 + n) / (10 + n) after n steps; counts are not averaged."""
    model = FineTuneModel(small_backbone(), 0.0)
    (weight, _), count = model.head_parameters(), model.module.bn1.num_batches_tracked  # type: ignore[union-attr]
    with torch.no_grad():
        weight.zero_()
    average, expected = ExponentialMovingAverage(0.2)(model), 0.0
    for n, value in enumerate((1.0, 2.0, 3.0)):
        with torch.no_grad():
            weight.fill_(value)
            count.fill_(n)  # type: ignore[operator]
        average.update()
        d = min(0.2, (1 + n) / (10 + n))
        expected = d * expected + (1 - d) * value
    with average.in_place():
        assert weight.tolist()[0] == pytest.approx(8 * [expected], rel=1e-6)
        assert int(count) == 2  # type: ignore[arg-type]
    assert torch.equal(weight, torch.full_like(weight, 3.0))
    again = ExponentialMovingAverage(0.2)(model)
    again.load_state_dict(average.state_dict())
    average.update()
    again.update()
    name = "module.head.weight"
    assert torch.equal(average.state_dict()[name], again.state_dict()[name])


@given(scores=st.lists(st.integers(0, 5), min_size=1, max_size=12), patience=st.integers(1, 4))
def test_a_phase_ends_after_patience_epochs_in_a_row_without_improvement(
    scores: list[int], patience: int
) -> None:
    stopping = EarlyStopping(patience)
    epochs = range(1, len(scores) + 1)
    ended = next((n for n in epochs if stopping.ends(list(map(float, scores[:n])))), None)
    waits = [n - int(np.argmax(scores[:n])) - 1 for n in epochs]
    assert ended == next((n for n, waited in enumerate(waits, 1) if waited >= patience), None)
    assert not EarlyStopping().ends(list(map(float, scores)))


def test_an_epoch_must_be_better_by_more_than_min_delta() -> None:
    rising = [0.1, 0.15, 0.2, 0.25]
    assert not EarlyStopping(2).ends(rising)
    assert EarlyStopping(2, 0.2).ends(rising)
    assert not EarlyStopping(2, 0.08).ends(rising)


def test_a_phase_that_stops_early_gives_its_best_weights_to_the_next() -> None:
    """`begun` sees the weights that the second phase starts with."""
    model = FineTuneModel(small_backbone(), 1.0)
    history: list[EpochResult] = []
    scores = {1: 0.5, 2: 0.6, 3: 0.4, 4: 0.3}
    weights: dict[int, Tensor] = {}
    initial: list[Tensor] = []

    def after(epoch: EpochResult) -> None:
        history.append(epoch)
        weights[epoch.epoch] = parameters_to_vector(model.parameters()).clone()

    def begun(index: int, optimizer: Optimizer) -> None:
        initial.append(parameters_to_vector(model.parameters()).clone())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EpochResult, "score", lambda self, metric: scores.get(self.epoch, 0.1))
        phases = [Phase(9, 4, stopping=EarlyStopping(2)), Phase(1, 4)]
        best = train(model, phases, optimizer=SGD, begun=begun, on_epoch=after)
    assert [epoch.phase for epoch in history] == [1, 1, 1, 1, 2]
    assert torch.equal(initial[1], weights[2]) and not torch.equal(initial[1], weights[4])
    assert best is not None and best.epoch == 2


def test_the_end_of_a_phase_is_reported_once_even_if_the_job_pauses_there() -> None:
    epochs_at_end: list[int] = []
    phases = [Phase(2, 0), Phase(2, 1), Phase(1, 2)]
    for stop_after in (2, None):
        epochs_at_end.clear()
        model = FineTuneModel(small_backbone(), 0.5)
        best = train(
            model,
            phases,
            options=LoopOptions(stop_after=stop_after),
            on_phase=lambda state: epochs_at_end.append(len(state["history"])),
        )
        assert epochs_at_end == ([2] if stop_after else [2, 4])
        assert (best is None) == (stop_after is not None)


WRONG = [
    (lambda: EarlyStopping(0), "early_stopping.patience=0"),
    (lambda: EarlyStopping(2, -0.1), "early_stopping.min_delta=-0.1"),
    (lambda: LpFt(head_epochs=-1), "recipe.head_epochs=-1"),
    (
        lambda: LpFt(head_epochs=3)(3, 1, NEVER),
        "recipe.head_epochs=3 must be below epochs=3",
    ),
    (lambda: LpFt()(1, 1, NEVER), "^epochs=1 must be at least 2"),
    (lambda: LpFt(lr=0), "recipe.lr=0"),
    (lambda: Gradual(0), "recipe.epochs_each=0"),
    (lambda: Gradual(3)(3, 1, NEVER), "recipe.epochs_each=3 must be below epochs=3"),
    (lambda: Phases([]), "recipe.phases="),
    (lambda: Phases("direct"), "recipe.phases='direct'"),  # type: ignore[arg-type]
    (lambda: Phases([3]), r"recipe.phases\[0\]=3"),  # type: ignore[list-item]
    (
        lambda: Phases([{"epochs": 1, "share": 0.5}]),
        r"recipe.phases\[0\] must have either epochs or share",
    ),
    (
        lambda: Phases([{"epoch": 1}]),
        r"recipe.phases\[0\].epoch is not an option: did you mean recipe.phases\[0\].epochs",
    ),
    (
        lambda: Phases([{"epochs": 1}, {"epochs": 1, "fraction": 2}]),
        r"recipe.phases\[1\].fraction=2",
    ),
    (lambda: Phases([{"epochs": 1, "patience": 0}]), r"recipe.phases\[0\].patience=0"),
    (
        lambda: Phases([{"epochs": 1}, {"epochs": 1}])(3, 1, NEVER),
        r"have 1, 1 epochs, which must .* add up to epochs=3",
    ),
    (
        lambda: Phases([{"share": 0.1}, {"share": 0.9}])(3, 1, NEVER),
        r"have 0, 3 epochs, which must all be above 0",
    ),
    (lambda: Phases([{"epochs": 2, "fraction": 0.5}]), "must train all of the job's groups"),
    (
        lambda: Phases([{"share": 0.5}, {"share": 0.4}]),
        "must have shares that add up to 1, but they add up to 0.9",
    ),
    (lambda: ExponentialMovingAverage(1.0), "average.decay=1.0"),
    (
        lambda: DiscriminativeOptimizer(torch.optim.SGD, 1, 1, layer_decay=0),
        "optimizer.layer_decay=0",
    ),
]


@pytest.mark.parametrize(("make", "message"), WRONG, ids=[message for _, message in WRONG])
def test_values_that_break_a_rule_are_named(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
