"""The store: tables are computed once, complete, within a budget, and damage is repaired."""

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers import ROOT, forks
from tvf import cli
from tvf.cli import commands
from tvf.errors import InputError
from tvf.store.arrays import CHUNK, PIECE, ArrayTable, Fill
from tvf.store.disk import Store, StoreOptions, clear_store, list_entries
from tvf.store.row_file import ArraySpec, RowFile, StoreError, count_missing

ROWS = 5 * CHUNK + 17
COLUMNS = [
    ArraySpec((3,), torch.float32),
    ArraySpec((2, 2), torch.uint8),
    ArraySpec((), torch.bfloat16),
]


def values(rows: np.ndarray) -> list[Tensor]:
    """The content of the table: row r depends on r alone."""
    number = torch.from_numpy(rows)
    return [
        number[:, None] * torch.tensor([1.0, 0.5, -3.0]),
        (number[:, None, None] + torch.arange(4).reshape(2, 2)).to(torch.uint8),
        number.to(torch.bfloat16),
    ]


class RecordingFill(list[int]):
    """A `fill` that records the chunks of the rows that it computed, and how many rows."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0

    def __call__(self, rows: np.ndarray, wait: bool) -> list[Tensor]:
        self.append(int(rows[0]) // CHUNK)
        self.rows += len(rows)
        return values(rows)


def make_table(
    store: Store,
    fill: Fill,
    name: str = "t",
    key: str = "k",
    rows: int = ROWS,
) -> ArrayTable:
    return store.entry("kind", [key], {"about": f"entry {key}"}).table(name, rows, COLUMNS, fill)


def is_right(table: ArrayTable) -> bool:
    return all(
        torch.equal(a, b) for a, b in zip(table.tensors(), values(np.arange(ROWS)), strict=True)
    )


def test_a_table_is_computed_once_and_then_read(tmp_path: Path) -> None:
    first, second = RecordingFill(), RecordingFill()
    table = make_table(Store(tmp_path, 10**9), first)
    assert count_missing(table.path, np.arange(ROWS)) == ROWS
    assert is_right(table) and first == list(range(6))
    again = make_table(Store(tmp_path, 10**9), second)
    assert count_missing(again.path, np.arange(ROWS)) == 0
    assert is_right(again) and second == []
    some = np.array([3, 2 * CHUNK, 3 * CHUNK - 1])
    assert all(map(torch.equal, again.read(some, wait=True), values(some)))


def test_only_the_rows_that_are_asked_for_are_computed_and_none_twice(tmp_path: Path) -> None:
    """As by jobs that train on different parts of one pool."""
    third, rest = np.arange(0, ROWS, 3), np.setdiff1d(np.arange(ROWS), np.arange(0, ROWS, 3))
    fills = [RecordingFill() for _ in range(4)]
    tables = [make_table(Store(tmp_path, 10**9), fill) for fill in fills]
    for rows, table in ((third, tables[0]), (third, tables[1]), (rest, tables[2])):
        found = [tensor[torch.from_numpy(rows)] for tensor in table.tensors(rows)]
        assert all(map(torch.equal, found, values(rows)))
    assert is_right(tables[3])
    assert [fill.rows for fill in fills] == [len(third), 0, len(rest), 0]
    assert tables[3].has(np.arange(ROWS))
    assert fills[0] == [0, 3]  # rows of several chunks together, as many as a chunk has


def test_rows_that_are_read_are_stored_and_not_recomputed(tmp_path: Path) -> None:
    first, second = RecordingFill(), RecordingFill()
    table = make_table(Store(tmp_path, 10**9), first)
    chunk = np.arange(3 * CHUNK, 4 * CHUNK)
    table.read(chunk, wait=True)
    table.read(chunk, wait=True)
    assert first == [3] and table.has(chunk) and not table.has(np.arange(4))
    assert count_missing(table.path, np.arange(ROWS)) == ROWS - CHUNK
    assert is_right(make_table(Store(tmp_path, 10**9), second)) and second == [0, 1, 2, 4, 5]


def test_large_tables_have_larger_chunks(tmp_path: Path) -> None:
    table = make_table(Store(tmp_path, 10**9), RecordingFill(), rows=1_000_000)
    assert 1_000_000 / table.chunk_rows <= 256 and table.chunk_rows % CHUNK == 0


def test_rows_of_large_chunks_are_computed_piece_by_piece(tmp_path: Path) -> None:
    """Memory does not grow with the rows of a table."""
    sizes = []

    def fill(rows: np.ndarray, wait: bool) -> list[torch.Tensor]:
        sizes.append(len(rows))
        return values(rows)

    table = make_table(Store(tmp_path, 10**9), fill, rows=300_000)
    rows = np.arange(table.chunk_rows - 10)
    found = table.read(rows, wait=True)
    assert max(sizes) < 1.25 * PIECE < table.chunk_rows and sum(sizes) == len(rows)
    assert all(map(torch.equal, found, values(rows)))


def _truncate(table: ArrayTable) -> None:
    os.truncate(table.path, 1000)


def _empty(table: ArrayTable) -> None:
    table.path.write_bytes(b"")


def _change_shape(table: ArrayTable) -> None:
    description = json.loads(table.path.with_suffix(".json").read_text())
    description["columns"][0][1] = [4]
    table.path.with_suffix(".json").write_text(json.dumps(description))


def _truncate_description(table: ArrayTable) -> None:
    table.path.with_suffix(".json").write_text('{"rows": ')


def _remove_checksums(table: ArrayTable) -> None:
    table.path.with_suffix(".crc").unlink()


@pytest.mark.parametrize(
    "damage", [_truncate, _empty, _change_shape, _truncate_description, _remove_checksums]
)
def test_a_damaged_file_is_detected_and_recomputed(
    tmp_path: Path, damage: Callable[[ArrayTable], None], caplog: pytest.LogCaptureFixture
) -> None:
    table = make_table(Store(tmp_path, 10**9), RecordingFill())
    assert is_right(table)
    damage(table)
    again = RecordingFill()
    assert is_right(make_table(Store(tmp_path, 10**9), again)) and again == list(range(6))
    assert re.search(r"t\.rows is damaged \(.*\): recomputing it", caplog.text)


def test_damaged_rows_are_detected_and_recomputed_and_no_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = make_table(Store(tmp_path, 10**9), RecordingFill())
    assert is_right(table)
    with table.path.open("r+b") as file:
        for row in (CHUNK + 5, 4 * CHUNK):  # of the first column, 12 bytes per row
            file.seek(12 * row)
            file.write(b"\xff")
    again = RecordingFill()
    assert is_right(make_table(Store(tmp_path, 10**9), again))
    assert again == [1] and again.rows == 2
    assert re.search(r"1 rows of .*t\.rows are damaged: recomputing them", caplog.text)


def test_eviction_takes_the_least_recently_used_and_spares_entries_in_use(tmp_path: Path) -> None:
    """Every entry has one megabyte, and three of them fit."""

    def add_entry(key: str, when: float) -> Store:
        store = Store(tmp_path, 3_500_000)
        column = ArraySpec((1_000_000,), torch.uint8)
        entry = store.entry("kind", [key], {})
        entry.table(
            "t", 1, [column], lambda rows, wait: [torch.ones(1, 1_000_000, dtype=torch.uint8)]
        ).tensors()
        set_last_use(key, when)
        return store

    def set_last_use(key: str, when: float) -> None:
        os.utime(tmp_path / "kind" / key / "entry.json", (when, when))

    def kept() -> set[str]:
        return {path.name for path in (tmp_path / "kind").iterdir()}

    held = add_entry("oldest", 1)
    for key, when in (("old", 2), ("new", 3)):
        add_entry(key, when).close()
        set_last_use(key, when)
    add_entry("newest", 4).close()
    assert kept() == {"oldest", "new", "newest"}
    held.close()
    set_last_use("oldest", 1)
    add_entry("another", 5)
    assert kept() == {"new", "newest", "another"}


def test_a_table_above_the_budget_raises_before_it_is_computed(tmp_path: Path) -> None:
    filled = RecordingFill()
    with pytest.raises(StoreError, match=r"does not fit into store.max_gb=1e-06"):
        make_table(Store(tmp_path, 1000), filled).tensors()
    assert filled == []


def test_nothing_is_evicted_for_a_table_that_would_still_not_fit(tmp_path: Path) -> None:
    first = Store(tmp_path, 3_000_000)
    column = ArraySpec((1_000_000,), torch.uint8)
    ones: Fill = lambda rows, wait: [  # noqa: E731
        torch.ones(len(rows), 1_000_000, dtype=torch.uint8)
    ]
    first.entry("kind", ["kept"], {}).table("t", 1, [column], ones).tensors()
    first.close()
    with pytest.raises(StoreError, match="4 MB does not fit"):
        Store(tmp_path, 3_000_000).entry("kind", ["large"], {}).table(
            "t", 4, [column], ones
        ).tensors()
    assert (tmp_path / "kind" / "kept" / "t.rows").exists()


def test_rows_count_against_the_budget_from_when_they_are_asked_for(tmp_path: Path) -> None:
    """A process is killed after two of its chunks; other rows of the table do not count."""

    class Killed(Exception):
        pass

    def fill(rows: np.ndarray, wait: bool) -> list[Tensor]:
        if rows[0] == 2 * CHUNK:
            raise Killed
        return values(rows)

    half = np.arange(0, ROWS, 2)
    large = make_table(Store(tmp_path, 40_000), fill, key="large")
    with pytest.raises(Killed):
        large.tensors(half)
    used = list_entries(tmp_path)[0].size
    files = RowFile(large.path, large.rows, large.columns)
    chunks = len(half[half < 2 * CHUNK]) * files.row_bytes
    assert chunks < used < files.size * 0.9
    column = ArraySpec((40_000 - used + 1,), torch.uint8)
    with pytest.raises(StoreError, match="does not fit"):
        Store(tmp_path, 40_000).entry("kind", ["other"], {}).table(
            "t", 1, [column], lambda rows, wait: [torch.ones(1, *column.shape, dtype=torch.uint8)]
        ).tensors()


def _python(code: str, folder: Path) -> forks.Process:
    names = "Path, RecordingFill, Store, StoreError, fill_slowly, make_table, sys"
    header = f"from store.test_disk import {names}\n"
    return forks.python(
        header + code, str(folder), cwd=folder, PYTHONPATH=f"{ROOT / 'tests'}:{ROOT}"
    )


def fill_slowly(folder: Path) -> None:
    """Complete the table, half a second per chunk; print the chunks that this process computes."""

    def slowly(rows: np.ndarray, wait: bool) -> list[Tensor]:
        print("chunk", rows[0] // CHUNK, flush=True)
        time.sleep(0.5)
        return values(rows)

    print("complete" if is_right(make_table(Store(folder, 10**9), slowly)) else "wrong")


@pytest.mark.slow
def test_processes_that_need_the_same_table_divide_its_chunks(tmp_path: Path) -> None:
    processes = [_python("fill_slowly(Path(sys.argv[1]))", tmp_path) for _ in range(3)]
    printed = [process.communicate(timeout=100)[0] for process in processes]
    chunks = [re.findall(r"chunk (\d)", text) for text in printed]
    assert all("complete" in text for text in printed), printed
    assert sorted(number for numbers in chunks for number in numbers) == [*"012345"]
    assert sum(map(bool, chunks)) > 1


@pytest.mark.slow
def test_a_killed_process_leaves_its_finished_chunks_and_blocks_no_other(tmp_path: Path) -> None:
    process = _python("fill_slowly(Path(sys.argv[1]))", tmp_path)
    for _ in range(3):  # in the middle of the third chunk
        process.read_line()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    again, start = RecordingFill(), time.monotonic()
    assert is_right(make_table(Store(tmp_path, 10**9), again)) and again == [2, 3, 4, 5]
    assert time.monotonic() - start < 5


@pytest.mark.slow
def test_a_full_disk_raises_a_store_error(tmp_path: Path) -> None:
    """The system's limit on file sizes stands in for a full disk."""
    code = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    make_table(Store(Path(sys.argv[1]), 10**9), RecordingFill()).tensors()
