"""Tables of the store: rows of one or more tensors in a memory-mapped file, computed once.

A table is computed in chunks. Processes that need the same table at the same time share its
chunks; each chunk has a lock that the system releases when its holder dies. The file gets its
final name once it is complete, and every chunk has a checksum, so damage is detected.
"""

import logging
import math
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from tvf.files import read_json, write_json
from tvf.progress import progress_bar

log = logging.getLogger(__name__)

ALIGNMENT = 64  # bytes; the data of each tensor starts at a multiple of it
CHUNK = 128  # rows; a chunk's size is a multiple of it
MAX_CHUNKS = 256  # per table
ATTEMPTS = 3  # for a table that is damaged each time it is computed
MORE_ROOM = "tvf store clear frees space, store.dir chooses another folder"


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

    `fill(rows, wait)` computes a slice of the rows and returns one tensor per column; if `wait` is
    false it may raise ChunkBusy instead of waiting for another process. `reserve(path, size)` makes
    an empty file of `size` bytes or raises StoreError. With a `label`, a progress bar of that name
    shows while rows are computed.
    """

    path: Path
    rows: int
    columns: Sequence[ArraySpec]
    fill: Callable[[slice, bool], Sequence[Tensor]]
    reserve: Callable[[Path, int], None]
    label: str | None = None
    _mapped: list[Tensor] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        smallest = max(CHUNK, _ceil_div(self.rows, MAX_CHUNKS))
        self.chunk_rows = _ceil_div(smallest, CHUNK) * CHUNK
        self.chunks = _ceil_div(self.rows, self.chunk_rows)
        self._offsets, self.size = [], 0
        for column in self.columns:
            self._offsets.append(self.size)
            self.size += _ceil_div(column.row_bytes * self.rows, ALIGNMENT) * ALIGNMENT

    def tensors(self) -> list[Tensor]:
        """Return all rows, one memory-mapped tensor per column, computing the missing ones.

        Raises StoreError if they cannot be stored.
        """
        for _ in range(ATTEMPTS):
            self._mapped = self._open() or self._complete()
            if self._mapped is not None:
                return self._mapped
        raise StoreError(f"{self.path} is damaged each time it is written")

    def chunk(self, number: int, wait: bool) -> Sequence[Tensor]:
        """Return the rows of a chunk, computing them if they are missing.

        If another process is computing them, wait for it or raise ChunkBusy.
        """
        for _ in range(ATTEMPTS):
            if tensors := self._open():
                return [tensor[self._rows_of(number)] for tensor in tensors]
            if lock := self._lock_chunk(number, wait):
                try:
                    if values := self._read_or_compute(number, wait):
                        return values
                finally:
                    lock.release()
        raise StoreError(f"{self.path} disappears after it is written")

    def has(self, number: int) -> bool:
        """Whether a chunk is stored."""
        return self.path.exists() or self._stored_checksum(number) is not None

    def missing(self) -> int:
        """The number of rows that are not stored yet."""
        if self.path.exists():
            return 0
        return sum(
            self._length_of(number)
            for number in range(self.chunks)
            if self._stored_checksum(number) is None
        )

    def _read_or_compute(self, number: int, wait: bool) -> Sequence[Tensor] | None:
        """Return the rows of a chunk whose lock this process holds.

        Returns None if other processes have just completed the table.
        """
        if self.path.exists():
            return None
        if (checksum := self._stored_checksum(number)) is not None:
            if values := self._read_chunk(number, checksum):
                return values
            if self.path.exists():
                return None
            log.warning("store: chunk %d of %s is damaged: recomputing it.", number, self.path)
            self._partial_file(f"{number}.done").unlink(missing_ok=True)
        if not self._partial_file("rows").exists():
            self.reserve(self._partial_file("rows"), self.size)
        values = [value.cpu().contiguous() for value in self.fill(self._rows_of(number), wait)]
        self._write_chunk(number, values)
        return values

    def _complete(self) -> list[Tensor] | None:
        """Compute all missing chunks, give the file its final name, and map it."""
        busy: list[int] = []
        with progress_bar(self.label, self.rows) as advance:
            for wait, numbers in ((False, range(self.chunks)), (True, busy)):
                for number in numbers:
                    try:
                        self.chunk(number, wait)
                    except ChunkBusy:
                        busy.append(number)
                    else:
                        advance(self._length_of(number))
        with storage_errors(self.path), FileLock(self._lock_file):
            if not self.path.exists():
                checksums = [self._stored_checksum(number) for number in range(self.chunks)]
                if any(checksum is None for checksum in checksums):
                    return None  # another process found a chunk damaged and removed it
                description = self._description() | {"checksums": checksums}
                write_json(self._description_file, description)
                self._partial_file("rows").replace(self.path)
            shutil.rmtree(self._partial_file(""), ignore_errors=True)
        return self._open()

    def _open(self) -> list[Tensor] | None:
        """Map the file; None if there is none, or if it is damaged, after removing it."""
        if self._mapped is not None or not self.path.exists():
            return self._mapped
        with storage_errors(self.path), suppress(FileNotFoundError):
            found = self.path.stat()
            tensors, fault = self._check_file(found.st_size)
            if tensors is not None:
                self._mapped = tensors
                return tensors
            with FileLock(self._lock_file):
                # Another process may have replaced the damaged file already.
                if self.path.stat().st_ino == found.st_ino:
                    log.warning("store: %s is damaged (%s): recomputing it.", self.path, fault)
                    self.path.unlink()
                    self._description_file.unlink(missing_ok=True)
        return None

    def _check_file(self, size: int) -> tuple[list[Tensor] | None, str]:
        """Return the complete file's tensors, or None and what is wrong with it."""
        description = read_json(self._description_file)
        checksums = description.pop("checksums", None)
        if description != self._description() or not isinstance(checksums, list):
            return None, "its description does not match"
        if len(checksums) != self.chunks:
            return None, "its description does not match"
        if size != self.size:
            return None, "its size is wrong"
        tensors = self._map(self.path)
        for number, checksum in enumerate(checksums):
            rows = self._rows_of(number)
            if _checksum([tensor[rows] for tensor in tensors]) != checksum:
                return None, "a checksum is wrong"
        return tensors, ""

    def _lock_chunk(self, number: int, wait: bool) -> FileLock | None:
        """Lock a chunk; None if its folder is gone because another process completed the table."""
        lock = FileLock(self._partial_file(f"{number}.lock"))
        with storage_errors(self.path):
            if not self.path.parent.is_dir():
                raise StoreError(f"{self.path.parent} was removed")
            try:
                self._partial_file("").mkdir(exist_ok=True)
                lock.acquire(timeout=-1 if wait else 0)
            except FileNotFoundError:
                return None
            except Timeout:
                raise ChunkBusy from None
        return lock

    @property
    def _lock_file(self) -> Path:
        return self.path.with_suffix(".lock")

    @property
    def _description_file(self) -> Path:
        return self.path.with_suffix(".json")

    def _partial_file(self, name: str) -> Path:
        """A file of the table while it is incomplete."""
        return self.path.with_suffix(".part") / name

    def _description(self) -> dict[str, Any]:
        columns = [[str(column.dtype), list(column.shape)] for column in self.columns]
        return {"rows": self.rows, "columns": columns}

    def _rows_of(self, number: int) -> slice:
        return slice(number * self.chunk_rows, min((number + 1) * self.chunk_rows, self.rows))

    def _length_of(self, number: int) -> int:
        rows = self._rows_of(number)
        return rows.stop - rows.start

    def _stored_checksum(self, number: int) -> int | None:
        """The checksum of a chunk; None if it is not stored."""
        try:
            return int(self._partial_file(f"{number}.done").read_text())
        except (OSError, ValueError):
            return None

    def _map(self, path: Path) -> list[Tensor]:
        try:
            raw = torch.from_file(str(path), shared=False, size=self.size, dtype=torch.uint8)
        except RuntimeError as error:
            if not path.exists():
                raise FileNotFoundError(path) from error
            raise StoreError(f"{path} cannot be mapped: {error}") from error
        return [
            raw[offset : offset + column.row_bytes * self.rows]
            .view(column.dtype)
            .view(self.rows, *column.shape)
            for offset, column in zip(self._offsets, self.columns, strict=True)
        ]

    def _read_chunk(self, number: int, checksum: int) -> list[Tensor] | None:
        """Read a chunk of the incomplete table; None if it is damaged."""
        path, rows = self._partial_file("rows"), self._rows_of(number)
        with suppress(FileNotFoundError):
            if path.stat().st_size == self.size:
                values = [tensor[rows] for tensor in self._map(path)]
                if _checksum(values) == checksum:
                    return values
        return None

    def _write_chunk(self, number: int, values: Sequence[Tensor]) -> None:
        for column, value in zip(self.columns, values, strict=True):
            assert value.shape == (self._length_of(number), *column.shape)
            assert value.dtype == column.dtype
        start = self._rows_of(number).start
        with storage_errors(self.path):
            try:
                # Not through a memory map: on a full disk a write raises, but a map crashes.
                file = os.open(self._partial_file("rows"), os.O_RDWR)
                try:
                    for offset, column, value in zip(
                        self._offsets, self.columns, values, strict=True
                    ):
                        _write_at(file, offset + start * column.row_bytes, _bytes(value))
                finally:
                    os.close(file)
                done = self._partial_file(f"{number}.done")
                temporary = done.with_name(f".{uuid4().hex}")
                temporary.write_text(str(_checksum(values)))
                temporary.replace(done)
            except FileNotFoundError:
                if not self.path.exists():  # otherwise another process completed the table
                    raise


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


def _checksum(values: Sequence[Tensor]) -> int:
    checksum = 0
    for value in values:
        checksum = zlib.crc32(_bytes(value), checksum)
    return checksum
