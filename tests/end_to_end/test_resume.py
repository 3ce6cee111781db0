"""Sweeps and jobs that end in various ways and are resumed, as shell commands in processes."""

import contextlib
import importlib
import json
import os
import pty
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers import IMPORTABLE, ROOT, SMALL, forks
from helpers.folders import write_images
from helpers.jobs import digests
from tvf import cli

QUICK = ("data.limit=68", "data.image_size=32", "data.batch_size=8", "tracker=none")
# A backbone that ends its job in the first training step, in a different way for each fraction,
# until the file `mended` exists.
ENDS = {0.1: "raise", 0.25: "unpicklable", 0.5: "exit", 0.75: "kill"}
BREAKING = f"""
import os, signal, sys, time
from helpers import small_backbone

ENDS = {ENDS}

class Unpicklable(Exception):
    def __init__(self, one, two):
        super().__init__(one)

def make(num_classes, pct):
    backbone = small_backbone(num_classes)

    def end(module, inputs):
        checked = len(inputs[0]) == 2  # by the check of the network
        if not module.training or checked or os.path.exists("mended"):
            return
        how = ENDS.get(pct)
        print("on the way out")
        if how == "raise":
            raise RuntimeError("it broke")
        if how == "unpicklable":
            raise Unpicklable("it broke too", 2)
        if how == "exit":
            sys.exit(3)
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)

    backbone.module.register_forward_pre_hook(end)
    return backbone

def make_slow(num_classes, pct):
    backbone = small_backbone(num_classes)

    def linger(module, inputs):
        if pct == 1.0 and module.training and len(inputs[0]) > 2:
            open("training", "w").close()
            time.sleep(2)

    backbone.module.register_forward_pre_hook(linger)
    return backbone

def make_and_kill_the_worker(num_classes, pct):
    if pct == 0.25 and not os.path.exists("mended"):
        open("mended", "w").close()
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    return small_backbone(num_classes)
"""


def start(*arguments: str, cwd: Path) -> forks.Process:
    return forks.train(*arguments, cwd=cwd, TVF_STORE=str(cwd / "store"), PYTHONPATH=IMPORTABLE)


def tvf(*arguments: str, cwd: Path) -> tuple[int | None, str]:
    """Run `tvf ARGUMENTS`; return its exit code and its output."""
    process = forks.tvf(*arguments, cwd=cwd, TVF_STORE=str(cwd / "store"), PYTHONPATH=IMPORTABLE)
    output, _ = process.communicate()
    return process.returncode, output


def results(folder: Path) -> dict[str, Any]:
    """The summary and epochs of each job below `folder`, without values that vary between runs.

    With digests of its predictions and its best weights.
    """
    found = {}
    for path in sorted(folder.glob("**/summary.json")):
        summary = json.loads(path.read_text())
        rows = [
            json.loads(line) for line in (path.parent / "metrics.jsonl").read_text().splitlines()
        ]
        for values in (summary, *rows):
            for key in [key for key in values if key.endswith("_seconds") or key in LOOSE]:
                del values[key]
        found[path.parent.name] = [summary, *rows, *digests(path.parent)]
    return found


# Values that depend on time, memory and earlier contents of the store.
LOOSE = (
    "images_per_second",
    "peak_memory_mb",
    "peak_device_memory_mb",
    "prefix_images",
    "continued_images",
    "wandb_run_id",
)


def changed(path: Path) -> float:
    """When `path` was last written; 0 if it does not exist."""
    return path.stat().st_mtime if path.exists() else 0.0


def states(folder: Path) -> dict[float, str]:
    """The state of each fraction's job."""
    found = {}
    for path in folder.glob("*/status.json"):
        config = json.loads((path.parent / "config.json").read_text())
        found[config["model"]["pct_unfreeze"]] = json.loads(path.read_text())["state"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["local", "basic"])
