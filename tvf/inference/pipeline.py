"""Images through a model, batch by batch: threads decode the next ones while the network runs.

On a CPU several batches run at once, each with as many threads as the training had: then the bits
are those of the training, and fewer threads wait for each other in every layer.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tvf.data import without_pillow_limit
from tvf.errors import InputError
from tvf.inference.images import Item, Reading

AHEAD = 2  # batches that are read or waiting at any time, besides those that run
AT_ONCE = 16  # batches that run at the same time, at most: each takes memory

_lock = threading.Lock()
_threads: list[int] = []  # torch's number of threads, once for each prediction that is under way


@dataclass(frozen=True)
class Chunk:
    """Some classified images in their order, and those among them that could not be read.

    `probabilities` is float64 [N, classes], one row per item in `items`; `failed` holds items with
    the reason.
    """

    items: list[Item]
    probabilities: np.ndarray
    failed: list[tuple[Item, str]]

    def __len__(self) -> int:
        return len(self.items) + len(self.failed)


def classify(
    items: Sequence[Item],
    reading: Reading,
    run: Callable[[Tensor], np.ndarray],
    batch_size: int,
    threads: int | None = None,
) -> Generator[Chunk, None, None]:
    """Classify items in batches of `batch_size`, in their order.

    `run` maps pixels, uint8 [B, 3, S, S], to probabilities [B, classes]. Each batch runs with so
    many of torch's threads, several batches at once; None: with all of them, one after the other.
    """
    starts = iter(range(0, len(items), batch_size))
    waiting: deque[Future[Chunk]] = deque()

    def submit() -> None:
        if (start := next(starts, None)) is not None:
            batch = items[start : start + batch_size]
            futures = [readers.submit(reading.read, item.image) for item in batch]
            waiting.append(runners.submit(_classify_batch, batch, futures, run))

    with without_pillow_limit(), _shared_threads() as total:
        each = min(threads or total, total)
        at_once = min(AT_ONCE, total // each)
        readers = ThreadPoolExecutor(total)
        runners = ThreadPoolExecutor(at_once, "runner", torch.set_num_threads, (each,))
        try:
            for _ in range(AHEAD + at_once):
                submit()
            while waiting:
                chunk = waiting.popleft().result()
                submit()
                yield chunk
        finally:
            readers.shutdown(wait=False, cancel_futures=True)
            runners.shutdown(cancel_futures=True)


@contextmanager
def _shared_threads() -> Iterator[int]:
    """Torch's number of threads, restored at the end: a new thread's number is the last one set."""
    with _lock:
        _threads.append(_threads[0] if _threads else torch.get_num_threads())
    try:
        yield _threads[0]
    finally:
        with _lock:
            total = _threads.pop()
            if not _threads:
                torch.set_num_threads(total)


def _classify_batch(
    batch: Sequence[Item],
    futures: Sequence[Future[np.ndarray]],
    run: Callable[[Tensor], np.ndarray],
) -> Chunk:
    return _run(*_gather(batch, futures), run)


def _gather(
    batch: Sequence[Item], futures: Sequence[Future[np.ndarray]]
) -> tuple[list[tuple[Item, np.ndarray]], list[tuple[Item, str]]]:
    read, failed = [], []
    for item, future in zip(batch, futures, strict=True):
        try:
            read.append((item, future.result()))
        except InputError as error:
            failed.append((item, str(error)))
    return read, failed


def _run(
    read: Sequence[tuple[Item, np.ndarray]],
    failed: list[tuple[Item, str]],
    run: Callable[[Tensor], np.ndarray],
) -> Chunk:
    if not read:
        return Chunk([], np.empty((0, 0)), failed)
    items, squares = zip(*read, strict=True)
    pixels = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).contiguous()
    probabilities = run(pixels)
    if not (finite := np.isfinite(probabilities).all(1)).all():
        item = items[int(np.flatnonzero(~finite)[0])]
        raise InputError(
            f"the network's output for {item.name} is not finite: its weights are at fault."
        )
    return Chunk([*items], probabilities, failed)
