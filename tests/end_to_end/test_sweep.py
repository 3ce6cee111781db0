"""Whole sweeps, run as shell commands in their own processes, and the table at their end."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers import IMPORTABLE, ROOT, SMALL, Outcome, forks
from helpers.jobs import records
from tvf.records.rows import COLUMNS, read_jobs
from tvf.records.sweep import read_commands, read_configs, summary_run_id, write_manifest
from tvf.report.terminal import print_result, print_status

QUICK = ("epochs=2", "data.limit=40", "data.image_size=32", "data.batch_size=8")
# A backbone that, for one fraction, raises in its first training step, when the W&B run is open.
FLAKY = """
from helpers import small_backbone

def fail_in_training(module, inputs):
    if module.training and len(inputs[0]) > 2:  # two images check the network
        raise RuntimeError("the flaky backbone broke")

def make(num_classes, pct, fails_at):
    backbone = small_backbone(num_classes)
    if pct == fails_at:
        backbone.module.register_forward_pre_hook(fail_in_training)
    return backbone
"""


@pytest.fixture(autouse=True)
def wandb_as_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove W&B settings of the machine that runs the tests."""
    for key in [*os.environ]:
        if key.startswith("WANDB"):
            monkeypatch.delenv(key)


def _sweep(folder: Path, *arguments: str) -> tuple[int | None, str]:
    """Run a sweep in `folder`; return its exit code and its output."""
    command = (*arguments, *QUICK, f"hydra.sweep.dir={folder}")
    process = forks.train(*command, cwd=folder.parent, PYTHONPATH=IMPORTABLE)
    output, _ = process.communicate()
    return process.returncode, output


def _sweep_in_new_python(folder: Path, *arguments: str) -> tuple[int | None, str]:
    """The same in a new Python process instead of a fork."""
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        *arguments,
        *QUICK,
        f"hydra.sweep.dir={folder}",
    ]
    environment = os.environ | {"PYTHONPATH": IMPORTABLE}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=folder.parent, env=environment
    )
    return done.returncode, done.stdout + done.stderr


def _csv(sweep: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((sweep / "results.csv").read_text().splitlines()))


@pytest.mark.slow
def test_a_sweep_has_one_run_per_job_and_equal_results_under_every_launcher(tmp_path: Path) -> None:
    """With two local workers, one local worker and the basic launcher.

    W&B runs are distinct, records are equal bit for bit, and there is one table.
    """
    launchers = {
        "two": (),
        "one": ("hydra/launcher=local", "hydra.launcher.n_jobs=1"),
        "basic": ("hydra/launcher=basic",),
    }
    found, ids = {}, []
    for name, launcher in launchers.items():
        sweep = _sweep if launcher else _sweep_in_new_python  # as the README's command
        code, output = sweep(
            tmp_path / name, "-m", "model=transfer,finetune", "seed=1,2", SMALL, *launcher
        )
        assert code == 0, output
        found[name] = records(tmp_path / name)
        rows = _csv(tmp_path / name)
        assert [(row["name"], row["state"], row["wandb_mode"]) for row in rows] == [
            (f"{kind}-seed{seed}", "done", "offline")
            for kind in ("transfer-learning", "fine-tuning-0.5")
            for seed in (1, 2)
        ]
        ids += [row["wandb_run_id"] for row in rows]
        on_disk = [
            path.name.rpartition("-")[2] for path in (tmp_path / name).glob("*/wandb/offline-run-*")
        ]
        assert sorted(on_disk) == sorted(row["wandb_run_id"] for row in rows)
        for row in rows:
            assert f" {row['name']} " in output
            log = (tmp_path / name / row["folder"] / "job.log").read_text()
            assert log.count("epoch 2/2") == 1
        sweep_folder = tmp_path / name
        sent = (
            f"wandb sync {sweep_folder}/*/wandb/offline-run-* {sweep_folder}/wandb/offline-run-*\n"
        )
        assert sent in output and len(list(sweep_folder.glob("wandb/offline-run-*"))) == 1
        assert (
            f"report: {sweep_folder}/report.html" in output and "validation accuracy of" in output
        )
        assert "leaked" not in output
    assert len(set(ids)) == 12
    assert len(found["two"]) == 4
    assert found["two"] == found["one"] == found["basic"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["local", "basic"])
