"""What jobs find out that the next jobs of the same process need not find out again.

A process that forks its jobs gets it back from each of them.
"""

import pickle
from typing import Any, BinaryIO

_findings: dict[str, dict[Any, Any]] = {}  # by kind and key
_new: set[str] = set()  # kinds of which something was found since `take`


def recall(kind: str, key: Any) -> Any:
    """What was found; None if nothing was."""
    return _findings.get(kind, {}).get(key)


def remember(kind: str, key: Any, value: Any, most: int) -> None:
    """Remember a value that can be pickled, unless there are `most` of its kind."""
    known = _findings.setdefault(kind, {})
    if key in known or len(known) < most:
        known[key] = value
        _new.add(kind)


def give(file: BinaryIO) -> None:
    """Write what this process has found since it began."""
    if _new:
        file.write(pickle.dumps({kind: _findings[kind] for kind in _new}))
        file.flush()


def take(file: BinaryIO) -> None:
    """Remember what another process of this program has written to `file`, if it came so far."""
    file.seek(0)
    try:
        found = pickle.load(file)
    except (EOFError, pickle.UnpicklingError):
        return
    for kind, values in found.items():
        _findings.setdefault(kind, {}).update(values)
