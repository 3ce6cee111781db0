"""The store: what has been computed once, kept on disk for every job.

A table is rows of one or more tensors in one memory-mapped file, computed in chunks. Jobs that need the same table at
once share its chunks out among them, each chunk under a lock that the system frees when its holder dies. A table's file
gets its name when all of it is there, and each chunk has a checksum.
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
import platformdirs
import torch
from filelock import FileLock, Timeout
from torch import Tensor
from tqdm import tqdm

from tvf.errors import require_choice, require_number
from tvf.files import read_json, write_json

log = logging.getLogger(__name__)

MODES = ("auto", "on", "off")
DTYPES = {"auto": None, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ALIGNMENT = 64  # bytes, of each tensor's place in the file
CHUNK = 128  # rows, at the least; at most CHUNKS chunks a table
CHUNKS = 256


@dataclass(frozen=True, kw_only=True)
class StoreOptions:
    """Where the store lies, what it may hold, and whether it is used.

    `dir` null: TVF_STORE, or the user's cache folder. `mode` "auto" asks whether it pays, "on" stores whatever can be
    stored, "off" computes everything anew. `dtype` "auto" keeps 32-bit runs exact and halves mixed-precision ones.
    """

    dir: str | None = None
    mode: str = "auto"
    dtype: str = "auto"
    max_gb: float = 20.0

    def __post_init__(self) -> None:
        require_choice("store.mode", self.mode, MODES)
        require_choice("store.dtype", self.dtype, tuple(DTYPES))
        require_number("store.max_gb", self.max_gb, 0, above=True)

    def path(self) -> Path:
        """The store's folder."""
        chosen = self.dir or os.environ.get("TVF_STORE")
        return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("tvf")) / "store"

    @contextmanager
    def open(self) -> "Iterator[Store | None]":
        """The store, until the context ends; None if its mode is off, or, with a warning, if it cannot be written."""
        store = None
        if self.mode != "off":
            try:
                store = Store(self.path(), int(self.max_gb * 1e9))
            except OSError as error:
                reason = error.strerror or error
                log.warning("store: %s cannot be written (%s): going on without it.", self.path(), reason)
        try:
            yield store
        finally:
            if store is not None:
                store.close()


@dataclass(frozen=True)
class Column:
    """One tensor of each row: its shape and dtype."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def row_bytes(self) -> int:
        """How many bytes a row takes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


class Busy(Exception):
    """Another process computes this chunk."""


class StoreUnusable(Exception):
    """The store cannot take what it was given: no space is left, or its folder cannot be written."""


class Store:
    """The folder and its budget of `max_bytes`. What an open store has handed out is not evicted until `close`."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        folder.mkdir(parents=True, exist_ok=True)
        self._held: dict[Path, FileLock] = {}
        with self._locked():
            pass

    def entry(self, kind: str, keys: Sequence[str], about: dict[str, Any]) -> "Entry":
        """The entry with these keys, made if there is none. It stays as long as this store is open.

        `about` is kept beside it, for people and for `siblings`. Raises StoreUnusable.
        """
        folder = self.folder.joinpath(kind, *keys)
        with _or_unusable(), self._locked():
            (folder / "readers").mkdir(parents=True, exist_ok=True)
            if folder not in self._held:
                lock = FileLock(folder / "readers" / f"{os.getpid()}-{uuid4().hex}.lock")
                lock.acquire(timeout=0)
                self._held[folder] = lock
            if not read_json(folder / "entry.json"):
                write_json(folder / "entry.json", {"kind": kind, **about})
            os.utime(folder / "entry.json")  # when it was last wanted
        return Entry(self, folder)

    def siblings(self, kind: str, keys: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Of all entries whose keys begin with `keys`, the next key and what was said about them."""
        folder = self.folder.joinpath(kind, *keys)
        return {path.parent.name: read_json(path) for path in sorted(folder.glob("*/entry.json"))}

    def make_room(self, size: int) -> None:
        """Evict what was not wanted for longest, and is not in use, until `size` more bytes fit.

        Raises StoreUnusable if they cannot.
        """
        with _or_unusable(), self._locked():
            entries = list_entries(self.folder)
            free = self.max_bytes - sum(entry.size for entry in entries)
            for entry in sorted(entries, key=lambda entry: entry.used):
                if free >= size:
                    break
                if entry.folder not in self._held and not entry.in_use:
                    shutil.rmtree(entry.folder, ignore_errors=True)
                    log.info("store: evicted %s (%s)", entry.about, gigabytes(entry.size))
                    free += entry.size
        if free < size:
            raise StoreUnusable(
                f"{gigabytes(size)} do not fit into store.max_gb={self.max_bytes / 1e9:g}, of which "
                f"{gigabytes(max(free, 0))} are free or could be freed"
            )

    def close(self) -> None:
        """Let go of all entries: they may be evicted from now on."""
        for folder, lock in self._held.items():
            lock.release()
            Path(lock.lock_file).unlink(missing_ok=True)
            with suppress(OSError):
                os.utime(folder / "entry.json")
        self._held.clear()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with FileLock(self.folder / ".lock"):
            yield


