"""Where a job's data live if its device has memory of its own: there, if they fit.

What does not fit is read ahead of the training step by a thread, and copied to the device beside
it. On a CPU nothing here does anything: memory-mapped tables are read where the work is.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tvf.data import Pool
from tvf.store import ArraySpec, format_bytes

RESIDENT = ("auto", "on", "off")  # see Residency
SHARE = 0.5  # of the device's free memory that data may take, divided among the jobs that share it
AHEAD = 2  # batches that wait for the training step
FILL = 1024  # rows that are copied to the device at once

Tensors = tuple[Tensor, ...]
Inputs = Callable[[np.ndarray], Tensors]
# Yields the inputs of the given batches of samples in turn, on the device.
Feed = Callable[[Sequence[np.ndarray]], Iterator[Tensors]]


class Residency:
    """Decides which data live in the memory of `device`, which `jobs` jobs share.

    `mode` "auto" takes at most SHARE of what is free, "on" whatever there is, "off" nothing.
    """

    def __init__(self, device: torch.device, mode: str = "auto", jobs: int = 1) -> None:
        self.device, self.mode, self.jobs = device, mode, jobs
        self._pools: dict[int, tuple[Pool, Tensor | None]] = {}  # by id, which the pool holds

    @property
    def is_apart(self) -> bool:
        """Whether the device has memory of its own."""
        return self.device.type == "cuda"

    def admits(self, size: int) -> bool:
        """Whether `size` bytes may be taken now."""
        if self.mode == "auto":
            return size <= SHARE * self.free_bytes() / self.jobs
        return self.mode == "on"

    def free_bytes(self) -> int:
        """The bytes of the device that nobody uses."""
        held = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return torch.cuda.mem_get_info(self.device)[0] + held

    def place_images(self, pool: Pool) -> bool:
        """Copy all pixels of the pool to the device if they fit; whether they do, decided once."""
        if id(pool) not in self._pools:
            images = pool.pixels.images
            fits = isinstance(images, Tensor) and self.admits(images.nbytes)
            self._pools[id(pool)] = pool, images.to(self.device) if fits else None
        return self.images(pool) is not None

    def images(self, pool: Pool) -> Tensor | None:
        """The pixels of the pool on the device, uint8 [N, 3, S, S]; None if they are not there."""
        return self._pools[id(pool)][1] if id(pool) in self._pools else None

    def describe(self, what: str, size: int, resident: bool) -> str:
        """Where `what`, of `size` bytes, lives: a part of a line of the log."""
        text = f"{what} ({format_bytes(size)})"
        if resident:
            return f"{text} on the device"
        if self.mode == "off":
            return f"{text} read ahead"
        among = "" if self.jobs == 1 else f" / {self.jobs} jobs"
        free = f"{SHARE:.0%} of the free {format_bytes(self.free_bytes())}{among}"
        return f"{text} read ahead, being more than {free}"


class DeviceRows:
    """Rows of one or more tensors that stay on the device once they are loaded: `capacity` rows.

    Rows are known by numbers below `count`.
    """

    def __init__(
        self, device: torch.device, capacity: int, count: int, columns: Sequence[ArraySpec]
    ) -> None:
        self.columns = [
            torch.empty(capacity, *column.shape, dtype=column.dtype, device=device)
            for column in columns
        ]
        self._used = 0
        self._slots = np.full(count, -1, np.int64)  # the place of each row in the columns

    def load(self, rows: np.ndarray, read: Callable[[np.ndarray], Sequence[Tensor]]) -> np.ndarray:
        """Return the places of `rows` in the columns, after loading those that are missing.

        `read(positions)` returns one tensor per column for the rows at these positions in `rows`.
        """
        missing = np.flatnonzero(self._slots[rows] < 0)
        for positions in np.split(missing, range(FILL, len(missing), FILL)):
            if len(positions):
                self._add(rows[positions], read(positions))
        return self._slots[rows]

    def _add(self, rows: np.ndarray, values: Sequence[Tensor]) -> None:
        start, self._used = self._used, self._used + len(rows)
        for column, value in zip(self.columns, values, strict=True):
            column[start : self._used] = value
        self._slots[rows] = np.arange(start, self._used)


def take_resident(
    batches: Sequence[np.ndarray],
    places: Callable[[np.ndarray], np.ndarray],
    take: Callable[[Tensor, np.ndarray], Tensors],
    device: torch.device,
) -> Iterator[Tensors]:
    """Yield `take(places of the samples, samples)` for each batch.

    The places of all batches go to the device in one copy.
    """
    if not batches:
        return
    chosen = torch.from_numpy(places(np.concatenate(batches))).to(device)
    for samples, own in zip(batches, chosen.split([*map(len, batches)]), strict=True):
        yield take(own, samples)


def read_ahead(
    batches: Sequence[np.ndarray], read: Inputs, device: torch.device
) -> Iterator[Tensors]:
    """Yield `read(samples)` on `device` for each batch, read by a thread while the device works."""
    copies, waiting = _SideCopies(device), deque[Future[Any]]()
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as thread:
        for samples in batches:
            waiting.append(thread.submit(lambda own: copies.send(read(own)), samples))
            if len(waiting) > AHEAD:
                yield copies.receive(waiting.popleft().result())
        while waiting:
            yield copies.receive(waiting.popleft().result())


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all passes: the allocator keeps freed memory by stream."""
    return torch.cuda.Stream(device)


class _SideCopies:
    """Copies tensors from pinned memory on a stream of its own, beside the computation."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = _side_stream(device) if device.type == "cuda" else None

    def send(self, tensors: Tensors) -> tuple[Tensors, Any]:
        """Start the copies; returns them, with the event that they are complete."""
        if self._stream is None:
            return tuple(tensor.to(self._device) for tensor in tensors), None
        with torch.cuda.stream(self._stream):
            copies = tuple(
                tensor.pin_memory().to(self._device, non_blocking=True) for tensor in tensors
            )
            return copies, self._stream.record_event()

    def receive(self, sent: tuple[Tensors, Any]) -> Tensors:
        """Make the computation wait for the copies, without the host."""
        copies, complete = sent
        if complete is not None:
            computation = torch.cuda.current_stream(self._device)
            computation.wait_event(complete)
            for copy in copies:  # or its memory could be reused before the computation ends
                copy.record_stream(computation)
        return copies
