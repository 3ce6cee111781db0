"""Files that appear whole or not at all: written under a temporary name, synced, then renamed."""

import json
import os
import re
from pathlib import Path
from typing import Any
from uuid import uuid4


def write_whole(path: Path, *content: bytes | memoryview) -> None:
    """Replace `path` by `content`; a reader sees the old file or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            file.writelines(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            error.filename = str(path)  # a disk that is full names no file
        raise


def remove_leftovers(folder: Path) -> None:
    """Remove what a process that was killed while it wrote to `folder` has left. Nobody else may be writing there."""
    for path in folder.glob(".*"):
        if re.fullmatch(r"\..+\.[0-9a-f]{32}", path.name):
            path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON. NaN and infinities become null, which every JSON reader knows."""
    write_whole(path, (json.dumps(finite(value), indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; an empty one if there is no such file, or something else in it."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_json_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one JSON object a line."""
    write_whole(
        path, "".join(json.dumps(finite(row), allow_nan=False) + "\n" for row in rows).encode()
    )


def finite(value: Any) -> Any:
    """A nested value with None for numbers that are not finite."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


LAST_CHECKPOINT = "checkpoints/last.pt"  # in a job's folder: what it goes on from
BEST_WEIGHTS = "checkpoints/best.safetensors"  # in a job's folder: those that validation chose
