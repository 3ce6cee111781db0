"""Processes of another machine, as leases show them, and machines that share a disk."""

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ELSEWHERE = {"host": "n2", "pid": 7, "machine": 16 * "0", "start": 5.0, "token": "theirs"}


def claim_elsewhere(path: Path, age: float = 0.0, **changes: Any) -> None:
    """Leave the file of a lease that another machine touched `age` seconds ago."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(ELSEWHERE | changes))
    grow_old(path, age)


def grow_old(path: Path, age: float) -> None:
    """Make `path` a file that was touched `age` seconds ago."""
    os.utime(path, (time.time() - age, time.time() - age))


@contextmanager
def beating(path: Path) -> Iterator[None]:
    """A context in which the file of a lease is touched every 50 ms, as by its holder."""
    end = threading.Event()

    def beat() -> None:
        while not end.wait(0.05):
            os.utime(path)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()
