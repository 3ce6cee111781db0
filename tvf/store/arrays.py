"""Tables of the store: rows of one or more tensors in one memory-mapped file, each computed once.

A table is computed in chunks. Processes that need the same one at once share its chunks out among them, each chunk
under a lock that the system frees when its holder dies. The file gets its name when all of it is there, and each chunk
has a checksum, so that what is damaged is noticed.
"""

import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor
from tqdm import tqdm

from tvf.files import read_json, write_json

log = logging.getLogger(__name__)

ALIGNMENT = 64  # bytes, of each tensor's place in the file
CHUNK = 128  # rows, at the least; at most CHUNKS chunks a table
CHUNKS = 256
MORE_ROOM = "tvf store clear makes room, store.dir chooses another folder"
ROUNDS = 3  # a table that is damaged whenever it was computed is given up


class ChunkBusy(Exception):
    """Another process computes this chunk."""


class StoreError(Exception):
    """The store cannot take what it was given: no space is left, or its folder cannot be written."""


@dataclass(frozen=True)
class ArraySpec:
    """One tensor of each row: its shape and dtype."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


@dataclass
class ArrayTable:
    """`rows` rows that are read if they are there and computed if not; `path` is the file of all of them.

    `fill(rows, wait)` computes some rows, one tensor for each column; where `wait` is false it may raise Busy instead
    of waiting for another process. `reserve(path, size)` makes an empty file of that size, or raises StoreUnusable.
    With a `label` a progress bar of that name is shown while rows are computed.
    """

    path: Path
    rows: int
    columns: Sequence[ArraySpec]
    fill: Callable[[slice, bool], Sequence[Tensor]]
    reserve: Callable[[Path, int], None]
    label: str | None = None
    _open: list[Tensor] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        least = -(-self.rows // CHUNKS)
        self.chunk_rows = -(-max(least, CHUNK) // CHUNK) * CHUNK
        self.chunks = -(-self.rows // self.chunk_rows)
        self._offsets, self.size = [], 0
        for column in self.columns:
            self._offsets.append(self.size)
            self.size += -(-column.row_bytes * self.rows // ALIGNMENT) * ALIGNMENT

    def tensors(self) -> list[Tensor]:
        """All rows, one memory-mapped tensor for each column, computed as far as they are not there.

        Raises StoreUnusable if they cannot be kept.
        """
        for _ in range(ROUNDS):
            self._open = self._map() or self._complete()
            if self._open is not None:
                return self._open
        raise StoreError(f"{self.path} is damaged each time it is written")

    def chunk(self, number: int, wait: bool) -> Sequence[Tensor]:
        """Some rows, computed if they are not there. While another process computes them: wait, or raise Busy."""
        for _ in range(ROUNDS):
            if tensors := self._map():
                return [tensor[self._slice(number)] for tensor in tensors]
            if lock := self._claim(number, wait):
                try:
                    if values := self._claimed(number, wait):
                        return values
                finally:
                    lock.release()
        raise StoreError(f"{self.path} does not stay where it was written")

    def _claimed(self, number: int, wait: bool) -> Sequence[Tensor] | None:
        """The rows of a chunk whose lock this process holds; None if the table has just been completed by others."""
        if self.path.exists():
            return None
        if (mark := self._mark(number)) is not None:
            if values := self._read(number, mark):
                return values
            if self.path.exists():
                return None
            log.warning("store: part %d of %s is damaged: it is computed again.", number, self.path)
            self._part(f"{number}.done").unlink(missing_ok=True)
        if not self._part("rows").exists():
            self.reserve(self._part("rows"), self.size)
        values = [value.cpu().contiguous() for value in self.fill(self._slice(number), wait)]
        self._write(number, values)
        return values

    def has(self, number: int) -> bool:
        """Whether a chunk is there."""
        return self.path.exists() or self._mark(number) is not None

    def missing(self) -> int:
        """How many rows are still to be computed."""
        if self.path.exists():
            return 0
        done = [
            self._slice(number) for number in range(self.chunks) if self._mark(number) is not None
        ]
        return self.rows - sum(part.stop - part.start for part in done)

    def _complete(self) -> list[Tensor] | None:
        busy: list[int] = []
        with tqdm(
            total=self.rows, desc=self.label, leave=False, disable=None if self.label else True
        ) as bar:
            for wait, numbers in ((False, range(self.chunks)), (True, busy)):
                for number in numbers:
                    try:
                        self.chunk(number, wait)
                    except ChunkBusy:
                        busy.append(number)
                    else:
                        bar.update(self._slice(number).stop - self._slice(number).start)
        with storage_errors(self.path), FileLock(self._lock_file):
            if not self.path.exists():
                marks = [self._mark(number) for number in range(self.chunks)]
                if any(mark is None for mark in marks):
                    return None  # another process found it damaged, and took it away
                write_json(self.path.with_suffix(".json"), self._shape() | {"checksums": marks})
                self._part("rows").replace(self.path)
            shutil.rmtree(self._part(""), ignore_errors=True)
        return self._map()

    def _map(self) -> list[Tensor] | None:
        """The file's tensors; None if there is no file, or, after removing it, if it is not what it should be."""
        if self._open is not None or not self.path.exists():
            return self._open
        with storage_errors(self.path), suppress(FileNotFoundError):
            found, noted = self.path.stat(), read_json(self.path.with_suffix(".json"))
            checksums = noted.pop("checksums", None)
            if (
                noted != self._shape()
                or not isinstance(checksums, list)
                or len(checksums) != self.chunks
            ):
                fault = "its description does not fit"
            elif found.st_size != self.size:
                fault = "its size is wrong"
            else:
                tensors = self._tensors(self.path)
                parts = [
                    [tensor[self._slice(number)] for tensor in tensors]
                    for number in range(self.chunks)
                ]
                if [_checksum(part) for part in parts] == checksums:
                    self._open = tensors
                    return tensors
                fault = "a checksum is wrong"
            with FileLock(self._lock_file):
                if (
                    self.path.stat().st_ino == found.st_ino
                ):  # else another process has mended it already
                    log.warning(
                        "store: %s is damaged (%s): it is computed again.", self.path, fault
                    )
                    self.path.unlink()
                    self.path.with_suffix(".json").unlink(missing_ok=True)
        return None

    def _claim(self, number: int, wait: bool) -> FileLock | None:
        """The chunk's lock; None if the folder of the parts was removed just now, which completing a table does."""
        lock = FileLock(self._part(f"{number}.lock"))
        with storage_errors(self.path):
            if not self.path.parent.is_dir():
                raise StoreError(f"{self.path.parent} was removed")
            try:
                self._part("").mkdir(exist_ok=True)
                lock.acquire(timeout=-1 if wait else 0)
            except FileNotFoundError:
                return None
            except Timeout:
                raise ChunkBusy from None
        return lock

    @property
    def _lock_file(self) -> Path:
        return self.path.with_suffix(".lock")

    def _shape(self) -> dict[str, Any]:
        return {"rows": self.rows, "columns": [[str(c.dtype), list(c.shape)] for c in self.columns]}

    def _slice(self, number: int) -> slice:
        return slice(number * self.chunk_rows, min((number + 1) * self.chunk_rows, self.rows))

    def _part(self, name: str) -> Path:
        """A file of the table while it is not complete."""
        return self.path.with_suffix(".part") / name

    def _mark(self, number: int) -> int | None:
        """The checksum of a chunk that is computed."""
        try:
            return int(self._part(f"{number}.done").read_text())
        except (OSError, ValueError):
            return None

    def _tensors(self, path: Path) -> list[Tensor]:
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

    def _read(self, number: int, mark: int) -> list[Tensor] | None:
        with suppress(FileNotFoundError):
            if self._part("rows").stat().st_size == self.size:
                values = [
                    tensor[self._slice(number)] for tensor in self._tensors(self._part("rows"))
                ]
                if _checksum(values) == mark:
                    return values
        return None

    def _write(self, number: int, values: Sequence[Tensor]) -> None:
        part = self._slice(number)
        for column, value in zip(self.columns, values, strict=True):
            assert (
                value.shape == (part.stop - part.start, *column.shape)
                and value.dtype == column.dtype
            )
        with storage_errors(self.path):
            try:
                # Written, not mapped: on a full disk a write is an error that can be met, a map is a crash.
                file = os.open(self._part("rows"), os.O_RDWR)
                try:
                    for offset, column, value in zip(
                        self._offsets, self.columns, values, strict=True
                    ):
                        content, place = (
                            memoryview(_bytes(value)),
                            offset + part.start * column.row_bytes,
                        )
                        while content:
                            written = os.pwrite(file, content, place)
                            content, place = content[written:], place + written
                finally:
                    os.close(file)
                mark = self._part(f"{number}.done")
                temporary = mark.with_name(f".{uuid4().hex}")
                temporary.write_text(str(_checksum(values)))
                temporary.replace(mark)
            except FileNotFoundError:
                if not self.path.exists():  # else others completed the table meanwhile
                    raise


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """What the system refuses inside is raised as StoreUnusable, about `path`."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{error.strerror or error} ({error.filename or path}; {MORE_ROOM})"
        ) from error


def _bytes(value: Tensor) -> Any:
    return value.contiguous().reshape(-1).view(torch.uint8).numpy()


def _checksum(values: Sequence[Tensor]) -> int:
    checksum = 0
    for value in values:
        checksum = zlib.crc32(_bytes(value), checksum)
    return checksum
