"""What trains besides the deepest fraction: groups from the other end, or layers by name."""

import itertools
import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import nn

from helpers import Outcome, small_backbone
from helpers.sweeps import add_job, base_config
from tvf.config import build_part, names
from tvf.config.methods import SELECTION
from tvf.config.validate import validate_config
from tvf.errors import InputError
from tvf.frontier.split import TracedModel
from tvf.models.finetune import FineTuneModel, TransferModel
from tvf.models.groups import Group, Selection, pick_groups, select_groups, tabulate_groups
from tvf.records.rows import read_sweep
from tvf.report.comparison import compare

SMALL = small_backbone()
NAMES = [group.name for group in SMALL.groups]
fractions = st.floats(0, 1)
units = st.sampled_from(["groups", "params"])


def _select(
    pct: float, unit: str = "groups", direction: str = "top", of: Any = SMALL.groups
) -> tuple[Group, ...]:
    return select_groups(SMALL.module, of, pct, unit, direction)


def _training(model: FineTuneModel) -> set[str]:
    return {name for name, parameter in model.module.named_parameters() if parameter.requires_grad}


def _config(**model: Any) -> dict[str, Any]:
    config = base_config()
    config["model"] |= model
    return validate_config(OmegaConf.create(config))["model"]


@given(pct=fractions)
def test_both_directions_train_the_same_number_of_groups(pct: float) -> None:
    top, bottom = _select(pct), _select(pct, direction="bottom")
    assert len(top) == len(bottom)
    assert bottom == SMALL.groups[len(SMALL.groups) - len(top) :]


@given(pct=fractions, unit=units)
def test_bottom_is_top_of_the_reversed_groups(pct: float, unit: str) -> None:
    assert _select(pct, unit, "bottom") == _select(pct, unit, of=SMALL.groups[::-1])[::-1]


@pytest.mark.parametrize("unit", ["groups", "params"])
def test_fractions_0_and_1_are_the_same_in_both_directions(unit: str) -> None:
    assert _select(1, unit, "bottom") == _select(1, unit) == SMALL.groups
    assert _select(0, unit, "bottom") == ()


@given(name=st.sampled_from(NAMES), pct=st.none() | fractions)
def test_a_named_group_trains_alone_whatever_the_fraction(name: str, pct: float | None) -> None:
    model = FineTuneModel(SMALL, pct, groups=[name])
    (group,) = model.trained_groups
    assert group.name == name
    assert _training(model) == {*group.parameters, "head.weight", "head.bias"}
    assert model.pct_unfreeze == 0.25


