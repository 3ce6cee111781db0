"""Phases: what recipes list, and the laws that training through them keeps."""

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
from tvf.training.optimizer import DiscriminativeOptimizer
from tvf.training.phases import Direct, EarlyStopping, Gradual, LpFt, Phase, Phases
from tvf.training.state import EpochResult
from tvf.training.step import StepOptions

NEVER = EarlyStopping()
SGD = DiscriminativeOptimizer(torch.optim.SGD, 0.01, 0.001, weight_decay=0.1)
MOMENTUM = DiscriminativeOptimizer(
    lambda groups: torch.optim.SGD(groups, momentum=0.9), 0.01, 0.001, weight_decay=0.1
)
WAYS_TO_GO = {
    "lp_ft": LpFt(head_epochs=2),
    "gradual": Gradual(),
    "there and back": Phases(
        [{"share": 0.4}, {"share": 0.2, "fraction": 0}, {"share": 0.4, "fraction": 0.5}]
    ),
}


def _values(model: FineTuneModel) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


@pytest.mark.parametrize("recipe", WAYS_TO_GO.values(), ids=list(WAYS_TO_GO))
def test_in_every_phase_what_is_frozen_stays_and_what_trains_moves(recipe: Any) -> None:
    """With momentum and weight decay, which move weights without a gradient wherever an optimizer still has them."""
    model = FineTuneModel(small_backbone(), 1.0)
    at_start: list[tuple[dict[str, Tensor], set[str]]] = []

    def begun(index: int, optimizer: Optimizer) -> None:
        at_start.append(
            (_values(model), {name for name, p in model.named_parameters() if p.requires_grad})
        )

    def after(epoch: EpochResult) -> None:
        before, training = at_start[-1]
        assert len(at_start) == epoch.phase
        for name, value in _values(model).items():
            assert torch.equal(value, before[name]) == (name not in training), name

    train(model, recipe(5, 4, NEVER), optimizer=MOMENTUM, begun=begun, on_epoch=after)
    assert len(at_start) == len(recipe(5, 4, NEVER))


@given(epochs=st.integers(2, 40), groups=st.integers(0, 12), each=st.integers(1, 3))
def test_phases_have_all_epochs_and_end_with_the_groups_of_direct(
    epochs: int, groups: int, each: int
) -> None:
    (direct,) = Direct()(epochs, groups, NEVER)
    recipes = [LpFt(), LpFt(head_epochs=1), Phases([{"share": 0.5, "fraction": 0}, {"share": 0.5}])]
    if epochs > each:
        recipes.append(Gradual(each))
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
    assert LpFt()(epochs, 0, EarlyStopping(patience)) == Direct()(
        epochs, 0, EarlyStopping(patience)
    )
    recipe = LpFt(head_epochs=0, lr=1e-5, backbone_lr=1e-6)
    assert recipe(epochs, groups, EarlyStopping(patience)) == Direct()(
        epochs, groups, EarlyStopping(patience)
    )


def test_gradual_unfreezes_one_group_after_another_and_several_where_epochs_are_few() -> None:
    assert [(p.groups, p.epochs) for p in Gradual()(6, 3, NEVER)] == [
        (0, 1),
        (1, 1),
        (2, 1),
        (3, 3),
    ]
    assert [(p.groups, p.epochs) for p in Gradual()(3, 9, NEVER)] == [(0, 1), (4, 1), (9, 1)]
    assert [(p.groups, p.epochs) for p in Gradual(2)(6, 9, NEVER)] == [(0, 2), (4, 2), (9, 2)]


