"""The store: results that any job can reuse, kept on disk within a budget.

It consists of entries, which are kept or evicted as a whole; an entry is a folder of tables.
"""

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from tvf.errors import require_choice, require_number, require_path
from tvf.files import NODE_FOLDER, cache_folder, read_json, write_json
from tvf.lease import Lease, lease_holder
from tvf.store.arrays import ArrayTable, Fill
from tvf.store.row_file import SUFFIX, ArraySpec, StoreError, storage_errors, stored_bytes

log = logging.getLogger(__name__)

REMEDY = "choose another store.dir, or set store.mode=off"
LEASE = ".lease"  # in the store's folder: held while entries are created or removed
REMOVED = ".removed"  # in the store's folder: entries being removed
MODES = ("auto", "on", "off")
DTYPES = {
    "auto": None,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


@dataclass(frozen=True, kw_only=True)
class StoreOptions:
    """Where the store is, how much it may hold, and when it is used.

    `dir` None means the folder in TVF_STORE, or the user's cache folder. `mode` "auto" stores what
    is faster to read than to recompute, "on" everything that can be stored, "off" nothing. `dtype`
    "auto" stores float32 runs exactly and mixed-precision runs in 16 bits. `max_gb` is in 1e9
    bytes.
    """

    dir: str | None = None
    mode: str | bool = "auto"
    dtype: str = "auto"
    max_gb: float = 20.0

    def __post_init__(self) -> None:
        if isinstance(self.mode, bool):  # YAML reads on and off as booleans
            object.__setattr__(self, "mode", "on" if self.mode else "off")
        if self.dir not in (None, ""):
            require_path("store.dir", self.dir)
        require_choice("store.mode", self.mode, MODES)
        require_choice("store.dtype", self.dtype, tuple(DTYPES))
        require_number("store.max_gb", self.max_gb, 0, above=True)

    def path(self) -> Path:
        """The store's folder; OSError if none is chosen and the user has no cache folder."""
        chosen = self.dir or os.environ.get("TVF_STORE")
        return Path(os.path.expanduser(chosen)) if chosen else cache_folder() / "store"

    @contextmanager
    def open(self) -> "Iterator[Store | None]":
        """Open the store for a context; None if `mode` is off, or if its folder is not writable.

        The latter also logs a warning.
        """
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
                log.warning(
                    "store: %s cannot be written (%s): continuing without a store; %s.",
                    error.filename or self.dir,
                    error.strerror or error,
                    REMEDY,
                )
        try:
            yield store
        finally:
            if store is not None:
                store.close()


class Store:
    """A folder with a budget of `max_bytes`. Entries it has opened are not evicted until `close`.

    Callers apply two settings: `must_pay` means to store only what is faster to read than to
    recompute, `dtype` is the type to convert values to (None: see `tvf.frontier.plan`).
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
        self._held: dict[Path, Lease] = {}
        with self._locked():
            pass

    def entry(self, kind: str, keys: Sequence[str], about: dict[str, Any]) -> "Entry":
        """Open the entry with these keys, creating it if needed, and hold it until `close`.

        `about` is saved with a new entry, for display and for `siblings`. Raises StoreError.
        """
        folder = self.folder.joinpath(kind, *keys)
        with storage_errors(folder), self._locked():
            (folder / "readers").mkdir(parents=True, exist_ok=True)
            if folder not in self._held:
                lease = Lease(folder / "readers" / f"{uuid4().hex}.lease")
                lease.acquire()
                self._held[folder] = lease
            if not read_json(folder / "entry.json"):
                write_json(folder / "entry.json", {"kind": kind, **about})
            os.utime(folder / "entry.json")  # its last use
        return Entry(self, folder)

    def entries_below(self, kind: str, keys: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Map the next key of each entry whose keys begin with `keys` to its description."""
        folder = self.folder.joinpath(kind, *keys)
        return {path.parent.name: read_json(path) for path in sorted(folder.glob("*/entry.json"))}

    def reserve(self, size: int, claim: Callable[[], None]) -> None:
        """Make room for `size` bytes, then call `claim`, which takes them, with the store locked.

        Evicts entries that no job uses, least recently used first; evicts none if removing all of
        them would not free enough. Raises StoreError.
        """
        with self._locked():
            _tidy(self.folder)
            entries = list_entries(self.folder)
            free = self.max_bytes - sum(entry.size for entry in entries)
            unused = [
                entry for entry in entries if entry.folder not in self._held and not entry.in_use
            ]
            available = free + sum(entry.size for entry in unused)
            if available < size:
                raise StoreError(
                    f"{format_bytes(size)} does not fit into store.max_gb="
                    f"{self.max_bytes / 1e9:g}, of which {format_bytes(max(available, 0))} is free "
                    "or can be freed: raise it"
                )
            for entry in sorted(unused, key=lambda entry: entry.used):
                if free >= size:
                    break
                if _remove(self.folder, entry):
                    log.info("store: evicted %s (%s)", entry.about, format_bytes(entry.size))
                    free += entry.size
            claim()

    def close(self) -> None:
        """Release all entries, so that they can be evicted."""
        for folder, lease in self._held.items():
            lease.release()
            with suppress(OSError):
                os.utime(folder / "entry.json")
        self._held.clear()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with Lease(self.folder / LEASE):
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
        fill: Fill,
        label: str | None = None,
    ) -> ArrayTable:
        """The table `name` of this entry; see ArrayTable."""
        return ArrayTable(
            self.folder / f"{name}{SUFFIX}", rows, tuple(columns), fill, self.store.reserve, label
        )


