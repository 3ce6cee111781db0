"""Which parameters train besides "the deepest fraction": from the other end, one group, or by their names."""

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
from tvf.config import names
from tvf.config.validate import validate_config
from tvf.errors import InputError
from tvf.frontier.split import TracedModel
from tvf.models.finetune import FineTuneModel, TransferModel
from tvf.models.groups import Group, select_groups, tabulate_groups
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
def test_from_either_end_the_same_number_of_groups_trains(pct: float) -> None:
    top, bottom = _select(pct), _select(pct, direction="bottom")
    assert len(top) == len(bottom)
    assert bottom == SMALL.groups[len(SMALL.groups) - len(top) :]


@given(pct=fractions, unit=units)
def test_bottom_is_top_of_the_groups_in_the_other_order(pct: float, unit: str) -> None:
    assert _select(pct, unit, "bottom") == _select(pct, unit, of=SMALL.groups[::-1])[::-1]


@pytest.mark.parametrize("unit", ["groups", "params"])
def test_all_and_nothing_are_the_same_from_either_end(unit: str) -> None:
    assert _select(1, unit, "bottom") == _select(1, unit) == SMALL.groups
    assert _select(0, unit, "bottom") == ()


@given(name=st.sampled_from(NAMES), pct=st.none() | fractions, sign=st.sampled_from(":="))
def test_a_block_trains_alone_whatever_the_fraction(
    name: str, pct: float | None, sign: str
) -> None:
    model = FineTuneModel(SMALL, pct, direction=f"block{sign}{name}")
    (group,) = model.trained_groups
    assert group.name == name
    assert _training(model) == {*group.parameters, "head.weight", "head.bias"}
    assert model.pct_unfreeze == 0.25


@given(
    names=st.lists(
        st.sampled_from([name for group in SMALL.groups for name in group.parameters]), min_size=1
    )
)
def test_names_train_what_they_name_and_the_head(names: list[str]) -> None:
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


def test_all_names_are_the_whole_backbone() -> None:
    named, whole = (
        FineTuneModel(small_backbone(), None, None, train=".*"),
        FineTuneModel(small_backbone(), 1.0),
    )
    assert named.trained_groups == whole.trained_groups
    assert (named.pct_unfreeze, _training(named)) == (1.0, _training(whole))


@pytest.mark.parametrize(
    "chosen",
    [
        {"direction": "bottom"},
        {"direction": "block:conv2"},
        {"train": r"\.bias"},
        {"train": ["bn1.w", "bn2"]},
    ],
)
def test_what_is_frozen_stays_as_it_is(chosen: dict[str, Any]) -> None:
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
    ("chosen", "told"),
    [
        (
            {"direction": "block:conv3"},
            r"block:conv3 names no group .* Did you mean conv[12]\? .* bn2, conv2, bn1, conv1",
        ),
        ({"direction": "block:"}, r"model.direction='block:' is refused: choose top"),
        ({"direction": "up"}, r"model.direction='up' is refused: choose top"),
        (
            {"train": "conv9"},
            r"model.train='conv9' is refused: it must be found .* bn2.weight, conv2.weight",
        ),
        ({"train": ["bn", "head"]}, r"model.train='head' is refused"),
        ({"train": "(bn"}, r"model.train='\(bn' is no regular expression \(missing \)"),
        ({"train": []}, r"model.train=\[\] is refused"),
        ({"train": [3]}, r"model.train=3 is refused: give regular expressions"),
        (
            {"train": "bn", "direction": "bottom"},
            r"direction=bottom and model.train=bn are refused together",
        ),
    ],
)
def test_what_names_nothing_is_refused_with_what_there_is(
    chosen: dict[str, Any], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        FineTuneModel(SMALL, 0.5, **chosen)


@pytest.mark.parametrize(
    "wrong", [{"direction": "up"}, {"train": "(bn"}, {"train": "bn", "direction": "block:a"}]
)
def test_a_sweep_is_refused_for_what_can_be_known_without_the_network(
    wrong: dict[str, Any],
) -> None:
    with pytest.raises(InputError, match=r"model\.(direction|train)="):
        _config(**wrong)


def test_names_make_the_fraction_void_and_transfer_learning_all_of_it() -> None:
    named = _config(train="bn")
    assert (named["pct_unfreeze"], named["unit"]) == (None, None)
    block = _config(direction="block=blocks.3")
    assert (block["direction"], block["pct_unfreeze"], block["unit"]) == (
        "block:blocks.3",
        None,
        None,
    )
    assert _config(direction="bottom")["pct_unfreeze"] == 0.5
    transfer = _config(_target_="tvf.models.TransferModel", train="(", direction="bottom")
    assert {transfer[key] for key in ("pct_unfreeze", "unit", "direction", "train")} == {None}
    TransferModel(
        small_backbone(), **{key: value for key, value in transfer.items() if key != "_target_"}
    )


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ({"direction": "bottom"}, "fine-tuning-bottom-0.5"),
        ({"direction": "block:conv_head+bn2"}, "fine-tuning-block-conv_head+bn2"),
        ({"direction": "block=blocks.3"}, "fine-tuning-block-blocks.3"),
        ({"train": ["bn"]}, "fine-tuning-train"),
        ({"direction": "top"}, "fine-tuning-0.5"),
        ({"_target_": "tvf.models.TransferModel", "direction": "bottom"}, "transfer-learning"),
    ],
)
def test_a_job_is_called_by_what_trains(model: dict[str, Any], name: str) -> None:
    node = {"_target_": "tvf.models.FineTuneModel", "pct_unfreeze": 0.5, **model}
    root = OmegaConf.create({"model": node, "hydra": {"overrides": {"task": []}}})
    OmegaConf.set_struct(root, True)
    assert names.job_name(_root_=root) == name


