"""Reusable results on disk: fingerprints, memory-mapped tables, and a budget."""

from tvf.store.arrays import ArrayTable
from tvf.store.disk import (
    Entry,
    Store,
    StoreOptions,
    clear_store,
    format_bytes,
    list_entries,
    store_folders,
)
from tvf.store.fingerprint import (
    FingerprintError,
    fingerprint,
    fingerprint_files,
    fingerprint_layers,
    numeric_environment,
    processor_model,
)
from tvf.store.row_file import MORE_ROOM, ArraySpec, StoreError, count_missing

__all__ = [
    "ArraySpec",
    "ArrayTable",
    "Entry",
    "FingerprintError",
    "MORE_ROOM",
    "Store",
    "StoreError",
    "StoreOptions",
    "clear_store",
    "count_missing",
    "fingerprint",
    "fingerprint_files",
    "fingerprint_layers",
    "format_bytes",
    "list_entries",
    "numeric_environment",
    "processor_model",
    "store_folders",
]
