"""Who may know what: the design's rules about imports, read off the source."""

import ast
import subprocess
import sys
from pathlib import Path

from helpers import ROOT

SOURCES = sorted((ROOT / "tvf").rglob("*.py"))


def _importers(*packages: str) -> set[str]:
    found = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if any(name.split(".")[0] in packages for name in names):
                found.add(str(path.relative_to(ROOT / "tvf")))
    return found


# build.py is the small module that turns `_target_` into objects.
def test_only_the_shells_side_knows_hydra_and_omegaconf() -> None:
    shell = {"cli/train.py", "cli/commands.py", "sweep/callback.py", "sweep/wandb_agents.py"}
    assert _importers("hydra", "omegaconf") == {
        *shell,
        *("config/build.py", "config/names.py", "config/validate.py", "job/run.py"),
    }


def test_only_tracking_knows_wandb() -> None:
    assert _importers("wandb") == {"records/tracking.py"}


def _loaded_after(*arguments: str, cwd: Path) -> set[str]:
    """The modules that `python train.py ARGUMENTS` has imported when it ends."""
    code = """
import atexit, sys
atexit.register(lambda: print("LOADED", *sys.modules))
sys.argv = ["train.py", *sys.argv[1:]]
from tvf.cli import train
train()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        check=True,
        cwd=cwd,
        capture_output=True,
        text=True,
    )
    return set(done.stdout.partition("LOADED ")[2].split())


def test_help_does_not_pay_for_torch(tmp_path: Path) -> None:
    loaded = _loaded_after("--help", cwd=tmp_path)
    assert "hydra" in loaded
    assert "torch" not in loaded


def test_a_job_without_tracker_does_not_pay_for_wandb(tmp_path: Path) -> None:
    quick = ("epochs=1", "data.limit=8", "data.batch_size=4", "data.image_size=32")
    loaded = _loaded_after(*quick, "tracker=none", cwd=tmp_path)
    assert "torch" in loaded
    assert "wandb" not in loaded