def test_jobs_of_one_block_share_a_folder_whatever_their_fraction() -> None:
    def folder(direction: str, *overrides: str) -> str:
        node = {"_target_": "tvf.models.FineTuneModel", "direction": direction}
        tasks = [f"model.direction={direction}", *overrides]
        root = {"model": node, "name": "a", "hydra": {"overrides": {"task": tasks}}}
        return names.job_folder(_root_=OmegaConf.create(root))

    assert folder("block:a", "model.pct_unfreeze=0.5") == folder("block:a") != folder("block:b")
    assert folder("bottom", "model.pct_unfreeze=0.5") != folder("bottom", "model.pct_unfreeze=1")


def test_the_table_of_groups_follows_the_direction() -> None:
    def rows(**chosen: Any) -> list[str]:
        return tabulate_groups(SMALL.module, SMALL.groups, **chosen).splitlines()[2:]

    assert rows(direction="bottom")[1:3] == ["| 0.25 | conv1 | 112 |", "| 0.5 | bn1, conv1 | 120 |"]
    assert rows(direction="block:conv2") == ["| 0.25 | conv2 | 296 |"]
    assert rows(train="^bn1|weight$") == ["| 1 | bn2(part), conv2(part), bn1, conv1(part) | 412 |"]


def test_directions_are_told_apart_in_a_comparison(tmp_path: Any) -> None:
    for direction in ("top", "bottom", "block:conv_head+bn2"):
        for seed in (1, 2):
            named = direction.startswith("block")
            changes = {
                "model.direction": direction,
                **({"model.pct_unfreeze": None} if named else {}),
            }
            add_job(tmp_path, 0.25, seed, changes=changes, pct_unfreeze=0.1111 if named else 0.25)
    (comparison,) = compare(read_sweep(tmp_path))
    assert [each.label.partition(", model.pct")[0] for each in comparison.configurations] == [
        "0.1111, model.direction=block:conv_head+bn2",
        *("0.25, model.direction=bottom", "0.25, model.direction=top"),
    ]


def test_a_block_and_a_fraction_are_told_apart_though_their_shares_differ(tmp_path: Any) -> None:
    add_job(tmp_path, 0.25, 1)
    add_job(tmp_path, 0.5, 1, changes={"model.direction": "block:blocks.3"}, pct_unfreeze=0.1111)
    labels = [each.label for each in compare(read_sweep(tmp_path))[0].configurations]
    assert labels[0] == "0.1111, model.direction=block:blocks.3" and labels[1].startswith("0.25")


def test_dropout_of_zero_changes_nothing_and_leaves_nothing() -> None:
    backbone = small_backbone()
    model = FineTuneModel(backbone, 0.5, head_dropout=0.0)
    pixels = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    state = torch.get_rng_state()
    model.train()(pixels)
    assert torch.equal(torch.get_rng_state(), state)
    assert not backbone.module.get_submodule("head")._forward_pre_hooks


def test_dropout_is_that_of_a_layer_before_the_head_and_evaluation_has_none() -> None:
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


def test_models_over_one_backbone_have_their_own_dropout() -> None:
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
        # Half of what reaches the head are zeros of ReLU's mean at most: count against the undropped input.
        hidden = float((seen[-1] == 0).float().mean())
        assert abs(hidden - rate) < 0.1, rate
    assert len(backbone.module.get_submodule("head")._forward_pre_hooks) == 1


def test_dropout_is_no_part_of_what_is_cut_off_and_drops_after_the_cut_too() -> None:
    pixels = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    model, plain = (FineTuneModel(small_backbone(), 0.0, head_dropout=rate) for rate in (0.5, 0.0))
    for training in (True, False):
        trace, other = (TracedModel(each.train(training), pixels[:3]) for each in (model, plain))
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
def test_what_is_no_rate_of_dropout_is_refused(rate: Any) -> None:
    with pytest.raises(InputError, match=f"model.head_dropout={rate} is refused"):
        FineTuneModel(SMALL, 0.5, head_dropout=rate)
    with pytest.raises(InputError, match="model.head_dropout="):
        _config(head_dropout=rate)


def test_the_shell_takes_a_block_unquoted_and_refuses_one_that_is_not_there(
    shell: Any, tmp_path: Any
) -> None:
    quick = ("epochs=1", "data.limit=8", "data.image_size=32", "data.batch_size=4", "tracker=none")
    refused: Outcome = shell(*quick, "model.direction=block:conv_hed+bn2")
    assert "Did you mean conv_head+bn2? Its groups are conv_head+bn2, blocks.6" in refused.out
    outcome: Outcome = shell(
        *quick, "model.direction=block:conv_head+bn2", "model.head_dropout=0.2"
    )
    assert outcome.code == 0, outcome.out + outcome.err
    assert "[finetune block-conv_head+bn2] trains 1 of 9 groups" in outcome.out
    assert "ignores model.pct_unfreeze, model.unit" in outcome.out
