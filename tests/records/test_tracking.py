import contextlib
import gc
import json
import math
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import wandb

from tvf.errors import InputError
from tvf.files import write_json, write_whole
from tvf.records.job import JobRecord, is_done
from tvf.records.tracking import NoTracker, WandbTracker


@pytest.fixture(autouse=True)
def forgetful_client() -> Iterator[None]:
    """W&B's client remembers logins and settings as long as its process: not beyond a test."""
    yield
    wandb.teardown()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments of each call to the real wandb.init."""
    calls: list[dict[str, Any]] = []
    real_init = wandb.init

    def init(**arguments: Any) -> Any:
        calls.append(arguments)
        return real_init(**arguments)

    monkeypatch.setattr(wandb, "init", init)
    return calls


def _offline_run(folder: Path) -> Path:
    (run,) = (folder / "wandb").glob("offline-run-*")
    return run


def _exit_code(folder: Path) -> str:
    """The run's exit code according to W&B's log."""
    return (
        (_offline_run(folder) / "logs" / "debug.log").read_text().partition("got exitcode: ")[2][:1]
    )


@pytest.mark.slow
def test_each_job_has_its_own_run_which_stays_on_disk_without_a_login(
    tmp_path: Path, started: list[dict[str, Any]]
) -> None:
    ids = set()
    for number in range(3):
        folder = tmp_path / str(number)
        folder.mkdir()
        config = {"pct_unfreeze": 0.5, "model": "finetune"}
        with WandbTracker("tvf").start(folder, f"fine-tuning-{number}", "a-sweep", config) as run:
            run.set_config({"classes": ["cat", "dog"]})
            assert wandb.run and wandb.run.config.as_dict() == config | {"classes": ["cat", "dog"]}
            run.log({"epoch": 1, "val_acc": 0.5, "lr_backbone": None}, step=1)
            run.set_summary({"test_acc": 0.25})
            ids.add(run.id)
        assert (run.mode, run.url) == ("offline", None)
        assert _offline_run(folder).name.endswith(str(run.id))
        assert _exit_code(folder) == "0"
    assert len(ids) == 3
    assert [(call["name"], call["group"]) for call in started] == [
        (f"fine-tuning-{n}", "a-sweep") for n in range(3)
    ]
    assert started[0]["config"] == {"pct_unfreeze": 0.5, "model": "finetune"}


@pytest.mark.slow
def test_a_job_that_raises_is_a_failed_run(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), WandbTracker("tvf").start(tmp_path, "n", None, {}):
        raise ZeroDivisionError
    assert _exit_code(tmp_path) == "1"


def test_an_unknown_mode_is_an_error() -> None:
    with pytest.raises(InputError, match="tracker.mode=on must be one of"):
        WandbTracker("tvf", mode="on")


def test_without_a_tracker_there_is_no_run(tmp_path: Path) -> None:
    with NoTracker().start(tmp_path, "n", None, {}) as run:
        run.log({"epoch": 1}, step=1)
        run.set_summary({})
    assert (run.id, run.mode, run.url) == (None, None, None)
    assert not list(tmp_path.iterdir())


def test_a_record_holds_the_state_of_its_job(tmp_path: Path) -> None:
    def state() -> str:
        return json.loads((tmp_path / "status.json").read_text())["state"]

    record = JobRecord(tmp_path, "n", {"epochs": 2})
    assert state() == "running"
    record.log({"epoch": 1, "val_loss": math.nan})
    record.log({"epoch": 2, "val_loss": 0.5})
    assert (
        tmp_path / "metrics.jsonl"
    ).read_text() == '{"epoch": 1, "val_loss": null}\n{"epoch": 2, "val_loss": 0.5}\n'
    assert not is_done(tmp_path, {"epochs": 2})
    record.done({"val_acc": 0.5})
    assert state() == "done"
    assert json.loads((tmp_path / "status.json").read_text())["attempt"] == 1
    assert is_done(tmp_path, {"epochs": 2})
    assert not is_done(tmp_path, {"epochs": 3})
    again = JobRecord(tmp_path, "n", {"epochs": 3})
    assert not (tmp_path / "metrics.jsonl").exists()
    assert not (tmp_path / "summary.json").exists()
    assert json.loads((tmp_path / "status.json").read_text())["attempt"] == 2
    with pytest.raises(ValueError, match="why"), again:
        raise ValueError("why")
    assert json.loads((tmp_path / "status.json").read_text())["error"] == "ValueError: why"


def test_whether_a_job_is_done_does_not_depend_on_where_its_store_is(tmp_path: Path) -> None:
    store = {"dir": "here", "mode": "on", "max_gb": 20, "dtype": "auto"}
    JobRecord(tmp_path, "n", {"epochs": 2, "store": store}).done({"val_acc": 0.5})
    assert is_done(
        tmp_path, {"epochs": 2, "store": store | {"dir": "there", "mode": "off", "max_gb": 1}}
    )
    assert not is_done(tmp_path, {"epochs": 2, "store": store | {"dtype": "float16"}})


@pytest.mark.parametrize("damage", ["", '{"state": "done"', "[]", '{"status": "ok"}'])
@pytest.mark.parametrize("name", ["status.json", "config.json", "summary.json"])
def test_a_damaged_record_is_not_done_and_can_be_restarted(
    tmp_path: Path, name: str, damage: str
) -> None:
    JobRecord(tmp_path, "n", {"epochs": 2}).done({"val_acc": 0.5})
    (tmp_path / name).write_text(damage)
    assert is_done(tmp_path, {"epochs": 2}) == (
        name == "summary.json" and damage == '{"status": "ok"}'
    )
    JobRecord(tmp_path, "n", {"epochs": 2}).done({"val_acc": 0.5})
    assert is_done(tmp_path, {"epochs": 2})


def test_a_file_is_written_completely_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})

    def fails(handle: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fails)
    with pytest.raises(OSError, match="disk full"):
        write_whole(path, b"half")
    assert json.loads(path.read_text()) == {"x": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.slow
@pytest.mark.parametrize("server", ["refuses", "never answers"])
def test_an_unreachable_server_costs_little_time_and_no_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, server: str
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if server == "never answers":
            silent.listen()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "local-" + "0" * 40)
        begun = time.monotonic()
        with WandbTracker("p", timeout=3).start(tmp_path, "n", None, {}) as run:
            run.log({"epoch": 1, "val_acc": 0.5}, step=1)
        assert time.monotonic() - begun < 3 + 7  # plus the start of W&B's own process
    assert run.mode == "offline" and "run failed to start" in caplog.text
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


def test_a_failing_tracker_does_not_fail_the_job(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """W&B's service process is killed while the job trains."""
    with WandbTracker("tvf", timeout=5).start(tmp_path, "a-job", None, {}) as run:
        run.log({"epoch": 1, "val_acc": 0.5}, step=1)
        (core,) = [
            process
            for process in psutil.Process().children(recursive=True)
            if "wandb-core" in process.name()
        ]
        core.kill()
        for service in gc.get_objects():
            if isinstance(service, subprocess.Popen) and service.pid == core.pid:
                service.wait()  # W&B drops it unwaited, and a later test would get the warning
        for epoch in (2, 3):
            run.log({"epoch": epoch, "val_acc": 0.5}, step=epoch)
        run.set_summary({"test_acc": 0.25})
    assert caplog.text.count("training continues without it") == 1
    assert run.mode == "offline" and (tmp_path / "wandb").exists()
    with contextlib.suppress(Exception):
        wandb.teardown()  # so that the next test starts a new service process


def test_a_finished_job_stays_done_whatever_happens_while_its_tracker_finishes(
    tmp_path: Path,
) -> None:
    record = JobRecord(tmp_path, "a-job", {})
    with pytest.raises(KeyboardInterrupt), record:
        record.done({"val_acc": 0.5})
        raise KeyboardInterrupt
    assert is_done(tmp_path, {})


def test_checking_the_login_leaves_no_service_that_jobs_would_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "local-" + "0" * 40)
    WandbTracker("p")
    assert "WANDB_SERVICE" not in os.environ
