"""LoRA, BitFit and normalisation alone among the options: names, ignored options, errors."""

from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from helpers.configs import compose_once
from tvf.config import (
    OWN_MODELS,
    explain_ignored,
    known_fraction,
    method_of,
    names,
    result_config,
    validate_config,
)
from tvf.config.build import to_plain
from tvf.errors import InputError

SMALL = ("backbone._target_=helpers.small_backbone", "tracker=none")


def _root(*overrides: str) -> DictConfig:
    root = OmegaConf.create({**to_plain(compose_once(*overrides)), "hydra": {}})
    root.hydra = {"overrides": {"task": [*overrides]}}
    return root


def _note_of(cfg: DictConfig) -> str | None:
    return explain_ignored("job", to_plain(cfg.model), to_plain(cfg.optimizer))


def _validated(*overrides: str) -> dict[str, Any]:
    return validate_config(compose_once(*SMALL, *overrides))


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (("model=lora",), "lora-0.5"),
        (("model=lora", "model.rank=4", "seed=2"), "lora-0.5-seed2-rank4"),
        (("model=lora", "model.groups=[layer3]"), "lora-groups-layer3"),
        (("model=bitfit", "model.pct_unfreeze=1"), "bitfit-1.0"),
        (("model=norm", "model.direction=bottom"), "norm-bottom-0.5"),
        (("model=finetune", "model.rank=4"), "fine-tuning-0.5"),
        (("model=transfer", "model.rank=4"), "transfer-learning"),
        (("model=probe", "model.rank=4", "seed=2"), "probe-seed2"),
    ],
)
def test_jobs_are_named_by_what_trains(overrides: tuple[str, ...], name: str) -> None:
    assert names.job_name(_root_=_root(*overrides)) == name


@pytest.mark.parametrize("model", ["finetune", "transfer", "probe", "bitfit", "norm"])
def test_a_sweep_over_ranks_trains_models_without_adapters_once(model: str) -> None:
    four, eight = (_root(f"model={model}", f"model.rank={rank}", "name=x") for rank in (4, 8))
    assert names.own_folder(four) == names.own_folder(eight)
    configs = [_validated(f"model={model}", f"model.rank={rank}") for rank in (4, 8)]
    assert result_config(configs[0]) == result_config(configs[1])
    note = _note_of(four)
    assert note is not None and "model.rank" in note
    lora = [_validated("model=lora", f"model.rank={rank}") for rank in (4, 8)]
    assert result_config(lora[0]) != result_config(lora[1])


def test_a_sweep_over_fractions_trains_a_probe_once() -> None:
    options = [("model.pct_unfreeze=0",), ("model.pct_unfreeze=0.5", "model.direction=bottom")]
    folders = {names.own_folder(_root("model=probe", *each, "name=x")) for each in options}
    configs = [_validated("model=probe", *each) for each in options]
    assert len(folders) == 1 and result_config(configs[0]) == result_config(configs[1])
    note = _note_of(_root("model=probe", *options[1]))
    assert note is not None and note.startswith("job: model=probe trains only the head; ignoring")


@pytest.mark.parametrize("model", ["transfer", "probe"])
def test_how_a_backbone_trains_is_no_setting_of_a_head(model: str) -> None:
    plain = (f"model={model}",)
    pulled = (*plain, "optimizer.l2_sp=0.1", "optimizer.layer_decay=0.5")
    assert result_config(_validated(*pulled)) == result_config(_validated(*plain))
    note = f"job: model={model} trains only the head; "
    note += "ignoring optimizer.l2_sp, optimizer.layer_decay."
    assert _note_of(_root(*pulled, "model.pct_unfreeze=null", "model.rank=null")) == note
    with pytest.raises(InputError, match="optimizer.l2_sp=-1"):
        _validated(f"model={model}", "optimizer.l2_sp=-1")


def test_a_pull_of_weights_is_no_setting_of_adapters() -> None:
    pulled = _validated("model=lora", "optimizer.l2_sp=0.1", "optimizer.layer_decay=0.5")
    assert result_config(pulled) == result_config(
        _validated("model=lora", "optimizer.layer_decay=0.5")
    )
    note = "job: model=lora keeps the weights of its layers; ignoring optimizer.l2_sp."
    assert _note_of(_root("model=lora", "optimizer.l2_sp=0.1")) == note
    assert _note_of(_root("model=norm", "optimizer.l2_sp=0.1", "model.rank=null")) is None


def test_at_fraction_zero_there_are_no_adapters_to_differ() -> None:
    zero = ("model=lora", "model.pct_unfreeze=0")
    configs = [_validated(*zero, f"model.rank={rank}") for rank in (4, 8)]
    assert result_config(configs[0]) == result_config(configs[1])
    note = _note_of(_root(*zero, "model.rank=4"))
    assert note is not None and note.startswith("job: model=lora has no adapters at")


def test_every_method_has_its_own_choice_and_fraction() -> None:
    choices = [method_of({"_target_": target}).choice for target in OWN_MODELS]
    for choice in choices:
        model = to_plain(compose_once(f"model={choice}").model)
        assert method_of(model).choice == choice
        assert known_fraction(model) == (0 if choice in ("transfer", "probe") else 0.5)
    assert method_of({"_target_": "mine.Model"}).choice == "finetune"
    assert method_of({"_target_": "mine.MyTransferModel"}).choice == "transfer"


def test_a_config_from_before_adapters_is_that_of_today() -> None:
    today = _validated("model=finetune")
    old = today | {"model": {k: v for k, v in today["model"].items() if k != "rank"}}
    assert result_config(old) == result_config(today)


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (("model=lora", "model.rank=0"), "model.rank=0 must be a whole number"),
        (("model=lora", "model.layers='('"), "model.layers='\\('"),
        (("model=lora", "model.train=bn"), "model.train='bn' must be null with model=lora"),
        (("model=norm", "model.train=bn"), "model.train='bn' must be null with model=norm"),
        (("model=lora", "optimizer.l2_sp=-1"), "optimizer.l2_sp=-1"),
        (("model=probe", "model.frozen_bn=batch"), "must be eval or recalibrate with model=probe"),
        (("optimizer.l2_sp=-1",), "optimizer.l2_sp=-1"),
        (("model=lora", "+model.adapt=false"), "model.adapt is not an option"),
        (("model=bitfit", "model.pct_unfreeze=25"), "did you mean 0.25"),
    ],
)
def test_mistakes_are_found_before_anything_trains(overrides: tuple[str, ...], text: str) -> None:
    with pytest.raises(InputError, match=text):
        _validated(*overrides)