@pytest.mark.parametrize(
    "optimizer",
    [MOMENTUM, DiscriminativeOptimizer(torch.optim.Adam, 0.01, 0.001)],
    ids=["momentum", "Adam"],
)
def test_a_phase_that_changes_nothing_changes_nothing(optimizer: DiscriminativeOptimizer) -> None:
    """Nothing that the optimizer has gathered is lost: two phases alike are one, bit for bit."""
    found = []
    for phases in ([Phase(4, 2)], [Phase(1, 2), Phase(3, 2)]):
        model = FineTuneModel(small_backbone(), 0.5)
        train(model, phases, optimizer=optimizer)
        found.append(_values(model))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_groups_that_go_on_keep_their_momenta_when_another_joins() -> None:
    model = FineTuneModel(small_backbone(), 0.5)
    states: list[list[Any]] = []

    def begun(index: int, optimizer: Optimizer) -> None:
        parameters = [
            parameter for group in optimizer.param_groups for parameter in group["params"]
        ]
        states.append(
            [optimizer.state[parameter].get("momentum_buffer") for parameter in parameters]
        )

    train(model, [Phase(1, 0), Phase(1, 1), Phase(1, 2)], optimizer=MOMENTUM, begun=begun)
    # The head's weight and bias; bn2's; conv2's.
    assert [[buffer is not None for buffer in each] for each in states] == [2 * [False], 2 * [True] + 2 * [False], [
        *(4 * [True]), *(2 * [False])
    ]]  # fmt: skip


def test_a_layer_decay_of_1_is_two_rates_and_a_smaller_one_slows_deeper_frozen_groups() -> None:
    found = []
    for layer_decay in (None, 1.0):
        model = FineTuneModel(small_backbone(), 1.0)
        train(
            model,
            [Phase(2, 4)],
            optimizer=DiscriminativeOptimizer(
                torch.optim.Adam, 0.01, 0.001, layer_decay=layer_decay
            ),
        )
        found.append(_values(model))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    model = FineTuneModel(small_backbone(), 1.0)
    slowing = DiscriminativeOptimizer(torch.optim.Adam, 0.01, 0.001, layer_decay=0.5)
    groups = slowing(model.head_parameters(), model.unfrozen_parameters()).param_groups
    assert [group["lr"] for group in groups] == pytest.approx(
        [0.01, 0.001, 0.0005, 0.00025, 0.000125]
    )


def test_weight_decay_spares_biases_and_normalisation_where_it_is_told_to() -> None:
    model = FineTuneModel(small_backbone(), 1.0)
    for decay_all in (True, False):
        optimizer = DiscriminativeOptimizer(torch.optim.SGD, 0.1, 0.01, 0.5, decay_all=decay_all)
        groups = optimizer(model.head_parameters(), model.unfrozen_parameters()).param_groups
        spared = {p for group in groups if not group["weight_decay"] for p in group["params"]}
        expected = {p for p in model.parameters() if p.ndim <= 1}
        assert spared == (set() if decay_all else expected)
        assert sum(len(group["params"]) for group in groups) == len([*model.parameters()])
        assert {group["lr"] for group in groups if group["part"] == "head"} == {0.1}


def test_an_average_without_memory_is_the_weights_themselves() -> None:
    found = []
    for average in (None, ExponentialMovingAverage(0.0)):
        model = FineTuneModel(small_backbone(), 0.5)
        history: list[EpochResult] = []
        train(
            model,
            [Phase(2, 2)],
            ways=StepOptions(8, average=average and average(model)),
            on_epoch=history.append,
        )
        found.append((_values(model), [(epoch.val_loss, epoch.val_acc) for epoch in history]))
    assert found[0][1] == found[1][1]
    assert all(torch.equal(found[0][0][name], found[1][0][name]) for name in found[0][0])


def test_an_average_forgets_its_beginning_soon_and_leaves_the_weights_alone() -> None:
    """d is (1 + n) / (10 + n) after n steps until that is more than the decay; counts are not averaged."""
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
    for each in (average, again):
        each.update()
    assert torch.equal(*(each.state_dict()["module.head.weight"] for each in (average, again)))


@given(scores=st.lists(st.integers(0, 5), min_size=1, max_size=12), patience=st.integers(1, 4))
def test_patience_ends_when_so_many_epochs_in_a_row_brought_nothing(
    scores: list[int], patience: int
) -> None:
    stopping = EarlyStopping(patience)
    ended = next(
        (n for n in range(1, len(scores) + 1) if stopping.ends(list(map(float, scores[:n])))), None
    )
    waits = [n - int(np.argmax(scores[:n])) - 1 for n in range(1, len(scores) + 1)]
    assert ended == next((n for n, waited in enumerate(waits, 1) if waited >= patience), None)
    assert not EarlyStopping().ends(list(map(float, scores)))


