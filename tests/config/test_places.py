"""Equal numbers and equal places have one identity, however they are written."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from helpers.sweeps import base_config
from tvf.config import names
from tvf.config.identity import result_config, written_options
from tvf.config.places import absolute_place, canonical, resolve_places
from tvf.config.selection import name_fraction
from tvf.config.validate import validate_config
from tvf.report.comparison import judged_by


@pytest.mark.parametrize(
    ("one", "other"),
    [(0, 0.0), (1, 1.0), (1e-3, 0.001), ([0, 1.0], [0.0, 1]), ({"a": 2}, {"a": 2.0})],
)
def test_equal_numbers_are_written_alike(one: Any, other: Any) -> None:
    assert json.dumps(canonical("x", one)) == json.dumps(canonical("x", other))


@given(st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.integers(), st.booleans()))
def test_the_canonical_form_is_equal_to_the_value(value: float) -> None:
    assert canonical("x", value) == value
    assert isinstance(canonical("x", value), bool) == isinstance(value, bool)


@pytest.mark.parametrize(
    "spelling", ["{tmp}/H/", "{tmp}/./x/../H", "H", "./H//", "{tmp}/link", "link/", "~/H"]
)
@pytest.mark.parametrize("key", ["data.root", "store.dir", "model.init_from"])
def test_equal_places_are_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, spelling: str
) -> None:
    (tmp_path / "H").mkdir()
    (tmp_path / "link").symlink_to("H")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    real = os.path.realpath(tmp_path / "H")
    assert canonical(key, spelling.format(tmp=tmp_path)) == real
    assert canonical("data.task", spelling) == spelling


def test_a_place_in_another_option_is_one_only_where_it_is_one() -> None:
    here = os.path.realpath("x")
    assert canonical("backbone.name", "local-dir:x/") == f"local-dir:{here}"
    assert canonical("backbone.name", "hf-hub:x/y") == "hf-hub:x/y"
    assert canonical("data.groups", "x.csv") == f"{here}.csv"
    assert canonical("data.groups", r"patient(\d+)") == r"patient(\d+)"
    assert canonical("data.path", "x.csv") == f"{here}.csv"
    for other in ("s3://x/y.csv", "x", "x.zip"):  # a data source of one's own may mean anything
        assert canonical("data.path", other) == other
    assert absolute_place("data.root", "x", "/base") == "/base/x"
    assert absolute_place("data.groups", "x", "/base") == "x"


def test_comparisons_do_not_depend_on_spellings(tmp_path: Path) -> None:
    one, other = base_config(), base_config()
    one["data"]["root"], other["data"]["root"] = f"{tmp_path}", f"{tmp_path}/../{tmp_path.name}/"
    one["model"]["pct_unfreeze"], other["model"]["pct_unfreeze"] = 0, 0.0
    one["optimizer"]["weight_decay"], other["optimizer"]["weight_decay"] = 1, 1.0
    assert repr(result_config(one)) == repr(result_config(other))
    assert judged_by("accuracy", result_config(one)) == judged_by("accuracy", result_config(other))
    assert "1.0" in repr(written_options(other, names.affects("seed")))  # as in older versions


def test_relative_places_are_resolved_where_the_command_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image_root: Path
) -> None:
    """A job in its own working directory (hydra.job.chdir) sees what the sweep's check saw."""
    config = base_config()
    config["data"] |= {"_target_": "tvf.data.ImageFolder", "root": "images", "groups": None}
    for key in ("task", "split_by"):
        config["data"].pop(key, None)
    config["store"]["dir"] = "store"
    monkeypatch.chdir(tmp_path)
    checked = validate_config(OmegaConf.create(config))
    monkeypatch.chdir("/")
    job = validate_config(OmegaConf.create(config), str(tmp_path))
    assert checked == job
    assert job["data"]["root"] == str(image_root)
    assert job["store"]["dir"] == str(tmp_path / "store")


def test_weights_that_change_under_a_name_are_another_configuration(tmp_path: Path) -> None:
    def content() -> str:
        config = base_config()
        target = {"_target_": "tvf.models.timm_backbone", "name": f"local-dir:{tmp_path}"}
        config["backbone"] = target
        return validate_config(OmegaConf.create(config))["backbone_content"]

    (tmp_path / "config.json").write_text("{}")
    (weights := tmp_path / "model.safetensors").write_bytes(b"one")
    before = content()
    assert content() == before
    weights.write_bytes(b"two")
    assert content() != before


