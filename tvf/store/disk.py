"""The store: what has been computed once, kept on disk for every job, within a budget."""

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import platformdirs
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from tvf.errors import require_choice, require_number
from tvf.files import read_json, write_json
from tvf.store.arrays import ArraySpec, ArrayTable, StoreError, storage_errors

log = logging.getLogger(__name__)

REMEDY = "choose another store.dir, or set store.mode=off"
REMOVED = ".removed"  # in the store's folder: entries that are being removed
MODES = ("auto", "on", "off")
DTYPES = {
    "auto": None,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


@dataclass(frozen=True, kw_only=True)
class StoreOptions:
    """Where the store lies, what it may hold, and whether it is used.

    `dir` null: TVF_STORE, or the user's cache folder. `mode` "auto" asks whether it pays, "on" stores whatever can be
    stored, "off" computes everything anew. `dtype` "auto" keeps 32-bit runs exact and halves mixed-precision ones.
    """

    dir: str | None = None
    mode: str | bool = "auto"
    dtype: str = "auto"
    max_gb: float = 20.0

    def __post_init__(self) -> None:
        if isinstance(self.mode, bool):  # what YAML makes of on and off
            object.__setattr__(self, "mode", "on" if self.mode else "off")
        require_choice("store.mode", self.mode, MODES)
        require_choice("store.dtype", self.dtype, tuple(DTYPES))
        require_number("store.max_gb", self.max_gb, 0, above=True)

    def path(self) -> Path:
        """The store's folder."""
        chosen = self.dir or os.environ.get("TVF_STORE")
        return (
            Path(chosen).expanduser()
            if chosen
            else Path(platformdirs.user_cache_dir("tvf")) / "store"
        )

    @contextmanager
    def open(self) -> "Iterator[Store | None]":
        """The store, until the context ends; None if its mode is off, or, with a warning, if it cannot be written."""
        store = None
        if self.mode != "off":
            try:
                store = Store(
                    self.path(),
                    int(self.max_gb * 1e9),
                    must_pay=self.mode == "auto",
                    dtype=DTYPES[self.dtype],
                )
            except OSError as error:
                reason = error.strerror or error
                log.warning(
                    "store: %s cannot be written (%s): going on without it; %s.",
                    self.path(),
                    reason,
                    REMEDY,
                )
        try:
            yield store
        finally:
            if store is not None:
                store.close()


class Store:
    """The folder and its budget of `max_bytes`. What an open store has handed out is not evicted until `close`.

    Of those who use it, `must_pay` asks to keep only what saves time, and `dtype` what to round to (None: see
    `tvf.frontier.plan`).
    """

    def __init__(
        self,
        folder: Path,
        max_bytes: int,
        *,
        must_pay: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.folder, self.max_bytes, self.must_pay, self.dtype = folder, max_bytes, must_pay, dtype
        folder.mkdir(parents=True, exist_ok=True)
        self._held: dict[Path, FileLock] = {}
        with self._locked():
            pass

    def entry(self, kind: str, keys: Sequence[str], about: dict[str, Any]) -> "Entry":
        """The entry with these keys, made if there is none. It stays as long as this store is open.

        `about` is kept beside it, for people and for `siblings`. Raises StoreUnusable.
        """
        folder = self.folder.joinpath(kind, *keys)
        with storage_errors(folder), self._locked():
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

    def reserve(self, file: Path, size: int) -> None:
        """Make an empty file of `size` bytes, if need be by evicting what was not wanted for longest and is not in use.

        Nothing is evicted if that would not be enough. Raises StoreUnusable.
        """
        with storage_errors(file), self._locked():
            if file.exists():
                return
            _tidy(self.folder)
            entries = list_entries(self.folder)
            free = self.max_bytes - sum(entry.size for entry in entries)
            unused = [
                entry for entry in entries if entry.folder not in self._held and not entry.in_use
            ]
            if (possible := free + sum(entry.size for entry in unused)) < size:
                raise StoreError(
                    f"{format_bytes(size)} do not fit into store.max_gb={self.max_bytes / 1e9:g}, of which "
                    f"{format_bytes(max(possible, 0))} are free or could be freed: raise it"
                )
            for entry in sorted(unused, key=lambda entry: entry.used):
                if free >= size:
                    break
                if _remove(self.folder, entry):
                    log.info("store: evicted %s (%s)", entry.about, format_bytes(entry.size))
                    free += entry.size
            with file.open("xb") as empty:
                empty.truncate(size)

    def close(self) -> None:
        """Let go of all entries: they may be evicted from now on."""
        for folder, lock in self._held.items():
            lock.release()
            with suppress(OSError):
                Path(lock.lock_file).unlink(missing_ok=True)
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
        columns: Sequence[ArraySpec],
        fill: Callable[[slice, bool], Sequence[Tensor]],
        label: str | None = None,
    ) -> ArrayTable:
        """The table `name` of the entry; see Table."""
        return ArrayTable(
            self.folder / f"{name}.bin", rows, tuple(columns), fill, self.store.reserve, label
        )


@dataclass(frozen=True)
class EntryInfo:
    """An entry as `tvf store info` shows it: `size` in bytes, `used` when it was last wanted (seconds since 1970)."""

    folder: Path
    about: str
    size: int
    used: float
    in_use: bool


def list_entries(folder: Path) -> list[EntryInfo]:
    """All entries of the store in `folder`: folders that this module has made, and nothing else that lies there."""
    found = []
    for root, folders, files in os.walk(folder):
        path = Path(root)
        kind = path.relative_to(folder).parts[:1]
        if (
            "entry.json" in files
            and "readers" in folders
            and read_json(path / "entry.json").get("kind") in kind
        ):
            folders.clear()
            noted, used = read_json(path / "entry.json"), 0.0
            with suppress(FileNotFoundError):
                used = (path / "entry.json").stat().st_mtime
            in_use = any(map(_is_locked, (path / "readers").glob("*.lock")))
            size = sum(
                _size(Path(below, name)) for below, _, names in os.walk(path) for name in names
            )
            found.append(
                EntryInfo(path, f"{noted['kind']} {noted.get('about', '?')}", size, used, in_use)
            )
    return sorted(found, key=lambda entry: entry.folder)


def clear_store(folder: Path) -> tuple[int, int, int]:
    """Remove every entry that no job uses: how many were removed, how many there were, and the bytes set free."""
    if not folder.is_dir():
        return 0, 0, 0
    with FileLock(folder / ".lock"):
        _tidy(folder)
        entries = list_entries(folder)
        removed = [entry for entry in entries if not entry.in_use and _remove(folder, entry)]
    return len(removed), len(entries), sum(entry.size for entry in removed)


def format_bytes(size: float) -> str:
    """Bytes for people: 12.3 MB, 4.56 GB."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size / 1e3:.3g} kB"


def _remove(folder: Path, entry: EntryInfo) -> bool:
    """Take an entry away whole, by renaming it first; whether that could be done."""
    aside = folder / REMOVED / uuid4().hex
    try:
        aside.parent.mkdir(exist_ok=True)
        entry.folder.rename(aside)
    except OSError as error:
        log.warning("store: %s cannot be removed: %s.", entry.folder, error.strerror or error)
        return False
    shutil.rmtree(aside, ignore_errors=True)
    return True


def _tidy(folder: Path) -> None:
    """Finish what a process that was killed had begun to remove, and forget readers that are gone."""
    shutil.rmtree(folder / REMOVED, ignore_errors=True)
    for entry in list_entries(folder):
        for reader in (entry.folder / "readers").glob("*.lock"):
            if not _is_locked(reader):
                reader.unlink(missing_ok=True)


def _size(path: Path) -> int:
    """Bytes of a file, those still to be written included; none if it has just been removed."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0


def _is_locked(path: Path) -> bool:
    try:
        with FileLock(path, timeout=0):
            return False
    except FileNotFoundError:
        return False
    except (Timeout, OSError):  # another user's lock cannot be tried
        return True