@given(named=st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
def test_named_groups_train_in_the_backbones_order(named: list[str]) -> None:
    model = FineTuneModel(SMALL, None, groups=named)
    assert [group.name for group in model.trained_groups] == [n for n in NAMES if n in named]
    assert model.trained_groups == pick_groups(SMALL.groups, named)
    assert model.pct_unfreeze == len(named) / 4
    parameters = {name for group in model.trained_groups for name in group.parameters}
    assert _training(model) == {*parameters, "head.weight", "head.bias"}


@given(
    names=st.lists(
        st.sampled_from([name for group in SMALL.groups for name in group.parameters]), min_size=1
    )
)
def test_parameters_train_by_name_with_the_head(names: list[str]) -> None:
    model = FineTuneModel(SMALL, None, train=[f"^{re.escape(name)}$" for name in names])
    assert _training(model) == {*names, "head.weight", "head.bias"}
    whole = {group.name: group.parameters for group in SMALL.groups}
    assert [group.name.removesuffix("(part)") for group in model.trained_groups] == [
        name for name in NAMES if {*whole[name]} & {*names}
    ]
    for group in model.trained_groups:
        assert group.name.endswith("(part)") == (
            group.parameters != whole[group.name.removesuffix("(part)")]
        )


def test_a_pattern_for_every_name_trains_the_whole_backbone() -> None:
    named, whole = (
        FineTuneModel(small_backbone(), None, train=".*"),
        FineTuneModel(small_backbone(), 1.0),
    )
    assert named.trained_groups == whole.trained_groups
    assert (named.pct_unfreeze, _training(named)) == (1.0, _training(whole))


@pytest.mark.parametrize(
    "chosen",
    [
        {"direction": "bottom"},
        {"groups": ["conv2"]},
        {"groups": ["conv1", "bn2"]},
        {"train": r"\.bias"},
        {"train": ["bn1.w", "bn2"]},
    ],
)
def test_training_moves_nothing_that_is_frozen(chosen: dict[str, Any]) -> None:
    model = FineTuneModel(small_backbone(), 0.5, **chosen)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.Adam(
        [*model.head_parameters(), *itertools.chain(*model.unfrozen_parameters())],
        0.1,
        weight_decay=0.1,
    )
    model.train()
    model(torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)).square().sum().backward()
    optimizer.step()
    training = _training(model)
    # A BatchNorm layer of which one parameter trains is not frozen.
    moving = {name.partition(".")[0] for name in training if name.startswith("bn")}
    for name, tensor in model.state_dict().items():
        own = name.removeprefix("module.")
        moves = (
            own.partition(".")[0] in moving
            if "running" in own or "tracked" in own
            else own in training
        )
        assert torch.equal(tensor, before[name]) != moves, name


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (
            {"groups": ["conv3"]},
            r"has no group conv3\. Did you mean conv[12]\? .* bn2, conv2, bn1, conv1",
        ),
        ({"groups": ["conv2", "head"]}, r"has no group head\."),
        ({"groups": []}, r"model.groups=\[\] must be a list of group names"),
        ({"groups": "conv2"}, r"model.groups='conv2' must be a list of group names"),
        ({"groups": [3]}, r"model.groups=\[3\] must be a list of group names"),
        ({"groups": ["conv2", "conv2"]}, r"must name each group once, but repeats conv2"),
        ({"direction": "block:conv2"}, r"'block:conv2' must be top .* model.groups=\[layer3\]"),
        ({"direction": "up"}, r"model.direction='up' must be top .* or bottom"),
        (
            {"train": "conv9"},
            r"model.train='conv9' must match the name .* bn2.weight, conv2.weight",
        ),
        ({"train": ["bn", "head"]}, r"model.train='head' must match the name"),
        ({"train": "(bn"}, r"model.train='\(bn' is not a valid regular expression \(missing \)"),
        ({"train": []}, r"model.train=\[\] must name what trains"),
        ({"train": [3]}, r"model.train=3 must be a regular expression"),
        (
            {"train": "bn", "direction": "bottom"},
            r"direction=bottom and model.train=bn cannot be combined",
        ),
        (
            {"groups": ["bn2"], "direction": "bottom"},
            r"direction=bottom and model.groups=\['bn2'\] cannot be combined",
        ),
        (
            {"groups": ["bn2"], "train": "bn"},
            r"model.groups=\['bn2'\] and model.train=bn cannot be combined",
        ),
    ],
)
def test_a_wrong_selection_raises_and_says_what_there_is(
    chosen: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        FineTuneModel(SMALL, 0.5, **chosen)


@pytest.mark.parametrize(
    "wrong",
    [
        {"direction": "up"},
        {"train": "(bn"},
        {"groups": []},
        {"train": "bn", "groups": ["a"]},
        {"train": "bn", "direction": "bottom"},
    ],
)
def test_a_wrong_selection_raises_without_the_network_where_possible(
    wrong: dict[str, Any],
) -> None:
    with pytest.raises(InputError, match=r"model\.(direction|groups|train)="):
        _config(**wrong)


def test_names_clear_the_fraction_and_transfer_learning_the_whole_selection() -> None:
    named = _config(train="bn")
    assert (named["pct_unfreeze"], named["unit"]) == (None, None)
    group = _config(groups=["blocks.3"])
    assert (group["groups"], group["pct_unfreeze"], group["unit"]) == (["blocks.3"], None, None)
    assert _config(direction="bottom")["pct_unfreeze"] == 0.5
    transfer = _config(_target_="tvf.models.TransferModel", train="(", direction="bottom")
    assert {transfer[key] for key in SELECTION} == {None}
    model = build_part({"model": transfer}, "model", backbone=small_backbone())
    assert isinstance(model, TransferModel)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ({"direction": "bottom"}, "fine-tuning-bottom-0.5"),
        ({"groups": ["conv2"]}, "fine-tuning-groups-conv2"),
        ({"groups": ["conv_head+bn2"]}, "fine-tuning-groups-conv_head+bn2"),
        ({"groups": ["blocks.3", "blocks.4"]}, "fine-tuning-groups-blocks.3+blocks.4"),
        ({"train": ["bn"]}, "fine-tuning-train"),
        ({"direction": "top"}, "fine-tuning-0.5"),
        ({"_target_": "tvf.models.TransferModel", "direction": "bottom"}, "transfer-learning"),
    ],
)
def test_a_job_is_named_after_what_trains(model: dict[str, Any], name: str) -> None:
    node = {"_target_": "tvf.models.FineTuneModel", "pct_unfreeze": 0.5, **model}
    root = OmegaConf.create({"model": node, "hydra": {"overrides": {"task": []}}})
    OmegaConf.set_struct(root, True)
    assert names.job_name(_root_=root) == name


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ({"data.train_limit": 100}, "fine-tuning-0.5-train100"),
        ({"data.train_limit": None, "seed": 2}, "fine-tuning-0.5-trainall-seed2"),
        ({"data.fold": 3, "data.train_limit": 40}, "fine-tuning-0.5-train40-fold3"),
        ({"data.limit": 100}, "fine-tuning-0.5"),
    ],
)
def test_a_job_is_named_after_its_limit_and_repetition_if_the_command_sets_them(
    overrides: dict[str, Any], name: str
) -> None:
    node = {"_target_": "tvf.models.FineTuneModel", "pct_unfreeze": 0.5}
    tasks = [f"{key}={value}" for key, value in overrides.items()]
    root = OmegaConf.create({"model": node, "hydra": {"overrides": {"task": tasks}}})
    for key, value in {"data.train_limit": 7, "data.fold": 0, "seed": 1, **overrides}.items():
        OmegaConf.update(root, key, value)
    OmegaConf.set_struct(root, True)
    assert names.job_name(_root_=root) == name


