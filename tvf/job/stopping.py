"""SIGTERM, which clusters send before they take a machine away, ends a job after its batch.

So the job can keep a checkpoint of all that it has trained.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stopped_after_batches() -> Iterator[Callable[[], bool]]:
    """In the context, SIGTERM only makes the function that this yields return True.

    It may come several times; SIGINT still interrupts at once. Threads other than the main one
    cannot change signals: there, SIGTERM acts as it does outside.
    """
    asked = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    previous = signal.signal(signal.SIGTERM, note)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGTERM, previous)