def test_a_job_that_ends_abnormally_leaves_the_others_alone_and_is_retried(
    tmp_path: Path, launcher: str
) -> None:
    (tmp_path / "breaking.py").write_text(BREAKING)
    one = (
        "-m",
        "model.pct_unfreeze=0.9",
        "epochs=1",
        "hydra.sweep.dir=sweep",
        "hydra/launcher=basic",
        SMALL,
    )
    first = start(*one, *QUICK, cwd=tmp_path)
    output, _ = first.communicate()
    assert first.returncode == 0, output
    process = start(
        "-m",
        "model.pct_unfreeze=0,0.1,0.25,0.5,0.75,1.0",
        f"hydra/launcher={launcher}",
        "hydra.sweep.dir=sweep",
        "backbone._target_=breaking.make",
        "+backbone.pct=${model.pct_unfreeze}",
        "epochs=1",
        *QUICK,
        cwd=tmp_path,
    )
    output, _ = process.communicate()
    assert process.returncode == 1, output
    assert states(tmp_path / "sweep") == {0: "done", 0.9: "done", 1: "done"} | dict.fromkeys(
        ENDS, "failed"
    ), output
    reasons = {
        "raise": "RuntimeError: it broke",
        "unpicklable": "it broke too",
        "exit": "SystemExit: 3",
    }
    reasons["kill"] = "killed by SIGKILL (out of memory?)"
    for pct, how in ENDS.items():
        told = re.search(rf"fine-tuning-{pct} failed: (.*) \((.*job\.log)\)", output)
        assert told and reasons[how] in told[1], output
        written = (tmp_path / told[2]).read_text()
        last_words = "sys.exit(3)" if how == "exit" else reasons[how]
        assert all(words in written for words in ("trains", "on the way out", last_words))
        assert ("Traceback" in written) == (how in ("raise", "unpicklable"))
    assert "to finish the sweep: tvf resume sweep" in output
    (tmp_path / "mended").touch()
    before = results(tmp_path / "sweep")
    code, output = tvf("resume", "sweep", "hydra/launcher=basic", cwd=tmp_path)
    assert code == 0, output
    after = results(tmp_path / "sweep")
    assert len(before) == 3 and len(after) == 7 and before.items() <= after.items()
    attempts = [
        json.loads(path.read_text())["attempt"]
        for path in sorted(tmp_path.glob("sweep/*/status.json"))
    ]
    assert attempts == [1, 2, 2, 2, 2, 1, 1]


@pytest.mark.slow
def test_a_killed_worker_loses_no_job(tmp_path: Path) -> None:
    (tmp_path / "breaking.py").write_text(BREAKING)
    process = start(
        "-m",
        "model.pct_unfreeze=0,0.25,0.5",
        "hydra.sweep.dir=sweep",
        "epochs=1",
        *QUICK,
        "backbone._target_=breaking.make_and_kill_the_worker",
        "+backbone.pct=${model.pct_unfreeze}",
        cwd=tmp_path,
    )
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "A worker process was killed. Resuming" in output
    assert set(states(tmp_path / "sweep").values()) == {"done"}


@pytest.mark.slow
def test_a_job_that_is_killed_repeatedly_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    arguments = (
        *QUICK,
        "model.pct_unfreeze=0.5",
        "epochs=10",
        "augment=crop_flip",
        "scheduler=cosine",
        "threads=1",
    )
    arguments += ("checkpoint.every_minutes=0.001",)
    # A new Python process instead of a fork, so that its hash seed is different.
    whole = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *arguments, "hydra.run.dir=whole"],
        cwd=tmp_path,
        env=os.environ | {"TVF_STORE": str(tmp_path / "store")},
        capture_output=True,
        text=True,
    )
    assert whole.returncode == 0, whole.stdout + whole.stderr
    draw, saved = random.Random(0), tmp_path / "killed" / "checkpoints" / "last.pt"
    for _ in range(3):
        process, before = start(*arguments, "hydra.run.dir=killed", cwd=tmp_path), changed(saved)
        while process.poll() is None and changed(saved) == before:
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.5))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it finished before it could be killed"
    process = start(*arguments, "hydra.run.dir=killed", cwd=tmp_path)
    output, _ = process.communicate()
    assert process.returncode == 0 and "resumes after epoch" in output, output
    assert results(tmp_path / "killed")["killed"] == results(tmp_path / "whole")["whole"]
    assert not list((tmp_path / "killed" / "checkpoints").glob("*.pt"))


