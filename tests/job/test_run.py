"""What a job leaves when something is wrong around its training, and what its ranks call."""

import importlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers import Outcome
from helpers.training import small_config, small_context
from tvf.errors import InputError
from tvf.files import LAST_CHECKPOINT, read_json
from tvf.job import resources
from tvf.job.checkpoint import OLD_MAGIC
from tvf.records.job import JobRecord
from tvf.records.sweep import CONFIRMATION, write_manifest
from tvf.records.tracking import NoTracker

Shell = Callable[..., Outcome]
QUICK = ("epochs=1", "data.limit=32", "data.image_size=32", "data.batch_size=8", "model=transfer")


def test_the_trackers_state_is_recorded_after_its_run_has_finished_even_if_the_job_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = SimpleNamespace(id="1", mode="unsynced", url=None)

    @contextmanager
    def start(*arguments: Any, **more: Any) -> Iterator[Any]:
        try:
            yield run
        finally:
            run.mode = "online"  # everything has been sent

    monkeypatch.setattr(NoTracker, "start", start)
    config = small_config()
    record = JobRecord(tmp_path, "job", config)
    with pytest.raises(RuntimeError, match="broke"), record:
        with resources.open_run(config, small_context(tmp_path), record), record:
            raise RuntimeError("broke")
    status = read_json(tmp_path / "status.json")
    assert (status["state"], status["wandb_mode"]) == ("failed", "online")


def test_the_jobs_of_a_confirmation_have_a_group_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups: list[Any] = []

    @contextmanager
    def start(tracker: Any, folder: Path, name: str, group: Any, *more: Any) -> Iterator[Any]:
        groups.append(group)
        yield SimpleNamespace(id="1", mode="offline", url=None)

    monkeypatch.setattr(NoTracker, "start", start)
    config = small_config()
    for sweep in (tmp_path / "demo", tmp_path / "demo" / CONFIRMATION):
        write_manifest(sweep, {})
        context = replace(small_context(sweep / "job"), sweep=sweep)
        context.folder.mkdir()
        with resources.open_run(config, context, JobRecord(sweep / "job", "job", config)):
            pass
    assert groups == ["demo", "demo-confirm"]


def test_a_checkpoint_of_an_older_version_fails_the_job_with_a_reason_in_its_status(
    shell: Shell, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "job" / LAST_CHECKPOINT
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(OLD_MAGIC[-1] + b"whatever it held")
    outcome = shell(*QUICK, "tracker=none", "hydra.run.dir=job")
    assert outcome.code == 1 and "was written by an older version of tvf" in outcome.out
    status = json.loads((tmp_path / "job" / "status.json").read_text())
    assert status["state"] == "failed" and "older version of tvf" in status["error"]
    assert checkpoint.exists()


def test_too_many_devices_are_an_error_before_a_tracker_hears_of_the_job(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NoTracker, "start", lambda *a, **k: pytest.fail("a run was opened"))
    devices = ("fabric=ddp", "fabric.accelerator=cpu", "fabric.devices=999")
    outcome = shell(*QUICK, *devices, "tracker=none", "hydra.run.dir=job")
    assert outcome.code == 1 and "fabric.devices=999 must be at most" in outcome.out
    status = json.loads((tmp_path / "job" / "status.json").read_text())
    assert status["state"] == "failed" and status["error"].startswith(InputError.__name__)


def test_the_function_that_other_ranks_call_by_name_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    monkeypatch.setattr(resources, "start_ranks", lambda count, name, values: called.append(name))
    config = small_config(fabric__devices=2)
    resources._other_ranks(config, small_context(tmp_path))
    module, _, name = called[0].partition(":")
    assert callable(getattr(importlib.import_module(module), name))
