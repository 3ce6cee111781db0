"""`tvf confirm` on a real sweep: what trains, what does not train again, and what is reported."""

import html
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from helpers import IMPORTABLE, SMALL, forks
from tvf.records import CONFIRMATION, read_sweep

QUICK = ("epochs=1", "data.limit=120", "data.image_size=32", "tracker=none", "threads=1")


def _run(process: forks.Process) -> str:
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


def _tvf(folder: Path, *arguments: str) -> str:
    return _run(forks.tvf(*arguments, cwd=folder, PYTHONPATH=IMPORTABLE))


def _report(folder: Path) -> dict[str, Any]:
    (comparison,) = json.loads(
        _tvf(folder, "report", "sweep", "--format", "json", "--output", "-")
    )["comparisons"]
    return comparison


@pytest.mark.slow
def test_a_sweeps_choice_is_confirmed_once_and_then_quoted(tmp_path: Path) -> None:
    # The scores differ at these rates, and with this margin either is good enough: one is chosen.
    decided = ("optimizer.lr=0.05", "optimizer.backbone_lr=0.05", "report.margin=1.0")
    grid = ("-m", "model.pct_unfreeze=0,1.0", "data.folds=2", "data.fold=0,1", SMALL, *decided)
    basic = ("hydra/launcher=basic", "hydra.sweep.dir=sweep")
    output = _run(forks.train(*grid, *QUICK, *basic, cwd=tmp_path, PYTHONPATH=IMPORTABLE))
    assert "tvf confirm sweep" in output
    chosen = _report(tmp_path)["chosen"]

    output = _tvf(tmp_path, "confirm", "sweep")
    assert "4 jobs (data.split_seed=1 data.fold=0,1 seed=1338)" in output
    assert output.count("] epoch 1/1") == 4
    assert "fresh folds with a fresh seed: pct_unfreeze=" in output and "tvf confirm" not in output
    rows = read_sweep(tmp_path / "sweep" / CONFIRMATION)
    trained = [(row["pct_unfreeze"], row["config"]["data"]["fold"], row["seed"]) for row in rows]
    assert sorted(trained) == [(share, fold, 1338) for share in (0, 1) for fold in (0, 1)]
    assert {row["config"]["data"]["split_seed"] for row in rows} == {1}
    assert len(read_sweep(tmp_path / "sweep")) == 4

    found = _report(tmp_path)
    assert found["chosen"] == chosen == found["confirmation"]["configurations"][0]["label"]
    page = (tmp_path / "sweep" / "report.html").read_text()
    assert found["confirmation"]["text"] in html.unescape(page)
    assert "2 fresh folds with a fresh seed: pct_unfreeze=" in page

    again = _tvf(tmp_path, "confirm", "sweep")
    assert ", of which all are done." in again and "] epoch 1/1" not in again

    shutil.rmtree(rows[0]["path"])
    assert _report(tmp_path)["confirmation"]["confirmed"] is None
    resumed = _tvf(tmp_path, "resume", f"sweep/{CONFIRMATION}")
    assert resumed.count("] epoch 1/1") == 1
    assert _report(tmp_path)["confirmation"] == found["confirmation"]