@pytest.mark.slow
def test_a_sweep_that_is_killed_repeatedly_ends_like_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A short run of bench/kills.py."""

    def start_command(arguments: list[str], store: Path) -> forks.Process:
        return forks.tvf(*arguments, cwd=tmp_path, TVF_STORE=str(store), PYTHONPATH=str(ROOT))

    monkeypatch.syspath_prepend(ROOT / "bench")
    kills = importlib.import_module("kills")
    monkeypatch.setattr(kills, "start_command", start_command)
    options = ("--kills", "1", "--epochs", "6", "--limit", "40")
    monkeypatch.setattr(sys, "argv", ["kills.py", *options])
    kills.main()
    assert re.search("4 jobs, 24 epochs; .* 1 kills", capsys.readouterr().out)


@pytest.mark.slow
def test_ctrl_c_stops_at_once_and_the_sweep_can_be_resumed_and_extended(tmp_path: Path) -> None:
    common = (*QUICK, "seed=1", "epochs=8", "model.pct_unfreeze=0.5,1.0", "hydra.sweep.dir=sweep")
    process = start("-m", *common, cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("sweep/*/checkpoints/last.pt")) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)
    begun = time.monotonic()
    output, _ = process.communicate(timeout=60)
    assert time.monotonic() - begun < 15
    assert process.returncode == 1 and "tvf resume" in output, output
    assert "Traceback" not in output, output
    code, output = tvf("status", "sweep", cwd=tmp_path)
    assert code == 0 and "interrupted" in output and "/8" in output
    code, output = tvf("resume", "sweep", "hydra/launcher=basic", cwd=tmp_path)
    assert code == 0, output
    assert "resumes after epoch" in output
    before = results(tmp_path / "sweep")
    widened = start(
        "-m", *common, "model.pct_unfreeze=0,0.5,1.0", "hydra/launcher=basic", cwd=tmp_path
    )
    output, _ = widened.communicate()
    assert widened.returncode == 0, output
    after = results(tmp_path / "sweep")
    assert len(before) == 2 and len(after) == 3 and before.items() <= after.items()
    config = next(path for path in tmp_path.glob("sweep/*1.0*/config.json"))
    config.write_text(config.read_text().replace('"epochs": 8', '"epochs": 9'))
    refused = start("-m", *common, cwd=tmp_path)
    output, _ = refused.communicate()
    assert (
        refused.returncode == 1 and "holds another configuration: epochs was 9, is now 8" in output
    ), output


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "local"])
def test_sigterm_to_the_command_alone_lets_its_jobs_keep_a_checkpoint(
    launcher: str, tmp_path: Path
) -> None:
    sweep = ("hydra.sweep.dir='sweep \\'a, é'", f"hydra/launcher={launcher}")
    process = start("-m", *QUICK, "epochs=8", "model.pct_unfreeze=0.5,1.0", *sweep, cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("sweep*/*/metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and "Traceback" not in output, output
    if launcher == "basic":
        assert "0.5 interrupted" in output and "never started: fine-tuning-1.0" in output
    logs = [path.read_text() for path in tmp_path.glob("sweep*/*/job.log")]
    assert any("its checkpoint is kept" in log for log in logs), logs
    command = re.search(r"tvf (resume .*)", output)
    assert command, output
    code, output = tvf(*shlex.split(command[1]), cwd=tmp_path)
    assert code == 0, output
    assert set(states(tmp_path / "sweep 'a, é").values()) == {"done"}


@pytest.mark.slow
def test_sigterm_to_all_processes_lets_a_job_beside_idle_workers_keep_a_checkpoint(
    tmp_path: Path,
) -> None:
    """One worker has nothing left to train, another never had: joblib would kill the third."""
    (tmp_path / "breaking.py").write_text(BREAKING)
    backbone = ("backbone._target_=breaking.make_slow", "+backbone.pct=${model.pct_unfreeze}")
    sweep = ("model.pct_unfreeze=0.5,1.0", "epochs=1", "hydra.sweep.dir=sweep", *backbone)
    process = start("-m", *QUICK, *sweep, "hydra.launcher.n_jobs=3", cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not ((tmp_path / "training").exists() and [*tmp_path.glob("sweep/*/summary.json")]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and "Traceback" not in output, output
    (log,) = tmp_path.glob("sweep/*1.0*/job.log")
    assert "its checkpoint is kept" in log.read_text(), output
    assert states(tmp_path / "sweep") == {0.5: "done", 1.0: "failed"}
    assert [*log.parent.glob("checkpoints/last.pt")]
    assert json.loads((log.parent / "status.json").read_text())["error"] == "interrupted"


@pytest.mark.slow
def test_a_sweep_that_was_moved_goes_on_once_its_folder_can_be_reached(tmp_path: Path) -> None:
    """From another folder, and with a link to where the images and the sweep are now."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    write_images(here / "photos")
    options = ("data=image_folder", "data.root=photos", "data.batch_size=8", "data.image_size=32")
    command = ("-m", *options, "model.pct_unfreeze=0.5", "epochs=3", "hydra.sweep.dir=sweep")
    process = start(*command, "stop_after=1", "tracker=none", cwd=here)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    manifest = here / "sweep" / "sweep.json"
    manifest.write_text(manifest.read_text().replace('"stop_after=1"', '"epochs=3"'))
    here.rename(there)
    code, output = tvf("resume", "there/sweep", cwd=tmp_path)
    assert code == 1 and f"the folder where the sweep was started: {here}" in output, output
    here.symlink_to(there)
    code, output = tvf("resume", "there/sweep", cwd=tmp_path)
    assert code == 0, output
    assert [*states(there / "sweep").values()] == ["done"]
    (log,) = there.glob("sweep/*/job.log")
    assert "resumes after epoch 1" in log.read_text()


