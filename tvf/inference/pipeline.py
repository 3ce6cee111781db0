"""Images through a model, batch by batch: threads decode the next ones while the network runs."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tvf.data import without_pillow_limit
from tvf.errors import InputError
from tvf.inference.images import Item, Reading

AHEAD = 3  # batches that are read or waiting at any time


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
) -> Iterator[Chunk]:
    """Classify items in batches of `batch_size`, in their order.

    `run` maps pixels, uint8 [B, 3, S, S], to probabilities [B, classes].
    """
    starts = iter(range(0, len(items), batch_size))
    waiting: deque[tuple[Sequence[Item], list[Future[np.ndarray]]]] = deque()
    with without_pillow_limit(), ThreadPoolExecutor(torch.get_num_threads()) as pool:

        def submit() -> None:
            if (start := next(starts, None)) is not None:
                batch = items[start : start + batch_size]
                waiting.append((batch, [pool.submit(reading.read, item.image) for item in batch]))

        try:
            for _ in range(AHEAD):
                submit()
            while waiting:
                batch, futures = waiting.popleft()
                read, failed = _gather(batch, futures)
                submit()
                yield _run(read, failed, run)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


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