def test_an_epoch_must_be_better_by_more_than_min_delta() -> None:
    rising = [0.1, 0.15, 0.2, 0.25]
    assert not EarlyStopping(2).ends(rising)
    assert EarlyStopping(2, 0.2).ends(rising)
    assert not EarlyStopping(2, 0.08).ends(rising)


def test_a_phase_that_stops_early_gives_its_best_weights_to_the_next() -> None:
    """With a rate of nothing the second phase shows the weights that it began with."""
    model = FineTuneModel(small_backbone(), 1.0)
    history: list[EpochResult] = []
    scores = {1: 0.5, 2: 0.6, 3: 0.4, 4: 0.3}
    weights: dict[int, Tensor] = {}
    begins: list[Tensor] = []

    def after(epoch: EpochResult) -> None:
        history.append(epoch)
        weights[epoch.epoch] = parameters_to_vector(model.parameters()).clone()

    def begun(index: int, optimizer: Optimizer) -> None:
        begins.append(parameters_to_vector(model.parameters()).clone())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EpochResult, "score", lambda self, metric: scores.get(self.epoch, 0.1))
        phases = [Phase(9, 4, stopping=EarlyStopping(2)), Phase(1, 4)]
        best = train(model, phases, optimizer=SGD, begun=begun, on_epoch=after)
    assert [epoch.phase for epoch in history] == [1, 1, 1, 1, 2]
    assert torch.equal(begins[1], weights[2]) and not torch.equal(begins[1], weights[4])
    assert best is not None and best.epoch == 2


def test_the_end_of_a_phase_is_told_once_even_to_a_job_that_pauses_there() -> None:
    told: list[int] = []
    phases = [Phase(2, 0), Phase(2, 1), Phase(1, 2)]
    for stop_after in (2, None):
        told.clear()
        model = FineTuneModel(small_backbone(), 0.5)
        best = train(
            model,
            phases,
            stop_after=stop_after,
            on_phase=lambda state: told.append(len(state["history"])),
        )
        assert told == ([2] if stop_after else [2, 4])
        assert (best is None) == (stop_after is not None)


WRONG = [
    (lambda: EarlyStopping(0), "early_stopping.patience=0"),
    (lambda: EarlyStopping(2, -0.1), "early_stopping.min_delta=-0.1"),
    (lambda: LpFt(head_epochs=-1), "recipe.head_epochs=-1"),
    (
        lambda: LpFt(head_epochs=3)(3, 1, NEVER),
        "recipe.head_epochs=3 and epochs=3 cannot be divided",
    ),
    (lambda: LpFt()(1, 1, NEVER), "^epochs=1 cannot be divided"),
    (lambda: LpFt(lr=0), "recipe.lr=0"),
    (lambda: Gradual(0), "recipe.epochs_each=0"),
    (lambda: Gradual(3)(3, 1, NEVER), "recipe.epochs_each=3 leaves nothing of epochs=3"),
    (lambda: Phases([]), "recipe.phases="),
    (lambda: Phases("direct"), "recipe.phases='direct'"),  # type: ignore[arg-type]
    (lambda: Phases([3]), r"recipe.phases\[0\]=3"),  # type: ignore[list-item]
    (lambda: Phases([{"epochs": 1, "share": 0.5}]), r"recipe.phases\[0\] needs epochs or a share"),
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
        r"have 1, 1 epochs, which must .* epochs=3",
    ),
    (
        lambda: Phases([{"share": 0.1}, {"share": 0.9}])(3, 1, NEVER),
        r"have 0, 3 epochs, which must be above 0",
    ),
    (lambda: Phases([{"epochs": 2, "fraction": 0.5}]), "never train all of the job's groups"),
    (
        lambda: Phases([{"share": 0.5}, {"share": 0.4}]),
        "shares that add up to 0.9: they must add up to 1",
    ),
    (lambda: ExponentialMovingAverage(1.0), "average.decay=1.0"),
    (
        lambda: DiscriminativeOptimizer(torch.optim.SGD, 1, 1, layer_decay=0),
        "optimizer.layer_decay=0",
    ),
    (lambda: DiscriminativeOptimizer(torch.optim.SGD, 1, 1, clip_norm=0), "optimizer.clip_norm=0"),
]


@pytest.mark.parametrize(("make", "message"), WRONG, ids=[message for _, message in WRONG])
def test_values_that_break_a_rule_are_named(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