@dataclass(frozen=True)
class Entry:
    """A folder of tables that are kept or evicted together."""

    store: Store
    folder: Path

    def table(
        self,
        name: str,
        rows: int,
        columns: Sequence[Column],
        fill: Callable[[slice, bool], Sequence[Tensor]],
        label: str | None = None,
    ) -> "Table":
        """The table `name`; `fill(rows, wait)` computes some of its rows, one tensor for each column.

        Where `wait` is false, fill may raise Busy if it would have to wait for another process. With a `label` a
        progress bar of that name is shown while rows are computed.
        """
        return Table(self, name, rows, tuple(columns), fill, label)


@dataclass
class Table:
    """Rows that are read if they are there and computed if not."""

    entry: Entry
    name: str
    rows: int
    columns: tuple[Column, ...]
    fill: Callable[[slice, bool], Sequence[Tensor]]
    label: str | None
    _open: list[Tensor] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        least = -(-self.rows // CHUNKS)
        self.chunk_rows = -(-max(least, CHUNK) // CHUNK) * CHUNK
        self.chunks = -(-self.rows // self.chunk_rows)
        self._offsets, self.size = [], 0
        for column in self.columns:
            self._offsets.append(self.size)
            self.size += -(-column.row_bytes * self.rows // ALIGNMENT) * ALIGNMENT

    @property
    def path(self) -> Path:
        """The whole file; there is none until every chunk is computed."""
        return self.entry.folder / f"{self.name}.bin"

    def tensors(self) -> list[Tensor]:
        """All rows, one memory-mapped tensor for each column, computed as far as they are not there.

        Raises StoreUnusable if they cannot be kept.
        """
        while self._open is None:
            self._open = self._map() or self._complete()
        return self._open

    def chunk(self, number: int, wait: bool) -> Sequence[Tensor]:
        """Some rows, computed if they are not there. While another process computes them: wait, or raise Busy."""
        while not self._map():
            try:
                claim = self._claim(number, wait)
            except FileNotFoundError:  # another process has just completed the table, and removed its parts
                if not self.entry.folder.exists():
                    raise StoreUnusable(f"{self.entry.folder} was removed") from None
                continue
            try:
                if self.path.exists():
                    continue
                if (mark := self._mark(number)) is not None and (values := self._read(number, mark)):
                    return values
                values = [value.cpu().contiguous() for value in self.fill(self._slice(number), wait)]
                self._write(number, values)
                return values
            finally:
                claim.release()
        return [tensor[self._slice(number)] for tensor in self.tensors()]

    def _claim(self, number: int, wait: bool) -> FileLock:
        """The chunk's lock; FileNotFoundError if the folder of the parts was removed just now."""
        lock = FileLock(self._part(f"{number}.lock"))
        try:
            self._part("").mkdir(exist_ok=True)
            lock.acquire(timeout=-1 if wait else 0)
        except FileNotFoundError:
            raise
        except Timeout:
            raise Busy from None
        except OSError as error:
            raise StoreUnusable(f"{error.strerror or error}") from error
        return lock

    def has(self, number: int) -> bool:
        """Whether a chunk is there."""
        return self.path.exists() or self._mark(number) is not None

    def missing(self) -> int:
        """How many rows are still to be computed."""
        if self.path.exists():
            return 0
        done = [self._slice(n) for n in range(self.chunks) if self._mark(n)]
        return self.rows - sum(part.stop - part.start for part in done)

    def _complete(self) -> list[Tensor] | None:
        if missing := self.missing():
            self.entry.store.make_room(self.size * missing // self.rows)
        busy: list[int] = []
        with tqdm(total=self.rows, desc=self.label, leave=False, disable=None if self.label else True) as bar:
            for wait, numbers in ((False, range(self.chunks)), (True, busy)):
                for number in numbers:
                    try:
                        self.chunk(number, wait)
                    except Busy:
                        busy.append(number)
                    else:
                        bar.update(self._slice(number).stop - self._slice(number).start)
        with _or_unusable(), FileLock(self._lock_file):
            if not self.path.exists():
                marks = [self._mark(number) for number in range(self.chunks)]
                if not all(marks):
                    return None  # another process found it damaged, and took it away
                write_json(self.path.with_suffix(".json"), self._shape() | {"checksums": marks})
                self._part("rows").replace(self.path)
            shutil.rmtree(self._part(""), ignore_errors=True)
        return self._map()

    def _map(self) -> list[Tensor] | None:
        """The file's tensors; None if there is no file, or, after removing it, if it is not what it should be."""
        if self._open is not None or not self.path.exists():
            return self._open
        noted = read_json(self.path.with_suffix(".json"))
        checksums = noted.pop("checksums", None)
        fault = None
        with suppress(FileNotFoundError):
            if noted != self._shape() or not isinstance(checksums, list) or len(checksums) != self.chunks:
                fault = "its description does not fit"
            elif self.path.stat().st_size != self.size:
                fault = "its size is wrong"
            else:
                tensors = self._tensors(self.path)
                if all(
                    self._checksum([t[self._slice(n)] for t in tensors]) == checksums[n] for n in range(self.chunks)
                ):
                    self._open = tensors
                    return tensors
                fault = "a checksum is wrong"
        if fault:
            log.warning("store: %s is damaged (%s): it is computed again.", self.path, fault)
            with _or_unusable(), FileLock(self._lock_file):
                self.path.unlink(missing_ok=True)
                self.path.with_suffix(".json").unlink(missing_ok=True)
        return None

    @property
    def _lock_file(self) -> Path:
        return self.entry.folder / f"{self.name}.lock"

    def _shape(self) -> dict[str, Any]:
        return {"rows": self.rows, "columns": [[str(c.dtype), list(c.shape)] for c in self.columns]}

    def _slice(self, number: int) -> slice:
        return slice(number * self.chunk_rows, min((number + 1) * self.chunk_rows, self.rows))

    def _part(self, name: str) -> Path:
        """A file of the table while it is not complete."""
        return self.entry.folder / f"{self.name}.part" / name

    def _mark(self, number: int) -> int | None:
        """The checksum of a chunk that is computed."""
        try:
            return int(self._part(f"{number}.done").read_text())
        except (OSError, ValueError):
            return None

    def _tensors(self, path: Path) -> list[Tensor]:
        raw = torch.from_file(str(path), shared=False, size=self.size, dtype=torch.uint8)
        return [
            raw[offset : offset + column.row_bytes * self.rows].view(column.dtype).view(self.rows, *column.shape)
            for offset, column in zip(self._offsets, self.columns, strict=True)
        ]

    def _read(self, number: int, mark: int) -> list[Tensor] | None:
        with suppress(OSError, RuntimeError):
            if self._part("rows").stat().st_size == self.size:
                values = [tensor[self._slice(number)] for tensor in self._tensors(self._part("rows"))]
                if self._checksum(values) == mark:
                    return values
        log.warning("store: part %d of %s is damaged: it is computed again.", number, self.path)
        return None

    def _write(self, number: int, values: Sequence[Tensor]) -> None:
        part = self._slice(number)
        for column, value in zip(self.columns, values, strict=True):
            assert value.shape == (part.stop - part.start, *column.shape) and value.dtype == column.dtype
        with _or_unusable():
            # Written, not mapped: on a full disk a write is an error that can be met, a map is a crash.
            file = os.open(self._part("rows"), os.O_RDWR | os.O_CREAT, 0o666)
            try:
                os.ftruncate(file, self.size)
                for offset, column, value in zip(self._offsets, self.columns, values, strict=True):
                    content, place = memoryview(_bytes(value)), offset + part.start * column.row_bytes
                    while content:
                        written = os.pwrite(file, content, place)
                        content, place = content[written:], place + written
            finally:
                os.close(file)
            mark = self._part(f"{number}.done")
            temporary = mark.with_name(f".{uuid4().hex}")
            temporary.write_text(str(self._checksum(values)))
            temporary.replace(mark)

    def _checksum(self, values: Sequence[Tensor]) -> int:
        checksum = 0
        for value in values:
            checksum = zlib.crc32(_bytes(value), checksum)
        return checksum


@dataclass(frozen=True)
class Listed:
    """An entry as `tvf store info` shows it: `size` in bytes, `used` when it was last wanted (seconds since 1970)."""

    folder: Path
    about: str
    size: int
    used: float
    in_use: bool


def list_entries(folder: Path) -> list[Listed]:
    """All entries of the store in `folder`."""
    found = []
    for path in sorted(folder.glob("*/**/entry.json")):
        with suppress(FileNotFoundError):
            noted = read_json(path)
            size = sum(each.stat().st_blocks * 512 for each in path.parent.rglob("*") if each.is_file())
            in_use = any(map(_is_locked, (path.parent / "readers").glob("*.lock")))
            about = f"{noted.get('kind', '?')} {noted.get('about', '?')}"
            found.append(Listed(path.parent, about, size, path.stat().st_mtime, in_use))
    return found


def clear(folder: Path) -> tuple[int, int, int]:
    """Remove every entry that no job uses: how many were removed, how many there were, and the bytes set free."""
    if not folder.is_dir():
        return 0, 0, 0
    with FileLock(folder / ".lock"):
        entries = list_entries(folder)
        removed = [entry for entry in entries if not entry.in_use]
        for entry in removed:
            shutil.rmtree(entry.folder)
    return len(removed), len(entries), sum(entry.size for entry in removed)


def gigabytes(size: float) -> str:
    """Bytes for people: 12.3 MB, 4.56 GB."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size / 1e3:.3g} kB"


def _is_locked(path: Path) -> bool:
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True


def _bytes(value: Tensor) -> Any:
    return value.contiguous().reshape(-1).view(torch.uint8).numpy()


@contextmanager
def _or_unusable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreUnusable(f"{error.strerror or error}") from error