except StoreError as error:
    print("store error:", error)
"""
    printed = _python(code, tmp_path).communicate(timeout=100)[0]
    assert re.search(
        r"store error: File too large \(.*rows; tvf store clear frees space", printed
    ), printed
    assert not list(tmp_path.rglob("*.rows"))


@pytest.mark.parametrize(
    "wrong",
    [{"mode": "maybe"}, {"max_gb": 0}, {"max_gb": float("nan")}, {"dtype": "float8"}],
    ids=str,
)
def test_an_option_out_of_range_raises(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"store.{next(iter(wrong))}=.* must be"):
        StoreOptions(**wrong)


def test_modes_on_and_off_may_be_booleans_as_yaml_reads_them() -> None:
    modes: Any = (True, False)
    assert [StoreOptions(mode=mode).mode for mode in modes] == ["on", "off"]


def test_a_folder_that_is_not_writable_gives_no_store_and_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with StoreOptions(dir="/dev/null/store").open() as store:
        assert store is None
    assert "/dev/null/store cannot be written" in caplog.text


def test_info_lists_entries_and_clear_removes_the_unused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def tvf(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["tvf", *arguments])
        cli.main()
        return capsys.readouterr().out

    assert "does not exist" in tvf("store", "info", f"store.dir={tmp_path / 'nowhere'}")
    assert "tvf store info" in tvf("store", "--help")
    monkeypatch.setenv("TVF_STORE", str(tmp_path))
    assert "empty" in tvf("store", "info")
    stores = {key: Store(tmp_path, 10**9) for key in ("used", "free")}
    for key, store in stores.items():
        make_table(store, RecordingFill(), key=key).tensors()
    stores["free"].close()
    shown = tvf("store", "info")
    assert "entry used" in shown and "entry free" in shown and str(tmp_path) in shown
    assert [entry.in_use for entry in list_entries(tmp_path)] == [False, True]
    assert re.search(r"1 of 2 .*; running jobs use the other 1", tvf("store", "clear"))
    assert [entry.about for entry in list_entries(tmp_path)] == ["kind entry used"]
    assert "entry used" in tvf("store", "info", f"store.dir={tmp_path}")
    with pytest.raises(SystemExit, match="2"):
        tvf("store", "wipe")
    assert "No such command 'wipe'" in capsys.readouterr().err
    for wrong in ("/", "store.dir="):
        with pytest.raises(SystemExit, match="store.dir"):
            tvf("store", "clear", wrong)


def test_info_and_clear_know_the_stores_of_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TVF_STORE", str(tmp_path))
    for node in ("node-a", "node-b"):
        store = Store(tmp_path / node, 10**9)
        make_table(store, RecordingFill()).tensors()
        store.close()
    commands.store_info(None)
    shown = capsys.readouterr().out
    assert [f"{tmp_path / node}: 1 entries" in shown for node in ("node-a", "node-b")] == [True] * 2
    commands.store_clear(None)
    assert not list_entries(tmp_path / "node-a") and not list_entries(tmp_path / "node-b")


def test_files_that_are_not_the_stores_are_left_alone(tmp_path: Path) -> None:
    store = Store(tmp_path, 10**9)
    make_table(store, RecordingFill()).tensors()
    store.close()
    foreign = tmp_path / "work" / "sample12"
    foreign.mkdir(parents=True)
    (foreign / "entry.json").write_text('{"kind": "kind"}')
    (tmp_path / ".removed" / "half").mkdir(parents=True)  # as a killed process leaves it
    (tmp_path / ".removed" / "half" / "t.rows").write_bytes(b"0" * 1000)
    assert len(list_entries(tmp_path)) == 1
    assert clear_store(tmp_path)[:2] == (1, 1)
    assert (foreign / "entry.json").exists() and not (tmp_path / ".removed" / "half").exists()


def test_clearing_a_missing_store_does_not_create_it(tmp_path: Path) -> None:
    assert clear_store(tmp_path / "nowhere") == (0, 0, 0)
    assert not (tmp_path / "nowhere").exists()
