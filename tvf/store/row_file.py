"""The files of a table: rows of one or more tensors, a checksum of each row, and a description.

A row's checksum says that it is stored, and detects damage. Rows are written by whoever holds the
lease of their chunk (see `arrays`); reading needs none.
"""

import logging
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tvf.files import read_json, write_json

log = logging.getLogger(__name__)

SUFFIX, CHECKSUMS = ".rows", ".crc"  # of a table's two files
ALIGNMENT = 64  # bytes; the data of each tensor starts at a multiple of it
MORE_ROOM = "tvf store clear frees space, store.dir chooses another folder"

# The state of a row in the checksum file. Other values are the checksum of a stored row.
ABSENT, RESERVED = 0, 1


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
class RowFile:
    """The file `path` of `rows` rows with one tensor per column, and the files that belong to it.

    The data file has its full size from the start; rows that were never written take no space.
    """

    path: Path
    rows: int
    columns: Sequence[ArraySpec]
    _mapped: list[Tensor] | None = field(default=None, init=False)
    inode: int = field(default=0, init=False)  # of the mapped file

    def __post_init__(self) -> None:
        self.row_bytes = sum(column.row_bytes for column in self.columns)
        self._offsets, self.size = [], 0
        for column in self.columns:
            self._offsets.append(self.size)
            self.size += ceil_div(column.row_bytes * self.rows, ALIGNMENT) * ALIGNMENT

    def create(self) -> None:
        """Create the files of the table unless they are sound. The store must be locked."""
        fault = self.find_fault()
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

    def find_fault(self) -> str | None:
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

    def absent(self, rows: np.ndarray) -> np.ndarray:
        """Those of the rows that are not stored."""
        return rows[self.states()[rows] <= RESERVED]

    def states(self) -> np.ndarray:
        """The state of every row, uint32."""
        with suppress(OSError):
            if self.find_fault() is None:
                return np.fromfile(self._checksum_file, np.uint32)
        return np.full(self.rows, ABSENT, np.uint32)

    def set_states(self, rows: np.ndarray, states: Any) -> None:
        """Set the state of some rows."""
        # Other processes set the states of other rows meanwhile: write these alone. A map is safe,
        # because the file has its full size on disk from the start.
        if len(rows):
            np.memmap(self._checksum_file, np.uint32, "r+")[rows] = states

    def find_damaged(self, tensors: Sequence[Tensor], rows: np.ndarray) -> np.ndarray:
        """Those of the rows whose content does not match their checksum."""
        if not len(rows):
            return rows
        return rows[_checksums(tensors, rows) != self.states()[rows]]

    def map(self) -> list[Tensor]:
        """Map the data file, once. The map shows what other processes write to it later."""
        inode = self.path.stat().st_ino
        if self._mapped is None or self.inode != inode:
            try:
                raw = torch.from_file(
                    str(self.path), shared=False, size=self.size, dtype=torch.uint8
                )
            except RuntimeError as error:
                raise StoreError(f"{self.path} cannot be mapped: {error}") from error
            self.inode, self._mapped = (
                inode,
                [
                    raw[offset : offset + column.row_bytes * self.rows]
                    .view(column.dtype)
                    .view(self.rows, *column.shape)
                    for offset, column in zip(self._offsets, self.columns, strict=True)
                ],
            )
        return self._mapped

    def write(self, rows: np.ndarray, values: Sequence[Tensor]) -> None:
        """Store rows of a chunk whose lease this process holds."""
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
            self.set_states(rows, _checksums(values, np.arange(len(rows))))

    @property
    def _checksum_file(self) -> Path:
        return self.path.with_suffix(CHECKSUMS)

    @property
    def _description_file(self) -> Path:
        return self.path.with_suffix(".json")

    def _description(self) -> dict[str, Any]:
        columns = [[str(column.dtype), list(column.shape)] for column in self.columns]
        return {"rows": self.rows, "columns": columns}


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


def ceil_div(value: int, by: int) -> int:
    """Divide and round up."""
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
