"""A job under other overrides that come to the same configuration is trained once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from helpers import SMALL, Outcome
from helpers.sweeps import add_job, base_config
from tvf.config import job_folder, own_folder
from tvf.records import read_configs, write_manifest
from tvf.sweep.same_jobs import describe_same_jobs, find_same_jobs

Shell = Callable[..., Outcome]


def _config(**changes: Any) -> dict[str, Any]:
    config: dict[str, Any] = base_config() | {"seed": 1, "epochs": 2}
    for key, value in changes.items():
        node, name = key.split("_", 1)
        config[node][name] = value
    return config


def find(sweep: Path, *configs: dict[str, Any], named: bool = False) -> dict[str, str]:
    jobs = [(f"job{number}", config) for number, config in enumerate(configs)]
    return find_same_jobs(sweep, jobs, [named] * len(jobs))


def test_equal_configurations_of_one_command_share_the_first_folder(tmp_path: Path) -> None:
    other = _config(data_batch_size=8)
    configs = [
        _config(),
        other,
        _config() | {"seed": 1.0},
        _config() | {"name": "x", "stop_after": 1},
        _config(tracker_mode="offline", store_max_gb=1),
    ]
    assert find(tmp_path, *configs) == {"job2": "job0", "job3": "job0", "job4": "job0"}
    assert find(tmp_path, *configs, named=True) == {}
    assert find(tmp_path, _config(), other, _config(store_mode="off")) == {}


def test_a_job_that_an_earlier_command_trained_is_named_with_its_state(tmp_path: Path) -> None:
    done = add_job(tmp_path, 0.5, 1)
    config = read_configs(tmp_path)[done.name]
    same = find(tmp_path, config, config | {"seed": 2})
    assert same == {"job0": done.name}
    assert describe_same_jobs(tmp_path, same) == (
        f"job0 is the same configuration as {done.name} (done): one job, there."
    )
    many = dict.fromkeys(map(str, range(9)), done.name)
    assert describe_same_jobs(tmp_path, many).endswith(
        "So are 4 more jobs and others of the sweep."
    )


def test_what_an_earlier_command_began_stays_in_its_folder(tmp_path: Path) -> None:
    """Earlier versions trained a job under each of its spellings."""
    write_manifest(tmp_path, {"job0": _config(), "job1": _config()})
    assert find(tmp_path, _config(), _config(), _config()) == {"job2": "job0"}


def test_a_job_goes_to_the_folder_that_the_manifest_notes(tmp_path: Path) -> None:
    model = {"_target_": "tvf.models.FineTuneModel", "pct_unfreeze": 1}
    hydra = {"overrides": {"task": ["seed=1337"]}, "sweep": {"dir": str(tmp_path)}}
    root = OmegaConf.create({"model": model, "name": "x", "seed": 1337, "hydra": hydra})
    own = own_folder(root)
    assert job_folder(_root_=root) == own
    write_manifest(tmp_path, {"first": {}}, same={own: "first"})
    assert job_folder(_root_=root) == "first" and own_folder(root) == own
    write_manifest(tmp_path, {own: {}})  # its configuration is another one by now
    assert job_folder(_root_=root) == own


@pytest.mark.slow
def test_defaults_that_are_spelled_out_make_no_second_job(
    shell: Shell, image_root: Path, tmp_path: Path
) -> None:
    common = ["-m", "data=image_folder", f"data.root={image_root}", "data.image_size=32"]
    common += ["epochs=1", "tracker=none", SMALL, "hydra.sweep.dir=sweep", "hydra/launcher=basic"]
    first = shell(*common, "model=transfer")
    assert first.code == 0
    (job,) = (path.parent.name for path in tmp_path.glob("sweep/*/summary.json"))
    for spelled in ("optimizer.lr=0.001", "data.limit=null"):
        again = shell(*common, "model=transfer", spelled)
        assert again.code == 0 and f"is the same configuration as {job} (done)" in again.out
    both = shell(*common, "model=transfer", "seed=1337,2")
    assert both.code == 0 and f"same configuration as {job} (done)" in both.out
    assert len(list(tmp_path.glob("sweep/*/status.json"))) == 2
    groups = "model.groups=[bn2,conv2],[conv2,bn2]"
    assert "(not started)" in shell(*common, groups, "stop_after=1").out
    assert len(list(tmp_path.glob("sweep/*/status.json"))) == 3