def test_a_job_that_raises_leaves_the_others_alone_and_is_reported_at_the_end(
    tmp_path: Path, launcher: str
) -> None:
    conf = tmp_path / "conf" / "backbone"
    conf.mkdir(parents=True)
    (conf / "flaky.yaml").write_text(
        "_target_: flaky.make\npct: ${model.pct_unfreeze}\nfails_at: 0.5\n"
    )
    (tmp_path / "conf" / "flaky.py").write_text(FLAKY)
    sweep = tmp_path / "sweep"
    arguments = (
        "--config-dir",
        str(tmp_path / "conf"),
        "-m",
        "backbone=flaky",
        "model.pct_unfreeze=0,0.5,1.0",
    )
    code, output = _sweep(sweep, *arguments, f"hydra/launcher={launcher}")
    assert code == 1, output
    assert "fine-tuning-0.5 failed: RuntimeError: the flaky backbone broke" in output
    rows = {row["name"]: row for row in read_jobs(sweep)}
    assert {name: row["state"] for name, row in rows.items()} == {
        "fine-tuning-0": "done",
        "fine-tuning-0.5": "failed",
        "fine-tuning-1.0": "done",
    }
    failed = sweep / rows["fine-tuning-0.5"]["folder"]
    assert "Traceback" in (failed / "job.log").read_text()
    (wandb_log,) = failed.glob("wandb/offline-run-*/logs/debug.log")
    assert "got exitcode: 1" in wandb_log.read_text()
    assert len(list(sweep.glob("*/wandb/offline-run-*"))) == 3


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["local", "basic"])
def test_an_override_that_refers_to_a_swept_value_is_resolved_per_job(
    tmp_path: Path, launcher: str
) -> None:
    code, output = _sweep(
        tmp_path / "sweep",
        "-m",
        "model.pct_unfreeze=0,0.25,1.0",
        "name=job-of-${model.pct_unfreeze}",
        "tracker=none",
        "epochs=1",
        SMALL,
        f"hydra/launcher={launcher}",
    )
    assert code == 0, output
    found = {(row["name"], float(row["pct_unfreeze"])) for row in _csv(tmp_path / "sweep")}
    assert found == {("job-of-0", 0.0), ("job-of-0.25", 0.25), ("job-of-1.0", 1.0)}


