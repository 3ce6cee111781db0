"""Tables of the store: rows of one or more tensors in a memory-mapped file, computed when needed.

Rows are computed in chunks, and only those that a job asks for. Processes that need the same rows
share the work; each chunk has a lock that the system releases when its holder dies. Every row has a
checksum, which says that it is stored and detects damage.
"""

import logging
import math
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from tvf.files import read_json, write_json
from tvf.progress import progress_bar

log = logging.getLogger(__name__)

SUFFIX, CHECKSUMS = ".rows", ".crc"  # of a table's two files
ALIGNMENT = 64  # bytes; the data of each tensor starts at a multiple of it
CHUNK = 128  # rows; a chunk's size is a multiple of it
MAX_CHUNKS = 256  # per table
ATTEMPTS = 3  # for rows that are damaged each time they are computed
MORE_ROOM = "tvf store clear frees space, store.dir chooses another folder"

# The state of a row in the checksum file. Other values are the checksum of a stored row.
ABSENT, RESERVED = 0, 1

Fill = Callable[[np.ndarray, bool], Sequence[Tensor]]
_Chunk = tuple[int, np.ndarray]  # its number, and some of its rows


class ChunkBusy(Exception):
    """Another process is computing this chunk."""


class StoreError(Exception):
    """The store cannot be used: no space is left, or its folder cannot be written."""