def _folder(sweep: Path, **values: Any) -> str:
    model = {"_target_": "tvf.models.FineTuneModel", "pct_unfreeze": values.pop("fraction")}
    task = [f"model.pct_unfreeze={model['pct_unfreeze']}"]
    root: dict[str, Any] = {"model": model, "optimizer": {}, "data": {}}
    for key, value in values.items():
        node, name = key.split("_", 1)
        root[node][name] = value
        task.append(f"{node}.{name}={value}")
    hydra = {"overrides": {"task": task}, "sweep": {"dir": str(sweep)}}
    config = OmegaConf.create(root | {"hydra": hydra})
    OmegaConf.update(config, "name", names.job_name(_root_=config))
    return names.job_folder(_root_=config)


def test_one_job_has_one_folder_in_all_spellings(tmp_path: Path) -> None:
    for equal in ((0, 0.0), (1, 1.0), (0.25, 0.250)):
        assert len({_folder(tmp_path, fraction=fraction) for fraction in equal}) == 1
    assert _folder(tmp_path, fraction=0) != _folder(tmp_path, fraction=1)
    at_rates = {_folder(tmp_path, fraction=1, optimizer_lr=lr) for lr in (1, 1.0)}
    assert len(at_rates) == 1
    roots = [str(tmp_path), f"{tmp_path}/", f"{tmp_path}/x/.."]
    assert len({_folder(tmp_path, fraction=1, data_root=root) for root in roots}) == 1
    assert [name_fraction(value) for value in (0, 0.0, 0.25, 1, None)] == [
        *("0", "0", "0.25", "1.0", "None")
    ]


def test_a_folder_that_an_earlier_version_named_is_found_by_the_same_command(
    tmp_path: Path,
) -> None:
    """Earlier versions hashed overrides as they are written."""
    earlier = names._folder_name(
        OmegaConf.create(
            {
                "model": {"_target_": "tvf.models.FineTuneModel", "pct_unfreeze": 1},
                "hydra": {
                    "overrides": {"task": ["model.pct_unfreeze=1", f"data.root={tmp_path}/"]}
                },
            }
        ),
        "fine-tuning-1",
        str,
    )
    values: dict[str, Any] = {"fraction": 1, "data_root": f"{tmp_path}/"}
    assert _folder(tmp_path, **values) != earlier
    (tmp_path / earlier).mkdir()
    assert _folder(tmp_path, **values) == earlier
    assert _folder(tmp_path / "another", **values) != earlier


def test_names_tell_learning_rates_apart_and_earlier_folders_are_found(tmp_path: Path) -> None:
    """Names of jobs had no learning rates in earlier versions, and so had their folders."""
    rates = [_folder(tmp_path, fraction=0.5, optimizer_lr=lr) for lr in (1e-3, 3e-4)]
    assert [name.rpartition("-")[0] for name in rates] == [
        "fine-tuning-0.5-lr0.001",
        "fine-tuning-0.5-lr0.0003",
    ]
    earlier = names._folder_name(
        OmegaConf.create(
            {
                "model": {"_target_": "tvf.models.FineTuneModel", "pct_unfreeze": 0.5},
                "hydra": {"overrides": {"task": ["model.pct_unfreeze=0.5", "optimizer.lr=0.001"]}},
            }
        ),
        "fine-tuning-0.5",
        str,
    )
    (tmp_path / earlier).mkdir()
    assert _folder(tmp_path, fraction=0.5, optimizer_lr=1e-3) == earlier


def test_paths_stay_as_they_are_written_until_a_check_needs_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    config: dict[str, Any] = {"data": {"root": "x"}, "store": {"dir": "~/y"}}
    resolve_places(config, str(tmp_path), needed=True)
    assert config == {"data": {"root": "x"}, "store": {"dir": "/home/me/y"}}
    resolve_places(config, str(tmp_path))
    assert config["data"]["root"] == str(tmp_path / "x")