@pytest.mark.slow
def test_a_model_that_ignores_fractions_is_trained_once(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    code, output = _sweep(
        sweep,
        "-m",
        "model=transfer,finetune",
        "model.pct_unfreeze=0.25,0.50",
        "optimizer.lr=1e-3",
        "tracker=none",
        SMALL,
        "hydra/launcher=basic",
    )
    assert code == 0, output
    assert [row["name"] for row in read_jobs(sweep)] == [
        "transfer-learning-lr0.001",
        "fine-tuning-0.25-lr0.001",
        "fine-tuning-0.5-lr0.001",
    ]
    assert output.count("[transfer lr=0.001] epoch 2/2") == 1
    assert output.count("ignoring model.pct_unfreeze") == 1


def test_an_invalid_fraction_anywhere_in_a_sweep_fails_before_its_first_job(
    shell: Callable[..., Outcome], tmp_path: Path
) -> None:
    refused = shell("-m", "model.pct_unfreeze=0,0.5,50", *QUICK, "hydra.sweep.dir=sweep")
    assert refused.code == 1
    assert (
        refused.err
        == "error: pct_unfreeze=50 is outside [0, 1]: it is a fraction, did you mean 0.5?\n"
    )
    assert not (tmp_path / "sweep").exists()


def _job(sweep: Path, folder: str, state: str, **summary: Any) -> None:
    (sweep / folder).mkdir(parents=True)
    (sweep / folder / "status.json").write_text(
        json.dumps({"name": folder, "state": state, "error": "E: why"})
    )
    if summary:
        (sweep / folder / "summary.json").write_text(json.dumps(summary))


def _set(job: Path, **values: Any) -> None:
    status = json.loads((job / "status.json").read_text())
    (job / "status.json").write_text(json.dumps(status | values))


def test_the_table_is_sorted_by_fraction_and_lists_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _job(tmp_path, "large", "done", pct_unfreeze=1.0, unfrozen_groups=["a", "b"], test_acc=0.5)
    _job(tmp_path, "killed", "running")
    _job(
        tmp_path,
        "small",
        "done",
        pct_unfreeze=0.25,
        unfrozen_groups=["a"],
        test_acc=0.75,
        trainable_params=1234,
    )
    _set(tmp_path / "large", wandb_mode="offline")
    assert print_result(tmp_path, frozenset({"large", "killed", "small", "late"})) is True
    printed = capsys.readouterr().out
    assert printed.index("small") < printed.index("large") < printed.index("interrupted")
    for words in (
        "1,234",
        "0.750",
        "killed interrupted: its process is gone",
        "never started: late",
        "wandb sync",
    ):
        assert words in printed
    rows = _csv(tmp_path)
    assert list(rows[0]) == COLUMNS
    assert [(row["name"], row["unfrozen_groups"], row["state"]) for row in rows] == [
        ("small", "a", "done"),
        ("large", "a b", "done"),
        ("killed", "", "interrupted"),
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("job/summary.json", '{"pct_unfreeze": "x"}'),
        ("job/config.json", '{"model": "a", "seed": [1], "epochs": {}}'),
        ("job/config.json", '"a"'),
        ("job/metrics.jsonl", "{}\n[]\n"),
        ("sweep.json", '{"jobs": [], "commands": ["a"]}'),
        ("sweep.json", '{"jobs": {"other": 3}, "commands": {}}'),
    ],
)
def test_a_damaged_file_does_not_affect_other_jobs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str
) -> None:
    _job(tmp_path, "good", "done", pct_unfreeze=0.5)
    _job(tmp_path, "job", "done", pct_unfreeze=0.5)
    (tmp_path / name).write_text(content)
    print_status(tmp_path)
    assert print_result(tmp_path, frozenset({"good"})) is False
    assert "good" in capsys.readouterr().out and read_commands(tmp_path) == []


@pytest.mark.parametrize("foreign", ["", "[]", '{"state": "done"', '{"status": "ok"}'])
def test_a_folder_with_a_foreign_status_is_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], foreign: str
) -> None:
    _job(tmp_path, "good", "done", pct_unfreeze=0.5)
    _job(tmp_path, "foreign", "done")
    (tmp_path / "foreign" / "status.json").write_text(foreign)
    assert print_result(tmp_path, frozenset({"good"})) is False
    assert "foreign/status.json is not a job's status" in capsys.readouterr().err
    assert [row["name"] for row in _csv(tmp_path)] == ["good"]


def test_the_table_only_shows_other_overrides_in_which_jobs_differ(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, bn in (("a", "eval"), ("b", "batch")):
        _job(tmp_path, folder, "done", pct_unfreeze=0.5)
        (tmp_path / folder / ".hydra").mkdir()
        overrides = f"- epochs=3\n- model.frozen_bn={bn}\n- seed=1\n"
        (tmp_path / folder / ".hydra" / "overrides.yaml").write_text(overrides)
    print_result(tmp_path, frozenset())
    printed = capsys.readouterr().out
    assert "model.frozen_bn=eval" in printed and "model.frozen_bn=batch" in printed
    assert "epochs=3" not in printed and "seed=1" not in printed


def test_a_sweep_whose_jobs_are_all_done_has_nothing_unfinished(tmp_path: Path) -> None:
    _job(tmp_path, "only", "done", pct_unfreeze=1.0)
    assert print_result(tmp_path, frozenset({"only"})) is False


def test_the_run_that_compares_the_jobs_keeps_its_id_when_the_sweep_resumes(tmp_path: Path) -> None:
    write_manifest(tmp_path, {"a": {"seed": 1}})
    run = summary_run_id(tmp_path)
    write_manifest(tmp_path, {"b": {"seed": 2}})
    assert summary_run_id(tmp_path) == run and len(read_configs(tmp_path)) == 2