def test_jobs_with_the_same_named_groups_share_a_folder_whatever_their_fraction() -> None:
    def folder(key: str, value: Any, *overrides: str) -> str:
        node = {"_target_": "tvf.models.FineTuneModel", key: value}
        tasks = [f"model.{key}={value}", *overrides]
        root = {"model": node, "name": "a", "hydra": {"overrides": {"task": tasks}}}
        return names.job_folder(_root_=OmegaConf.create(root))

    half, whole = "model.pct_unfreeze=0.5", "model.pct_unfreeze=1"
    assert folder("groups", ["a"], half) == folder("groups", ["a"]) != folder("groups", ["b"])
    assert folder("direction", "bottom", half) != folder("direction", "bottom", whole)


def test_the_table_of_groups_follows_the_selection() -> None:
    def rows(**chosen: Any) -> list[str]:
        return tabulate_groups(SMALL.module, SMALL.groups, Selection(**chosen)).splitlines()[2:]

    assert rows(direction="bottom")[1:3] == ["| 0.25 | conv1 | 112 |", "| 0.5 | bn1, conv1 | 120 |"]
    assert rows(groups=["conv2"]) == ["| 0.25 | conv2 | 296 |"]
    assert rows(train="^bn1|weight$") == ["| 1 | bn2(part), conv2(part), bn1, conv1(part) | 412 |"]


def test_a_comparison_distinguishes_selections(tmp_path: Any) -> None:
    named = {"model.groups": ["conv_head+bn2"], "model.pct_unfreeze": None}
    for changes, share in (
        ({"model.direction": "top"}, 0.25),
        ({"model.direction": "bottom"}, 0.25),
        (named, 0.1111),
    ):
        for seed in (1, 2):
            add_job(tmp_path, 0.25, seed, changes=changes, pct_unfreeze=share)
    (comparison,) = compare(read_sweep(tmp_path))
    labels = [configuration.label for configuration in comparison.configurations]
    assert [label.partition(", model.pct")[0] for label in labels] == [
        "0.1111, model.groups=['conv_head+bn2']",
        "0.25, model.direction=bottom",
        "0.25, model.direction=top",
    ]


def test_a_comparison_distinguishes_a_named_group_from_a_fraction(tmp_path: Any) -> None:
    add_job(tmp_path, 0.25, 1)
    add_job(tmp_path, 0.5, 1, changes={"model.groups": ["blocks.3"]}, pct_unfreeze=0.1111)
    labels = [c.label for c in compare(read_sweep(tmp_path))[0].configurations]
    assert labels[0] == "0.1111, model.groups=['blocks.3']" and labels[1].startswith("0.25")


