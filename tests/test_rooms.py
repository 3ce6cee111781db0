"""Who may know what: the design's rules about imports, read off the source."""

import ast
import subprocess
import sys

from conftest import ROOT

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


def test_only_the_shells_side_knows_hydra_and_omegaconf() -> None:
    assert _importers("hydra", "omegaconf") == {"build.py", "cli.py", "run.py", "sweep/callback.py"}


def test_only_tracking_knows_wandb() -> None:
    assert _importers("wandb") == {"tracking.py"}


def test_help_and_import_do_not_pay_for_torch_and_a_job_without_tracker_does_not_pay_for_wandb() -> None:
    code = "import sys, tvf.cli; assert 'torch' not in sys.modules; import tvf.run; assert 'wandb' not in sys.modules"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=ROOT)
