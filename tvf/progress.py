"""Progress bars in the terminal: rich's, loaded only where one is shown."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_running: Any = None  # the rich.progress.Progress that shows all bars at once


@contextmanager
def progress_bar(label: str | None, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar of `total` steps until the context ends; call what it yields with the steps done.

    Without a label, or where stderr is no terminal, nothing is shown.
    """
    global _running
    if label is None or not sys.stderr.isatty():
        yield lambda steps: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    outermost = _running is None
    if outermost:
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeLeft()
        _running = Progress(*columns, console=Console(stderr=True), transient=True)
        _running.start()
    progress = _running
    task = progress.add_task(label, total=total)
    try:
        yield lambda steps: progress.advance(task, steps)
    finally:
        progress.remove_task(task)
        if outermost:
            progress.stop()
            _running = None