def test_dropout_0_draws_no_random_number_and_adds_no_hook() -> None:
    backbone = small_backbone()
    model = FineTuneModel(backbone, 0.5, head_dropout=0.0)
    pixels = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    state = torch.get_rng_state()
    model.train()(pixels)
    assert torch.equal(torch.get_rng_state(), state)
    assert not backbone.module.get_submodule("head")._forward_pre_hooks


def test_dropout_equals_a_dropout_layer_before_the_head_and_is_off_in_evaluation() -> None:
    pixels = torch.randint(0, 256, (16, 3, 16, 16), dtype=torch.uint8)
    plain, dropped = (
        FineTuneModel(small_backbone(), 0.0),
        FineTuneModel(small_backbone(), 0.0, head_dropout=0.5),
    )
    assert plain.state_dict().keys() == dropped.state_dict().keys()
    assert torch.equal(plain.eval()(pixels), dropped.eval()(pixels))
    layered = small_backbone().module
    head = nn.Sequential(nn.Dropout(0.5), layered.get_submodule("head"))
    layered.set_submodule("head", head)
    torch.manual_seed(3)
    found = dropped.train()(pixels)
    torch.manual_seed(3)
    layered.eval()
    head.train()
    assert torch.equal(found, layered((pixels / 255 - dropped.mean) / dropped.std))
    assert not torch.equal(found, plain.train()(pixels))


def test_models_that_share_a_backbone_have_their_own_dropout() -> None:
    backbone, pixels = small_backbone(), torch.randint(0, 256, (64, 3, 16, 16), dtype=torch.uint8)
    models = {rate: FineTuneModel(backbone, 0.0, head_dropout=rate) for rate in (0.0, 0.5, 0.9)}
    seen: list[torch.Tensor] = []
    for rate in (0.5, 0.9, 0.0, 0.9, 0.5):
        models[rate].train()(pixels)
        handle = backbone.module.get_submodule("head").register_forward_pre_hook(
            lambda _, inputs: seen.append(*inputs)
        )
        models[rate](pixels)
        handle.remove()
        # Means after ReLU are hardly ever exactly 0, so zeros are dropped inputs.
        hidden = float((seen[-1] == 0).float().mean())
        assert abs(hidden - rate) < 0.1, rate
    assert len(backbone.module.get_submodule("head")._forward_pre_hooks) == 1


def test_dropout_is_in_the_suffix_and_not_in_the_prefix() -> None:
    pixels = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    model, plain = (FineTuneModel(small_backbone(), 0.0, head_dropout=rate) for rate in (0.5, 0.0))
    for training in (True, False):
        trace, other = (TracedModel(net.train(training), pixels[:3]) for net in (model, plain))
        cut = trace.find_cut()
        assert cut.fingerprint == other.find_cut().fingerprint
        prefix, suffix = trace.extract(None, cut), trace.extract(cut, None)
        assert prefix and suffix
        torch.manual_seed(2)
        whole = model(pixels)
        torch.manual_seed(2)
        assert torch.equal(whole, suffix(*prefix(pixels)))
        assert torch.equal(whole, plain(pixels)) != training


@pytest.mark.parametrize("rate", [1, 1.0, -0.1, float("nan"), "0.5", True])
def test_a_value_that_is_not_a_dropout_rate_raises(rate: Any) -> None:
    with pytest.raises(InputError, match=f"model.head_dropout={rate} must be a number"):
        FineTuneModel(SMALL, 0.5, head_dropout=rate)
    with pytest.raises(InputError, match="model.head_dropout="):
        _config(head_dropout=rate)


@pytest.mark.slow
def test_the_shell_accepts_group_names_and_suggests_one_for_a_typo(
    shell: Any, tmp_path: Any
) -> None:
    quick = ("epochs=1", "data.limit=32", "data.image_size=32", "data.batch_size=4", "tracker=none")
    wrong: Outcome = shell(*quick, "model.groups=[conv_hed+bn2]")
    assert "Did you mean conv_head+bn2? Its groups are conv_head+bn2, blocks.6" in wrong.out
    outcome: Outcome = shell(*quick, "model.groups=[conv_head+bn2]", "model.head_dropout=0.2")
    assert outcome.code == 0, outcome.out + outcome.err
    assert "[finetune groups-conv_head+bn2] trains 1 of 9 groups" in outcome.out
    assert "ignoring model.pct_unfreeze, model.unit" in outcome.out
