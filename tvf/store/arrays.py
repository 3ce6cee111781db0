"""Tables of the store: rows of one or more tensors in a memory-mapped file, computed when needed.

Rows are computed in chunks, and only those that a job asks for. Processes that need the same rows
share the work: whoever computes a chunk holds its lease. Every row has a checksum, which says that
it is stored and detects damage.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tvf.lease import Lease, LeaseBusy
from tvf.memory import return_freed_memory
from tvf.progress import progress_bar
from tvf.store.row_file import (
    ABSENT,
    RESERVED,
    ArraySpec,
    RowFile,
    StoreError,
    ceil_div,
    storage_errors,
)

log = logging.getLogger(__name__)

CHUNK = 128  # rows; a chunk's size is a multiple of it
MAX_CHUNKS = 256  # per table
PIECE = 256  # rows that are computed together, however large chunks are: they are in memory then
ATTEMPTS = 3  # for rows that are damaged each time they are computed
Fill = Callable[[np.ndarray, bool], Sequence[Tensor]]
_Chunk = tuple[int, np.ndarray]  # its number, and some of its rows


class ChunkBusy(Exception):
    """Another process is computing this chunk."""


@dataclass
class ArrayTable:
    """A memory-mapped table of `rows` rows in the file `path`; missing rows are computed.

    `fill(rows, wait)` computes rows, given by their ascending numbers, and returns one tensor per
    column; if `wait` is false it may raise ChunkBusy instead of waiting for another process.
    `reserve(size, claim)` calls `claim` once there is room for `size` more bytes, or raises
    StoreError. With a `label`, a progress bar of that name shows while rows are computed.
    """

    path: Path
    rows: int
    columns: Sequence[ArraySpec]
    fill: Fill
    reserve: Callable[[int, Callable[[], None]], None]
    label: str | None = None

    def __post_init__(self) -> None:
        smallest = max(CHUNK, ceil_div(self.rows, MAX_CHUNKS))
        self.chunk_rows = ceil_div(smallest, CHUNK) * CHUNK
        self._file = RowFile(self.path, self.rows, self.columns)
        self._inode = 0  # of the file when these rows were checked
        self._verified = np.zeros(self.rows, bool)

    def tensors(self, rows: np.ndarray | None = None) -> list[Tensor]:
        """Return one memory-mapped tensor per column, after computing what is missing of `rows`.

        `rows` are ascending row numbers; None means all. Other rows may hold anything. Raises
        StoreError if they cannot be stored.
        """
        rows = np.arange(self.rows) if rows is None else rows
        for _ in range(ATTEMPTS):
            self._compute(rows, wait=True)
            tensors = self._verify(rows)
            if tensors is not None:
                return tensors
        raise StoreError(f"{self.path} is damaged each time it is written")

    def read(self, rows: np.ndarray, wait: bool) -> list[Tensor]:
        """Return a copy of some rows, computing the missing ones.

        If another process is computing them, wait for it or raise ChunkBusy.
        """
        for _ in range(ATTEMPTS):
            self._compute(rows, wait)
            tensors = self._verify(rows)
            if tensors is not None:
                return [tensor[torch.from_numpy(rows)] for tensor in tensors]
        raise StoreError(f"{self.path} is damaged each time it is written")

    def has(self, rows: np.ndarray) -> bool:
        """Whether these rows are stored."""
        return not len(self._file.absent(rows))

    def _compute(self, rows: np.ndarray, wait: bool) -> None:
        """Compute the missing ones of `rows`, leaving chunks that are busy for last.

        Raises ChunkBusy if there are any and `wait` is false.
        """
        missing = self._file.absent(rows)
        if not len(missing):
            return
        self._claim(missing)
        busy: list[_Chunk] = []
        with progress_bar(self.label, len(rows)) as advance:
            advance(len(rows) - len(missing))
            for chunks in self._batches(missing):
                left = self._compute_chunks(chunks, wait=False)
                advance(sum(len(rows) for _, rows in chunks) - sum(len(rows) for _, rows in left))
                busy += left
            if busy and not wait:
                raise ChunkBusy
            for chunk in busy:
                self._compute_chunks([chunk], wait=True)
                advance(len(chunk[1]))

    def _compute_chunks(self, chunks: list[_Chunk], wait: bool) -> list[_Chunk]:
        """Compute rows of some chunks together; returns the chunks that are busy."""
        busy: list[_Chunk] = []
        with ExitStack() as leases:
            leased = [np.empty(0, np.int64)]
            for number, rows in chunks:
                try:
                    leases.enter_context(self._leased_chunk(number, wait))
                    leased.append(rows)
                except ChunkBusy:
                    busy.append((number, rows))
            for rows in _pieces(self._file.absent(np.concatenate(leased))):
                try:
                    values = self.fill(rows, wait)
                except ChunkBusy:
                    return chunks
                self._file.write(rows, [value.cpu().contiguous() for value in values])
                return_freed_memory()
        return busy

    def _claim(self, rows: np.ndarray) -> None:
        """Take the bytes of these rows from the budget, creating the table if needed."""
        absent = self._file.states()[rows] == ABSENT

        def mark() -> None:
            self._file.create()
            self._file.set_states(rows[self._file.states()[rows] == ABSENT], RESERVED)

        if absent.any():
            with storage_errors(self.path):
                self.reserve(int(absent.sum()) * self._file.row_bytes, mark)

    def _verify(self, rows: np.ndarray) -> list[Tensor] | None:
        """Map the file; None if some of `rows` are damaged, after marking them as missing."""
        with storage_errors(self.path):
            if self._file.find_fault():
                return None
            tensors = self._file.map()
            if self._inode != self._file.inode:
                self._inode = self._file.inode
                self._verified[:] = False
            unverified = rows[~self._verified[rows]]
            wrong = self._file.find_damaged(tensors, unverified)
            self._verified[unverified] = True
            self._verified[wrong] = False
            for number, chunk in self._by_chunk(wrong):
                with self._leased_chunk(number, wait=True):
                    # Another process may have computed them again.
                    damaged = self._file.find_damaged(tensors, chunk)
                    self._file.set_states(damaged, RESERVED)
                if len(damaged):
                    message = "store: %d rows of %s are damaged: recomputing them."
                    log.warning(message, len(damaged), self.path)
        return None if len(wrong) else tensors

    @contextmanager
    def _leased_chunk(self, number: int, wait: bool) -> Iterator[None]:
        """Take the lease of a chunk; if another process has it, wait for it or raise ChunkBusy."""
        lease = Lease(self.path.with_suffix(".leases") / str(number))
        with storage_errors(self.path):
            try:
                lease.acquire(math.inf if wait else 0)
            except LeaseBusy:
                raise ChunkBusy from None
        try:
            yield
        finally:
            lease.release()

    def _batches(self, rows: np.ndarray) -> Iterator[list[_Chunk]]:
        """Yield the rows' chunks, as many together as make up a whole chunk of rows.

        Few rows at a time would take longer for each.
        """
        batch: list[_Chunk] = []
        for chunk in self._by_chunk(rows):
            batch.append(chunk)
            if sum(len(rows) for _, rows in batch) >= self.chunk_rows:
                yield batch
                batch = []
        if batch:
            yield batch

    def _by_chunk(self, rows: np.ndarray) -> list[_Chunk]:
        """The rows, which ascend, by the number of their chunk."""
        if not len(rows):
            return []
        numbers, starts = np.unique(rows // self.chunk_rows, return_index=True)
        return list(zip(numbers.tolist(), np.split(rows, starts[1:]), strict=True))


def _pieces(rows: np.ndarray) -> list[np.ndarray]:
    """Rows in pieces of about PIECE; few rows at the end belong to the piece before them."""
    bounds = [*range(PIECE, len(rows), PIECE)]
    if bounds and len(rows) - bounds[-1] < PIECE // 4:
        bounds.pop()
    return np.split(rows, bounds) if len(rows) else []