@pytest.mark.slow
def test_two_processes_on_one_folder_train_each_job_once(tmp_path: Path) -> None:
    """The run that compares the jobs is that of the process that ends last, and complete."""
    command = (
        "-m",
        *QUICK[:-1],
        "model.pct_unfreeze=0.5,0.75,1.0",
        "epochs=12",
        "hydra.sweep.dir=sweep",
    )
    command += ("hydra/launcher=basic", "tracker.mode=offline")
    processes = [start(*command, cwd=tmp_path)]
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("sweep/*/status.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    processes.append(start(*command, cwd=tmp_path))
    outputs = [process.communicate()[0] for process in processes]
    assert 0 in [process.returncode for process in processes], outputs
    assert any("another process is training this job" in output for output in outputs), outputs
    statuses = [json.loads(path.read_text()) for path in tmp_path.glob("sweep/*/status.json")]
    assert [(status["state"], status["attempt"]) for status in statuses] == 3 * [("done", 1)]
    assert "\n".join(outputs).count("test_loss") == 3
    (compared,) = tmp_path.glob("sweep/wandb/offline-run-*")
    assert (compared / f"run-{compared.name.rpartition('-')[2]}.wandb").stat().st_size > 1000
    assert (
        json.loads((tmp_path / "sweep" / "sweep.json").read_text())["summary"]["mode"] == "offline"
    )


@pytest.mark.slow
def test_in_a_terminal_one_table_shows_the_state_of_the_jobs(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = forks.train(
        "-m",
        *QUICK,
        "epochs=6",
        "model.pct_unfreeze=0,0.5,1.0",
        "hydra.sweep.dir=sweep",
        "hydra/launcher=basic",
        cwd=tmp_path,
        terminal=theirs,
        TVF_STORE=str(tmp_path / "store"),
        TERM="xterm",
        COLUMNS="150",
        LINES="40",
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:
            break
        if not chunk:
            break
        shown += chunk
    assert process.wait() == 0, shown.decode()
    text = shown.decode()
    assert "waiting" in text and "running" in text and re.search(r"\d+/6", text)
    assert "train_loss" not in text  # jobs only write to their logs
    assert all("train_loss" in path.read_text() for path in tmp_path.glob("sweep/*/job.log"))


def refusal(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """The error message of `tvf ARGUMENTS`, run in this process."""
    monkeypatch.setattr(sys, "argv", ["tvf", *arguments])
    with pytest.raises(SystemExit) as refused:
        cli.main()
    assert isinstance(refused.value.code, str)  # which Python prints as an error, and exits with 1
    return refused.value.code


def test_a_sweep_is_resumed_with_its_own_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sweep.json").write_text("{}")
    assert "resume cannot change settings (epochs=9)" in refusal(
        monkeypatch, "resume", str(tmp_path), "epochs=9"
    )
    assert "records no command" in refusal(monkeypatch, "resume", str(tmp_path))


def test_a_folder_that_is_not_a_sweep_cannot_be_resumed_or_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for command in ("resume", "status"):
        assert "is not the folder of a sweep" in refusal(monkeypatch, command, str(tmp_path))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The folder of a mounted file system of 400 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400m", "tmpfs", folder], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("only root can mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.slow
def test_a_full_disk_loses_no_finished_epoch(tmp_path: Path, small_disk: Path) -> None:
    common = ("-m", "model.pct_unfreeze=0.5,1.0", "epochs=6", "hydra/launcher=basic", *QUICK)
    process = start(*common, f"hydra.sweep.dir={small_disk}/sweep", cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not any(
        path.read_text().count("\n") > 2 for path in small_disk.glob("sweep/*/metrics.jsonl")
    ):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    with (small_disk / "filler").open("wb", buffering=0) as filler:
        while process.poll() is None:  # takes whatever space is freed
            with contextlib.suppress(OSError):
                while filler.write(bytes(4096)):
                    pass
            time.sleep(0.001)
    output, _ = process.communicate()
    assert process.returncode == 1, output
    assert "No space left on device" in output and "Traceback" not in output, output
    for path in small_disk.glob("sweep/*/metrics.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert [row["epoch"] for row in rows] == list(range(1, len(rows) + 1))
    (small_disk / "filler").unlink()
    code, output = tvf("resume", f"{small_disk}/sweep", cwd=tmp_path)
    assert code == 0 and "resumes after epoch" in output, output
    whole = start(*common, "hydra.sweep.dir=whole", cwd=tmp_path)
    output, _ = whole.communicate()
    assert whole.returncode == 0, output
    assert results(small_disk / "sweep") == results(tmp_path / "whole")
