"""What loading a model may run: tvf's own code, and the user's only if it is trusted."""

import os
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from tvf.config import build, modern_node
from tvf.data import DataSource
from tvf.errors import InputError
from tvf.files import printable

DATA = tuple(
    f"tvf.data.{name}" for name in ("Cifar10", "Elpv", "HfDataset", "ImageFolder", "ImageTable")
)


def names_code(options: Any) -> bool:
    """Whether a nested option names something to import."""
    if isinstance(options, Mapping):
        return "_target_" in options or any(map(names_code, options.values()))
    return isinstance(options, list) and any(map(names_code, options))


def import_own(target: str, part: str, folder: Path, trust_code: bool) -> Any:
    """The function or class of the user's own that a job was trained with."""
    if not trust_code:
        raise InputError(
            f"{printable(folder)}: its {part} is code of your own ({target}), which loading the "
            "model would run. If you trust it: tvf.load(..., trust_code=True), or --trust-code."
        )
    module, _, name = target.rpartition(".")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"{printable(folder)}: its {part} {target} cannot be imported ({error}). Call this "
            f"from the folder that holds {module.partition('.')[0]}.py, or put that on PYTHONPATH."
        ) from error


def open_source(config: Mapping[str, Any], trust_code: bool) -> DataSource:
    """The data source of a job; InputError for one of the user's own that is not trusted."""
    node = modern_node(config["data"])
    options = {key: value for key, value in node.items() if key != "_target_"}
    if not trust_code and (node.get("_target_") not in DATA or names_code(options)):
        raise InputError(
            f"its data source is code of your own ({node.get('_target_')}), which reading the "
            "images would run. If you trust it: --trust-code."
        )
    return build(node, "data")
