"""What jobs find out that the next jobs of the same process need not find out again.

A process that forks its jobs gets it back from each of them.
"""

import io
import pickle
import sys
from contextlib import suppress
from typing import Any, BinaryIO

_findings: dict[str, dict[Any, Any]] = {}  # by kind and key
_new: set[str] = set()  # kinds of which something was found since `take`


def recall(kind: str, key: Any) -> Any:
    """What was found; None if nothing was."""
    return _findings.get(kind, {}).get(key)


def remember(kind: str, key: Any, value: Any, most: int) -> None:
    """Remember a value that can be pickled; of `most` of its kind, the oldest is forgotten."""
    known = _findings.setdefault(kind, {})
    while len(known) >= most and key not in known:
        known.pop(next(iter(known)))
    known[key] = value
    _new.add(kind)


def give(file: BinaryIO) -> None:
    """Write what this process has found since it began, of each kind that can be written."""
    written = {}
    for kind in _new:
        content = io.BytesIO()
        with suppress(Exception):  # a user's code may be part of it; no job depends on it
            _Pickler(content).dump(_findings.get(kind, {}))
            written[kind] = content.getvalue()
    with suppress(OSError):
        if written:
            pickle.dump(written, file)
            file.flush()


def take(file: BinaryIO) -> None:
    """Remember what another process of this program has written to `file`, if it got that far."""
    file.seek(0)
    written: dict[str, bytes] = {}
    with suppress(Exception):
        written = pickle.load(file)
    for kind, values in written.items():
        with suppress(Exception):
            _findings.setdefault(kind, {}).update(pickle.loads(values))


class _Pickler(pickle.Pickler):
    """Takes no tensor on a GPU: to read it, a process that forks jobs would initialise CUDA."""

    def reducer_override(self, obj: Any) -> Any:
        """Pickle as usual, or raise PicklingError."""
        torch = sys.modules.get("torch")
        if torch and isinstance(obj, torch.Tensor) and obj.is_cuda:
            raise pickle.PicklingError("a tensor on a GPU")
        return NotImplemented
