"""The config ends in job/setup.py: read off the source, no function below it takes one."""

import ast
from collections.abc import Iterator
from pathlib import Path

from helpers import ROOT

BELOW = ("store", "models", "data", "frontier", "distributed", "training")
# In job/: setup.py, where the config ends, with its parts (heads.py, for jobs that share a setup),
# what it opens first, and those that hand it over.
ENDS = ("setup.py", "parts.py", "heads.py", "resources.py")
ENTRIES = {"run.py": {"run_job", "follow_job"}}
NAMES = {"cfg", "config", "configs", "node", "nodes", "overrides", "settings"}
TYPES = ("Config", "DictConfig", "OmegaConf")


def _takers(path: Path) -> Iterator[str]:
    """The functions in a file that have a parameter with a config's name or type."""
    for function in ast.walk(ast.parse(path.read_text())):
        if isinstance(function, ast.FunctionDef | ast.Lambda):
            arguments = function.args
            for parameter in [*arguments.args, *arguments.kwonlyargs]:
                annotation = ast.unparse(parameter.annotation) if parameter.annotation else ""
                if parameter.arg in NAMES and "fx.Node" not in annotation or annotation in TYPES:
                    yield getattr(function, "name", "lambda")


def test_nothing_below_the_job_takes_a_config() -> None:
    paths = [path for room in BELOW for path in sorted((ROOT / "tvf" / room).rglob("*.py"))]
    assert len(paths) > 20
    assert {str(path): [*_takers(path)] for path in paths if [*_takers(path)]} == {}


def test_in_the_job_only_its_setup_and_entries_take_one() -> None:
    paths = {path.name: path for path in (ROOT / "tvf" / "job").glob("*.py")}
    takers = {name: {*_takers(path)} for name, path in paths.items() if name not in ENDS}
    assert {name: found for name, found in takers.items() if found} == ENTRIES | {
        "origin.py": {"check_origin"}  # compares the data's options with another job's
    }
    assert "build_job" in {*_takers(paths["setup.py"])}
