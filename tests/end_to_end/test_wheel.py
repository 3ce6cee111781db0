"""The wheel with only its declared dependencies, run from a folder outside the checkout."""

import json
import os
import subprocess
import sys
import zipfile
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from helpers import ROOT

NETWORK = """
from torch import nn
from tvf.models import Backbone, group_by_modules

def make(num_classes, width):
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    net = nn.Sequential(nn.Conv2d(3, width, 3), *pool, nn.Linear(width, num_classes))
    return Backbone("mine", net, "3", group_by_modules(net, [["0"]]))
"""


def link_requirements(site: Path, wheel: Distribution, extra: str) -> set[str]:
    """Link the installed dependencies of `wheel`, direct and indirect, into `site`.

    Returns the names of all linked packages.
    """
    linked, todo = {(wheel.name, extra)}, [(text, extra) for text in wheel.requires or []]
    while todo:
        text, extra = todo.pop()
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        package = distribution(requirement.name)
        assert requirement.specifier.contains(package.version, prereleases=True), text
        new = {(package.name, name) for name in ("", *requirement.extras)} - linked
        linked |= new
        todo += [(needed, extra) for _, extra in new for needed in package.requires or []]
        # Several packages, this wheel among them, install files into hydra_plugins.
        parts = (
            file.parts[: 2 if file.parts[0] == "hydra_plugins" else 1]
            for file in package.files or []
        )
        for name in {str(Path(*part)) for part in parts if part[0] not in ("..", "__pycache__")}:
            if not (site / name).exists():
                (site / name).symlink_to(Path(str(package.locate_file(name))))
    return {name for name, _ in linked}


@pytest.mark.slow
def test_the_wheel_alone_trains_the_default_and_a_users_own_network(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ROOT], check=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    held = zipfile.ZipFile(wheel).namelist()
    shipped = {name for name in held if name.endswith(".yaml")}
    assert shipped == {f"tvf/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")}
    # hydra_plugins is a namespace package, which other packages extend too.
    assert "hydra_plugins/tvf_sweepers.py" in held and "hydra_plugins/__init__.py" not in held

    # Links instead of downloads: this environment was itself installed from scratch.
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    pip = [sys.executable, "-m", "pip", "--python", tmp_path / "venv/bin/python"]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", wheel], check=True)
    (installed,) = tmp_path.glob("venv/lib/python*/site-packages/tvf-*.dist-info")
    names = link_requirements(installed.parent, Distribution.at(installed), "demo")
    assert {"torch", "wandb", "elpv-dataset"} < names and "pytest" not in names
    empty = tmp_path / "empty"
    (empty / "my_conf" / "backbone").mkdir(parents=True)
    (empty / "my_conf" / "backbone" / "mine.yaml").write_text("_target_: network.make\nwidth: 4\n")
    (empty / "my_conf" / "network.py").write_text(NETWORK)

    def tvf(*arguments: str) -> str:
        environment = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("WANDB", "PYTHON"))
        }
        command = [str(tmp_path / "venv/bin/tvf"), "train", *arguments]
        done = subprocess.run(
            command,
            cwd=empty,
            env=environment | {"NETRC": "/nowhere"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "[finetune pct=0.5] epoch 1/1" in tvf("epochs=1", "data.limit=64", "data.image_size=32")
    # A sweep's workers are new processes, which must find the user's file too.
    mine = (
        "--config-dir",
        "./my_conf",
        "-m",
        "backbone=mine",
        "seed=1,2",
        "epochs=1",
        "data.limit=64",
        "data.image_size=32",
        "tracker=none",
    )
    assert "Successive halving: 1 candidates" in tvf(*mine, "hydra/sweeper=halving")
    summaries = [
        json.loads(path.read_text()) for path in empty.glob("outputs/sweeps/*/*/summary.json")
    ]
    (report,) = empty.glob("outputs/sweeps/*/report.html")  # its template is in the wheel
    assert "vegaEmbed" in report.read_text()
    assert [summary["backbone"] for summary in summaries] == 2 * ["mine"]
