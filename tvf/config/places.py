"""One form for equal values: places on disk, which may be spelled in many ways, and numbers.

Relative places are resolved once, from the folder where the command was given, so that the check of
a job and the job itself see the same path whatever the working directory is by then.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# Options that name a file or folder. Some do so only if they begin or end with this.
PLACES = (
    "data.root",
    "data.path",
    "data.groups",
    "model.init_from",
    "store.dir",
    "backbone.name",
    "backbone.checkpoint",
    "backbone.options.checkpoint_path",
    "backbone.options.cache_dir",
    "backbone.options.pretrained_cfg.file",
    "backbone.options.pretrained_cfg_overlay.file",
)
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".json")  # of a folder in timm's form
TABLE, TABLES, LOCAL = ".csv", (".csv", ".tsv", ".parquet"), "local-dir:"


def path_override(key: str, path: Path | str) -> str:
    """Return `key`=`path`, quoted for Hydra's grammar."""
    if re.fullmatch(r"[\w./-]+", str(path), re.ASCII):
        return f"{key}={path}"
    escaped = str(path).replace("\\", r"\\").replace("'", r"\'")
    return f"{key}='{escaped}'"


def resolve_places(config: dict[str, Any], base: str, *, needed: bool = False) -> None:
    """Make the places in a job's config absolute, in place; `base` is the command's folder.

    With `needed`, only those that do not exist as they are written: errors show what was given.
    """
    moved = base != os.getcwd()
    for node, name, key in _places_in(config):
        if moved or not needed or "~" in str(node[name])[:1]:
            node[name] = absolute_place(key, node[name], base)


def has_relative_places(config: Mapping[str, Any]) -> bool:
    """Whether a config names places that depend on the working directory."""
    for node, name, key in _places_in(config):
        path = _split(key, node[name])[1]
        if path is not None and not os.path.isabs(os.path.expanduser(path)):
            return True
    return False


def absolute_place(key: str, value: Any, base: str) -> Any:
    """The value of an option with its place, if it has one, as an absolute path.

    ~ is the user's home, if there is one; symbolic links stay.
    """
    prefix, path = _split(key, value, base)
    if path is None:
        return value
    return prefix + os.path.normpath(_in(base, path))


def canonical(key: str, value: Any) -> Any:
    """The value of an option in the form that all spellings of it share.

    Equal numbers are equal, also in JSON: 0 and 0.0. A place is its real path.
    """
    if isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, list | tuple):
        return [canonical("", item) for item in value]
    if isinstance(value, Mapping):
        return {name: canonical(f"{key}.{name}", item) for name, item in value.items()}
    prefix, path = _split(key, value)
    if path is None:
        return value
    return prefix + os.path.realpath(os.path.expanduser(path))


def backbone_content(backbone: Mapping[str, Any]) -> str | None:
    """A fingerprint of the local files of weights that a node names; None if there are none."""
    from tvf.store import fingerprint_files  # with torch

    files = [file for path in local_weights(backbone) for file in _files(path)]
    return fingerprint_files(files) if files else None


def _files(path: str) -> list[Path]:
    """The file at `path`, or the weights and their config in the folder; none if there are none."""
    place = Path(path)
    if not place.is_dir():
        return [place] if place.is_file() else []
    return [f for f in sorted(place.iterdir()) if f.suffix in WEIGHTS and f.is_file()]


def local_weights(backbone: Mapping[str, Any]) -> Iterator[str]:
    """The files and folders of weights that the node `backbone`, of absolute places, names."""
    for node, name, key in _places_in({"backbone": backbone}):
        prefix, path = _split(key, node[name])
        if path is not None and not key.endswith("cache_dir"):
            yield path


def _places_in(config: Mapping[str, Any]) -> Iterator[tuple[Any, str, str]]:
    """The nodes of a config that hold one of PLACES, with its name there and its dotted key."""
    for key in PLACES:
        node: Any = config
        *path, name = key.split(".")
        for part in path:
            node = node.get(part) if isinstance(node, Mapping) else None
        if isinstance(node, Mapping) and name in node:
            yield node, name, key


def _in(base: str, path: str) -> str:
    return os.path.join(base, os.path.expanduser(path))


def _split(key: str, value: Any, base: str = "") -> tuple[str, str | None]:
    """A place as what stands before the path, and the path; None if the value is no place.

    Relative paths begin in `base`, by default the working directory.
    """
    if key not in PLACES or not isinstance(value, str) or not value:
        return "", None
    if key == "data.groups":
        return "", value if value.endswith(TABLE) else None
    if key == "data.path":  # a table or a folder; a data source of one's own may mean anything
        table = value.lower().endswith(TABLES) and "://" not in value
        return "", value if table or os.path.isdir(_in(base, value)) else None
    if key == "backbone.name":
        return (LOCAL, value[len(LOCAL) :]) if value.startswith(LOCAL) else ("", None)
    return "", value
