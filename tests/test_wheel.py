"""The wheel by itself: installed in an environment of its own, run from a folder that knows nothing of the checkout."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

NETWORK = """
from torch import nn
from tvf.backbones import Backbone
from tvf.freezing import group_by_modules

def make(num_classes, width):
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    net = nn.Sequential(nn.Conv2d(3, width, 3), *pool, nn.Linear(width, num_classes))
    return Backbone("mine", net, "3", group_by_modules(net, [["0"]]))
"""


@pytest.mark.slow
def test_the_wheel_alone_trains_the_default_and_a_network_of_the_users(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    shipped = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".yaml")}
    assert shipped == {f"tvf/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")}

    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    subprocess.run([tmp_path / "venv/bin/pip", "install", "--quiet", f"{wheel}[demo]"], check=True)
    empty = tmp_path / "empty"
    (empty / "my_conf" / "backbone").mkdir(parents=True)
    (empty / "my_conf" / "backbone" / "mine.yaml").write_text("_target_: network.make\nwidth: 4\n")
    (empty / "my_conf" / "network.py").write_text(NETWORK)

    def tvf(*arguments: str) -> str:
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "PYTHON"))}
        command = [str(tmp_path / "venv/bin/tvf"), "train", *arguments]
        done = subprocess.run(
            command, cwd=empty, env=environment | {"NETRC": "/nowhere"}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "[finetune pct=0.5] epoch 1/1" in tvf("epochs=1", "data.limit=64")
    tvf("--config-dir", "./my_conf", "backbone=mine", "epochs=1", "data.limit=64", "hydra.run.dir=mine")
    assert json.loads((empty / "mine" / "summary.json").read_text())["backbone"] == "mine"
    # A sweep's workers are fresh processes: they must find the user's file too.
    tvf("--config-dir", "./my_conf", "-m", "backbone=mine", "seed=1,2", "epochs=1", "data.limit=64", "tracker=none")
    assert len(list(empty.glob("outputs/sweeps/*/*/summary.json"))) == 2
