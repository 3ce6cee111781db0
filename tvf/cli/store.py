"""`tvf store`: what the store holds, and how to remove it."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from tvf.errors import InputError
from tvf.store import StoreOptions, clear_store, format_bytes, list_entries, store_folders


def list_store(store_dir: str | None) -> None:
    """List the store's entries, most recently used first; None means the default store."""
    root = _store_folder(StoreOptions(dir=store_dir))
    if not root.is_dir():
        print(f"{root} does not exist")
        return
    for folder in store_folders(root):
        with _store_errors(folder):
            entries = list_entries(folder)
        size = format_bytes(sum(entry.size for entry in entries))
        print(f"{folder}: {f'{len(entries)} entries, {size}' if entries else 'empty'}")
        for entry in sorted(entries, key=lambda entry: -entry.used):
            when = datetime.fromtimestamp(entry.used).isoformat(" ", "minutes")
            in_use = "in use  " if entry.in_use else ""
            print(f"{format_bytes(entry.size):>8}  {when}  {in_use}{entry.about}")


def clear_store_of(store_dir: str | None) -> None:
    """Remove entries that no running job uses from the store; None means the default store."""
    for folder in store_folders(_store_folder(StoreOptions(dir=store_dir))):
        with _store_errors(folder):
            removed, total, size = clear_store(folder)
        kept = f"; running jobs use the other {total - removed}" if removed < total else ""
        print(f"removed {removed} of {total} entries ({format_bytes(size)}) from {folder}{kept}")


def _store_folder(options: StoreOptions) -> Path:
    try:
        return options.path()
    except OSError as error:
        raise InputError(
            f"the store has no folder: {error.strerror}. Name one: store.dir=DIR, or in TVF_STORE."
        ) from error


@contextmanager
def _store_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{error.filename or folder}: {error.strerror or error}") from error
