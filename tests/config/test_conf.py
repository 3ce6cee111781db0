"""Every option of every group composes, and gives its target what the target takes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from helpers import ROOT
from helpers.configs import compose_once, overrides_of, plain_config
from tvf.config import names
from tvf.config.build import build, check_node, target_node
from tvf.config.validate import NODES, VALUES, supplied_by_code, validate_config
from tvf.errors import InputError
from tvf.sweep.callback import GRID, HALVING, OPTUNA, RACE

CONF = ROOT / "conf"
ONE_JOB = "hydra_plugins.tvf_sweepers.OneJobSweeper"
OPTIONS = sorted(path.relative_to(CONF) for path in CONF.glob("*/*.yaml"))


def _compose(option: Path) -> DictConfig:
    return compose_once(*overrides_of(option.parent.name, option.stem))


def _nodes(node: Any, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield name, node
        for key, value in node.items():
            yield from _nodes(value, f"{name}.{key}")


def test_there_are_options_to_look_at() -> None:
    groups = {option.parent.name for option in OPTIONS}
    assert groups | {"checkpoint"} == {
        *NODES,
        "experiment",
    }  # of which there is one kind, in config.yaml itself
    assert len(OPTIONS) >= 22


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_every_option_gives_its_targets_what_they_take(option: Path) -> None:
    config: Any = plain_config(*overrides_of(option.parent.name, option.stem))
    assert set(config) == {*NODES, *VALUES}
    checked = 0
    for name in NODES:
        for path, node in _nodes(target_node(config, name), name):
            check_node(node, path, supplied_by_code(config, path) if path == name else ())
            checked += 1
    assert checked >= len(NODES)


@pytest.mark.parametrize(
    "option", [o for o in OPTIONS if o.parent.name not in ("fabric", "data")], ids=str
)
def test_every_option_passes_the_check_that_comes_before_a_job(option: Path) -> None:
    assert validate_config(_compose(option))["epochs"] >= 1


@pytest.mark.parametrize(
    "path", sorted(CONF.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONF))
)
def test_every_option_opens_with_when_to_choose_it_and_fits_a_screen(path: Path) -> None:
    lines = path.read_text().splitlines()
    comments = [
        line for line in lines[:2] if line.startswith("# ") and not line.startswith("# @package")
    ]
    assert comments and len(comments[0]) > 20
    assert yaml.safe_load(path.read_text())
    assert len(lines) <= 30 or path.name == "config.yaml"


@pytest.mark.parametrize("launcher", ["local", "basic", "slurm"])
def test_launchers_and_callbacks_are_given_what_they_take(launcher: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", [f"hydra/launcher={launcher}"], return_hydra_config=True)
    check_node(OmegaConf.to_container(config.hydra.launcher, resolve=True), "hydra.launcher")  # type: ignore[arg-type]
    check_node(OmegaConf.to_container(config.hydra.callbacks.sweep), "hydra.callbacks.sweep")  # type: ignore[arg-type]
    assert config.hydra.launcher.get("n_jobs", 1) >= 1


@pytest.mark.parametrize("sweeper", ["grid", "halving", "race", "optuna", "one"])
def test_sweepers_are_given_what_they_take(sweeper: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", [f"hydra/sweeper={sweeper}"], return_hydra_config=True)
    check_node(OmegaConf.to_container(config.hydra.sweeper), "hydra.sweeper")  # type: ignore[arg-type]
    # The callback plans the jobs of these sweepers alone.
    others = {"halving": HALVING, "race": RACE, "optuna": OPTUNA, "one": ONE_JOB}
    assert config.hydra.sweeper._target_ == others.get(sweeper, GRID)


def test_an_unknown_key_suggests_the_intended_one() -> None:
    node = {"_target_": "tvf.data.Elpv", "image_size": 96, "batchsize": 8}
    with pytest.raises(
        InputError, match=r"data\.batchsize is not an option: did you mean data\.batch_size\?"
    ):
        build(node, "data")


def test_a_required_key_that_is_missing_is_named() -> None:
    with pytest.raises(InputError, match=r"data\.image_size is missing"):
        build({"_target_": "tvf.data.Elpv"}, "data")


@pytest.mark.parametrize("target", ["nowhere.Thing", "tvf.models.Nope", "tvf.data.SMALLEST_IMAGE"])
def test_a_target_that_cannot_be_built_is_named(target: str) -> None:
    with pytest.raises(InputError, match=target):
        build({"_target_": target}, "model")


def test_an_error_inside_a_nested_target_comes_through_as_it_is() -> None:
    node = {
        "_target_": "tvf.training.DiscriminativeOptimizer",
        "lr": -1,
        "backbone_lr": 1,
        "algorithm": {"_target_": "torch.optim.Adam"},
    }
    with pytest.raises(InputError, match="optimizer.lr=-1"):
        build({**node, "algorithm": {**node["algorithm"], "_partial_": True}}, "optimizer")


def test_job_folders_tell_jobs_apart_but_not_the_order_of_their_overrides() -> None:
    def folder(*overrides: str, model: str = "FineTuneModel") -> str:
        root = {
            "model": {"_target_": f"tvf.models.{model}"},
            "name": "a name/b",
            "hydra": {"overrides": {}},
        }
        root["hydra"] = {"overrides": {"task": list(overrides)}}
        return names.job_folder(_root_=OmegaConf.create(root))

    assert (
        folder("seed=1", "epochs=2") == folder("epochs=2", "seed=1") != folder("seed=2", "epochs=2")
    )
    assert folder("model.pct_unfreeze=0.5") != folder("model.pct_unfreeze=1")
    assert folder("model.pct_unfreeze=0.5", model="TransferModel") == folder(model="TransferModel")
    assert folder("tracker=none", "+checkpoint.every_minutes=1", "tracker.timeout=5") == folder()
    # Folders keep the names that earlier versions gave them.
    hashes = {
        "": "e3b0c442",
        "+experiment=cifar10": "a27369aa",
        "+experiment=cifar10_tutorial": "48fe9c05",
    }
    for override, digest in hashes.items():
        assert folder(*[override] if override else []).endswith(f"-{digest}")
    different = [
        "store.max_gb=1",
        "data.download=false",
        "~tracker.tags",
        "name=x",
        "store.mode=on",
    ]
    assert len({folder(override) for override in different} | {folder()}) == 1 + len(different)
    assert "/" not in folder()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("backbone=timm", "backbone.name=nonet"), "'nonet' is not a timm network: did you mean"),
        (("backbone=timm", "backbone.name=resnet18.none"), "invalid pretrained tag 'none'"),
        (("backbone=torchvision", "backbone.name=resnet19"), "did you mean resnet18"),
        (("backbone=torchvision", "backbone.weights=V1"), "backbone.weights=V1 must be one of"),
        (("backbone=resnet18", "backbone.name=vgg11"), "backbone.name=vgg11 must be one of resnet"),
    ],
)
def test_a_name_that_a_library_does_not_know_is_an_error_before_any_job(
    overrides: tuple[str, ...], said: str
) -> None:
    with pytest.raises(InputError) as error:
        validate_config(compose_once("data.image_size=32", *overrides))
    assert said in str(error.value)