@dataclass(frozen=True)
class EntryInfo:
    """An entry as `tvf store info` shows it.

    `size` is in bytes; `used` is the time of its last use in seconds since 1970.
    """

    folder: Path
    about: str
    size: int
    used: float
    in_use: bool


def store_folders(folder: Path) -> list[Path]:
    """The store in `folder`, and those of a cluster's nodes that are in it."""
    return [folder, *(path for path in sorted(folder.glob(f"{NODE_FOLDER}*")) if path.is_dir())]


def list_entries(folder: Path) -> list[EntryInfo]:
    """List the entries of the store in `folder`, ignoring other files."""
    found = []
    for root, folders, files in os.walk(folder):
        path = Path(root)
        if "entry.json" not in files or "readers" not in folders:
            continue
        metadata = read_json(path / "entry.json")
        kind = path.relative_to(folder).parts[:1]
        if metadata.get("kind") in kind:
            folders.clear()  # do not descend into an entry
            about = f"{metadata['kind']} {metadata.get('about', '?')}"
            found.append(_inspect_entry(path, about))
    return sorted(found, key=lambda entry: entry.folder)


def _inspect_entry(path: Path, about: str) -> EntryInfo:
    used = 0.0
    with suppress(FileNotFoundError):
        used = (path / "entry.json").stat().st_mtime
    in_use = any(map(_is_held, (path / "readers").glob("*.lease")))
    size = sum(_size(Path(root, name)) for root, _, names in os.walk(path) for name in names)
    return EntryInfo(path, about, size, used, in_use)


def clear_store(folder: Path) -> tuple[int, int, int]:
    """Remove every entry that no job uses.

    Returns how many were removed, how many there were, and the bytes freed.
    """
    if not folder.is_dir():
        return 0, 0, 0
    with Lease(folder / LEASE):
        _tidy(folder)
        entries = list_entries(folder)
        removed = [entry for entry in entries if not entry.in_use and _remove(folder, entry)]
    return len(removed), len(entries), sum(entry.size for entry in removed)


def format_bytes(size: float) -> str:
    """Format a size for display: 12.3 MB, 4.56 GB."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size / 1e3:.3g} kB"


def _remove(folder: Path, entry: EntryInfo) -> bool:
    """Remove an entry atomically, by renaming it first; return whether that succeeded."""
    trash = folder / REMOVED / uuid4().hex
    try:
        trash.parent.mkdir(exist_ok=True)
        entry.folder.rename(trash)
    except OSError as error:
        log.warning("store: %s cannot be removed: %s.", entry.folder, error.strerror or error)
        return False
    shutil.rmtree(trash, ignore_errors=True)
    return True


def _tidy(folder: Path) -> None:
    """Finish removals that were interrupted, and delete the leases of dead readers."""
    shutil.rmtree(folder / REMOVED, ignore_errors=True)
    for entry in list_entries(folder):
        for reader in (entry.folder / "readers").glob("*.lease"):
            if not _is_held(reader):
                reader.unlink(missing_ok=True)


def _size(path: Path) -> int:
    """The bytes of a file, including a table's reserved rows; 0 if it has just been removed."""
    if path.suffix == SUFFIX:
        return stored_bytes(path)
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0


def _is_held(path: Path) -> bool:
    try:
        return lease_holder(path) is not None
    except OSError:  # it cannot be read
        return True
