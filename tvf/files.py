"""Files that appear whole or not at all: written under a temporary name, synced, then renamed."""

import codecs
import errno
import json
import math
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from tvf.owners import temporary_beside

NODE_FOLDER = "node-"  # in the store's folder: how the names of the stores of nodes begin
# Paths inside a job's folder.
LAST_CHECKPOINT = "checkpoints/last.pt"  # everything needed to resume
BEST_WEIGHTS = "checkpoints/best.safetensors"  # the weights of the best epoch on validation images
MODEL_CARD = "checkpoints/MODEL_CARD.md"  # of the job that a sweep recommends
NO_HOME = "TVF_NO_HOME"  # environment variable: the home folder is temporary


def cache_folder() -> Path:
    """tvf's folder in the user's cache; FileNotFoundError for a user without a home folder."""
    import platformdirs

    with suppress(RuntimeError):  # there is no home
        if NO_HOME not in os.environ:
            return Path(platformdirs.user_cache_dir("tvf"))
    raise FileNotFoundError(errno.ENOENT, "this user has no home folder", "~/.cache/tvf")


# Control characters, line separators, and the surrogates that stand for bytes that are not UTF-8.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def printable(name: object) -> str:
    """A file's name as it can be shown and written anywhere, with escapes such as \\xe9 and \\n.

    Python holds bytes of a name that are not UTF-8 as surrogates, which cannot be encoded.
    """
    return _UNPRINTABLE.sub(_escape, str(name))


def encode_text(text: str) -> bytes:
    """Text as UTF-8, with the bytes of names that are not UTF-8 escaped as `printable` does."""
    return text.encode("utf-8", "tvf.escape")


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # os.fsdecode of the byte code - 0xDC00
        return f"\\x{code - 0xDC00:02x}"
    return match[0].encode("unicode_escape").decode()


def _escape_unencodable(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return printable(error.object[error.start : error.end]), error.end


codecs.register_error("tvf.escape", _escape_unencodable)


def write_whole(path: Path, *content: bytes | memoryview) -> None:
    """Write `content` to `path`; a reader sees either the old file or the new one."""
    temporary = temporary_beside(path)
    try:
        with temporary.open("xb") as file:
            file.writelines(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            error.filename = str(path)  # the error for a full disk has no file name
        raise


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON; NaN and infinities become null, since JSON has neither."""
    write_whole(path, (json.dumps(finite(value), indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object in `path`; empty if the file is missing or holds anything else."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_json_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one JSON object per line."""
    lines = [json.dumps(finite(row), allow_nan=False) + "\n" for row in rows]
    write_whole(path, "".join(lines).encode())


def finite(value: Any) -> Any:
    """Copy a nested value, replacing non-finite numbers with None."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
