"""Progress bars in the terminal, drawn by rich, which is loaded only where a bar is shown."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_display: Any = None  # the one rich.progress.Progress that draws all open bars


@contextmanager
def progress_bar(label: str | None, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar of `total` steps while the context is open; yield a function that advances it.

    Nothing is shown without a label, or if stderr is not a terminal.
    """
    global _display
    if label is None or not sys.stderr.isatty():
        yield lambda steps: None
        return
    outermost = _display is None
    if outermost:
        _display = _open_display()
    display = _display
    task = display.add_task(label, total=total)
    try:
        yield lambda steps: display.advance(task, steps)
    finally:
        display.remove_task(task)
        if outermost:
            display.stop()
            _display = None


def _open_display() -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    display = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,  # stdout may be a file
        redirect_stderr=False,
    )
    display.start()
    return display