@dataclass(frozen=True)
class ArraySpec:
    """Shape and dtype of one tensor per row."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def row_bytes(self) -> int:
        """The bytes of one row."""
        return math.prod(self.shape) * self.dtype.itemsize


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
    _mapped: list[Tensor] | None = field(default=None, init=False)
    _inode: int = field(default=0, init=False)  # of the mapped file

    def __post_init__(self) -> None:
        smallest = max(CHUNK, _ceil_div(self.rows, MAX_CHUNKS))
        self.chunk_rows = _ceil_div(smallest, CHUNK) * CHUNK
        self.chunks = _ceil_div(self.rows, self.chunk_rows)
        self.row_bytes = sum(column.row_bytes for column in self.columns)
        self._offsets, self.size = [], 0
        for column in self.columns:
            self._offsets.append(self.size)
            self.size += _ceil_div(column.row_bytes * self.rows, ALIGNMENT) * ALIGNMENT
        self._verified = np.zeros(self.rows, bool)  # rows that this process has checked

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
        return not len(self._absent(rows))

    def missing(self, rows: np.ndarray | None = None) -> int:
        """The number of these rows (None: all) that are not stored yet."""
        return len(self._absent(np.arange(self.rows) if rows is None else rows))

    def _compute(self, rows: np.ndarray, wait: bool) -> None:
        """Compute the missing ones of `rows`, leaving chunks that are busy for last.

        Raises ChunkBusy if there are any and `wait` is false.
        """
        missing = self._absent(rows)
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
        with ExitStack() as locks:
            locked = [np.empty(0, np.int64)]
            for number, rows in chunks:
                try:
                    locks.enter_context(self._locked_chunk(number, wait))
                    locked.append(rows)
                except ChunkBusy:
                    busy.append((number, rows))
            missing = self._absent(np.concatenate(locked))
            if len(missing):
                try:
                    values = self.fill(missing, wait)
                except ChunkBusy:
                    return chunks
                self._write(missing, [value.cpu().contiguous() for value in values])
        return busy

    def _claim(self, rows: np.ndarray) -> None:
        """Take the bytes of these rows from the budget, creating the table if needed."""
        absent = self._states()[rows] == ABSENT

        def mark() -> None:
            self._create()
            self._set_states(rows[self._states()[rows] == ABSENT], RESERVED)

        if absent.any():
            with storage_errors(self.path):
                self.reserve(int(absent.sum()) * self.row_bytes, mark)

    def _create(self) -> None:
        """Create the files of the table unless they are sound. The store must be locked."""
        fault = self._find_fault()
        if fault is None:
            return
        if self.path.exists():
            log.warning("store: %s is damaged (%s): recomputing it.", self.path, fault)
            self.path.unlink()
        self._checksum_file.write_bytes(bytes(4 * self.rows))
        write_json(self._description_file, self._description())
        with self.path.open("xb") as empty:
            try:
                empty.truncate(self.size)
            except OSError:
                self.path.unlink()
                raise

    def _find_fault(self) -> str | None:
        """What is wrong with the files of the table; None if they are sound."""
        try:
            sizes = [self.path.stat().st_size, self._checksum_file.stat().st_size]
        except FileNotFoundError:
            return "a file is missing"
        if sizes != [self.size, 4 * self.rows]:
            return "its size is wrong"
        if read_json(self._description_file) != self._description():
            return "its description does not match"
        return None

    def _absent(self, rows: np.ndarray) -> np.ndarray:
        """Those of the rows that are not stored."""
        return rows[self._states()[rows] <= RESERVED]

    def _states(self) -> np.ndarray:
        """The state of every row, uint32."""
        with suppress(OSError):
            if self._find_fault() is None:
                return np.fromfile(self._checksum_file, np.uint32)
        return np.full(self.rows, ABSENT, np.uint32)

    def _set_states(self, rows: np.ndarray, states: Any) -> None:
        # Other processes set the states of other rows meanwhile: write these alone. A map is safe,
        # because the file has its full size on disk from the start.
        if len(rows):
            np.memmap(self._checksum_file, np.uint32, "r+")[rows] = states

    def _verify(self, rows: np.ndarray) -> list[Tensor] | None:
        """Map the file; None if some of `rows` are damaged, after marking them as missing."""
        with storage_errors(self.path):
            if self._find_fault():
                return None
            tensors = self._map()
            unverified = rows[~self._verified[rows]]
            wrong = self._find_damaged(tensors, unverified)
            self._verified[unverified] = True
            self._verified[wrong] = False
            for number, chunk in self._by_chunk(wrong):
                with self._locked_chunk(number, wait=True):
                    # Another process may have computed them again.
                    damaged = self._find_damaged(tensors, chunk)
                    self._set_states(damaged, RESERVED)
                if len(damaged):
                    message = "store: %d rows of %s are damaged: recomputing them."
                    log.warning(message, len(damaged), self.path)
        return None if len(wrong) else tensors

    def _find_damaged(self, tensors: Sequence[Tensor], rows: np.ndarray) -> np.ndarray:
        """Those of the rows whose content does not match their checksum."""
        if not len(rows):
            return rows
        return rows[_checksums(tensors, rows) != self._states()[rows]]

    @contextmanager
    def _locked_chunk(self, number: int, wait: bool) -> Iterator[None]:
        """Lock a chunk; if another process holds the lock, wait for it or raise ChunkBusy."""
        folder = self.path.with_suffix(".locks")
        lock = FileLock(folder / f"{number}.lock")
        with storage_errors(self.path):
            folder.mkdir(exist_ok=True)
            try:
                lock.acquire(timeout=-1 if wait else 0)
            except Timeout:
                raise ChunkBusy from None
        try:
            yield
        finally:
            lock.release()

    @property
    def _checksum_file(self) -> Path:
        return self.path.with_suffix(CHECKSUMS)

    @property
    def _description_file(self) -> Path:
        return self.path.with_suffix(".json")

    def _description(self) -> dict[str, Any]:
        columns = [[str(column.dtype), list(column.shape)] for column in self.columns]
        return {"rows": self.rows, "columns": columns}

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

    def _map(self) -> list[Tensor]:
        """Map the data file, once. The map shows what other processes write to it later."""
        inode = self.path.stat().st_ino
        if self._mapped is None or self._inode != inode:
            self._verified[:] = False
            try:
                raw = torch.from_file(
                    str(self.path), shared=False, size=self.size, dtype=torch.uint8
                )
            except RuntimeError as error:
                raise StoreError(f"{self.path} cannot be mapped: {error}") from error
            self._inode, self._mapped = (
                inode,
                [
                    raw[offset : offset + column.row_bytes * self.rows]
                    .view(column.dtype)
                    .view(self.rows, *column.shape)
                    for offset, column in zip(self._offsets, self.columns, strict=True)
                ],
            )
        return self._mapped

    def _write(self, rows: np.ndarray, values: Sequence[Tensor]) -> None:
        """Store rows of a chunk whose lock this process holds."""
        for column, value in zip(self.columns, values, strict=True):
            assert value.shape == (len(rows), *column.shape)
            assert value.dtype == column.dtype
        runs = np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows) != 1) + 1)
        with storage_errors(self.path):
            # Not through a memory map: on a full disk a write raises, but a map crashes.
            file = os.open(self.path, os.O_RDWR)
            try:
                for offset, column, value in zip(self._offsets, self.columns, values, strict=True):
                    for run in runs:
                        place = offset + int(rows[run[0]]) * column.row_bytes
                        _write_at(file, place, _bytes(value[run[0] : run[-1] + 1]))
            finally:
                os.close(file)
            self._set_states(rows, _checksums(values, np.arange(len(rows))))


def count_missing(path: Path, rows: np.ndarray) -> int:
    """How many of these rows the table in the data file `path` does not hold yet."""
    try:
        states = np.fromfile(path.with_suffix(CHECKSUMS), np.uint32)
        return int((states[rows] <= RESERVED).sum())
    except (OSError, IndexError):
        return len(rows)


def stored_bytes(path: Path) -> int:
    """The bytes that the table in the data file `path` has taken from the budget."""
    try:
        states = np.fromfile(path.with_suffix(CHECKSUMS), np.uint32)
        size = path.stat().st_size
    except OSError:
        return 0
    return -(-size * int((states != ABSENT).sum()) // len(states)) if len(states) else 0


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an OSError inside the context into a StoreError about `path`."""
    try:
        yield
    except OSError as error:
        reason, place = error.strerror or error, error.filename or path
        raise StoreError(f"{reason} ({place}; {MORE_ROOM})") from error


def _ceil_div(value: int, by: int) -> int:
    return -(-value // by)


def _bytes(value: Tensor) -> Any:
    return value.contiguous().reshape(-1).view(torch.uint8).numpy()


def _write_at(file: int, place: int, content: Any) -> None:
    """Write all of `content`; a single call to the system may write only part of it."""
    remaining = memoryview(content)
    while remaining:
        written = os.pwrite(file, remaining, place)
        remaining, place = remaining[written:], place + written


def _checksums(values: Sequence[Tensor], rows: np.ndarray) -> np.ndarray:
    """A checksum of each of these rows over all columns, uint32, never ABSENT or RESERVED."""
    columns = [_bytes(value).reshape(len(value), -1) for value in values]
    checksums = np.zeros(len(rows), np.uint32)
    for number, row in enumerate(rows.tolist()):
        checksum = 0
        for column in columns:
            checksum = zlib.crc32(column[row], checksum)
        checksums[number] = max(checksum, RESERVED + 1)
    return checksums
