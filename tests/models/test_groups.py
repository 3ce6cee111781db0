import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import small_backbone
from tvf.errors import InputError
from tvf.models.backbones import Backbone, efficientnet_lite0, resnet
from tvf.models.finetune import FineTuneModel
from tvf.models.groups import Group, check_fraction, check_groups, select_groups

fractions = st.floats(0, 1)
units = st.sampled_from(["groups", "params"])
LITE0 = efficientnet_lite0(num_classes=2)
BACKBONES = [
    small_backbone(),
    LITE0,
    resnet("resnet18", 2, weights=None),
    resnet("resnet18", 2, None, "stages"),
]


@pytest.mark.parametrize(
    "backbone", BACKBONES, ids=lambda backbone: f"{backbone.name}-{len(backbone.groups)}"
)
def test_groups_partition_the_parameters_outside_the_head(backbone: Backbone) -> None:
    grouped = [name for group in backbone.groups for name in group.parameters]
    everything = {name for name, _ in backbone.module.named_parameters()}
    head = {f"{backbone.head}.weight", f"{backbone.head}.bias"}
    assert len(grouped) == len(set(grouped))
    assert set(grouped) | head == everything
    assert not set(grouped) & head


@given(first=fractions, second=fractions, unit=units, which=st.integers(0, len(BACKBONES) - 1))
def test_a_larger_fraction_trains_at_least_the_same_groups(
    first: float, second: float, unit: str, which: int
) -> None:
    backbone = BACKBONES[which]
    few, many = sorted((first, second))
    small = select_groups(backbone.module, backbone.groups, few, unit)
    large = select_groups(backbone.module, backbone.groups, many, unit)
    assert large[: len(small)] == small


@given(pct=fractions, unit=units)
def test_fraction_0_trains_no_group_and_1_all(pct: float, unit: str) -> None:
    assert select_groups(LITE0.module, LITE0.groups, 0, unit) == ()
    assert select_groups(LITE0.module, LITE0.groups, 1, unit) == LITE0.groups
    assert len(select_groups(LITE0.module, LITE0.groups, pct, unit)) <= 9


@given(pct=fractions)
def test_unit_params_trains_the_fewest_groups_that_hold_the_fraction(pct: float) -> None:
    chosen = select_groups(LITE0.module, LITE0.groups, pct, "params")
    sizes = [
        sum(LITE0.module.get_parameter(n).numel() for n in group.parameters)
        for group in LITE0.groups
    ]
    held, wanted = sum(sizes[: len(chosen)]), Fraction(pct) * sum(sizes)
    assert held >= wanted - Fraction(1, 1000)
    assert not chosen or sum(sizes[: len(chosen) - 1]) < wanted + Fraction(1, 1000)


@pytest.mark.parametrize(("pct", "count"), [(0, 0), (0.25, 2), (0.5, 4), (0.75, 7), (1.0, 9)])
def test_lite0_trains_the_documented_groups(pct: float, count: int) -> None:
    assert [group.name for group in select_groups(LITE0.module, LITE0.groups, pct)] == [
        "conv_head+bn2",
        "blocks.6",
        "blocks.5",
        "blocks.4",
        "blocks.3",
        "blocks.2",
        "blocks.1",
        "blocks.0",
        "conv_stem+bn1",
    ][:count]


@given(pct=fractions, batches=st.integers(1, 3), frozen_bn=st.sampled_from(["eval", "batch"]))
@settings(deadline=None, max_examples=30)
def test_training_moves_no_frozen_weight_and_in_eval_mode_no_frozen_statistic(
    pct: float, batches: int, frozen_bn: str
) -> None:
    model = FineTuneModel(small_backbone(), pct, frozen_bn=frozen_bn)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.Adam(
        [p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1
    )
    for _ in range(batches):
        model.train()
        optimizer.zero_grad()
        model(torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)).square().sum().backward()
        optimizer.step()
        model.eval()
    trained = {name for group in model.trained_groups for name in group.parameters}
    for name, tensor in model.state_dict().items():
        own = name.removeprefix("module.")
        layer = own.rpartition(".")[0]
        is_statistic = "running" in own or "batches_tracked" in own
        if own in ("mean", "std"):
            may_move = False
        elif is_statistic:
            may_move = frozen_bn == "batch" or f"{layer}.weight" in trained
        else:
            may_move = own in trained or layer == "head"
        assert torch.equal(tensor, before[name]) != may_move, name


@pytest.mark.parametrize("value", [-0.1, 1.5, 25, math.nan, math.inf, "abc", None, True])
def test_a_value_that_is_not_a_fraction_raises_and_names_the_range(value: object) -> None:
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        check_fraction(value)


def test_a_percentage_raises_and_suggests_the_fraction() -> None:
    with pytest.raises(InputError, match=r"did you mean 0\.25\?"):
        check_fraction(25)


@pytest.mark.parametrize(
    ("groups", "problem"),
    [
        ([["bn2", "conv2", "bn1"]], "belong to no group"),
        ([["bn2", "conv2"], ["bn1", "conv1", "conv2"]], "more than one group"),
        ([["bn2", "conv2", "bn1", "conv1", "head"]], "in the head"),
    ],
)
def test_groups_that_are_not_a_partition_raise(groups: list[list[str]], problem: str) -> None:
    module = small_backbone().module
    listed = [
        Group(
            "+".join(layers),
            tuple(f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")),
        )
        for layers in groups
    ]
    with pytest.raises(InputError, match=problem):
        check_groups(module, listed, "head")
