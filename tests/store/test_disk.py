"""The store: computed once, whole or not at all, within its budget; and what happens when something goes wrong."""

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import ROOT, forks
from tvf import cli
from tvf.errors import InputError
from tvf.store.arrays import CHUNK, ArraySpec, ArrayTable, StoreError
from tvf.store.disk import Store, StoreOptions, clear_store, list_entries

ROWS = 5 * CHUNK + 17
COLUMNS = [
    ArraySpec((3,), torch.float32),
    ArraySpec((2, 2), torch.uint8),
    ArraySpec((), torch.bfloat16),
]


def values(rows: slice) -> list[Tensor]:
    """What row r holds follows from r alone."""
    number = torch.arange(rows.start, rows.stop)
    return [
        number[:, None] * torch.tensor([1.0, 0.5, -3.0]),
        (number[:, None, None] + torch.arange(4).reshape(2, 2)).to(torch.uint8),
        number.to(torch.bfloat16),
    ]


class Filled(list[int]):
    """Which chunks were computed."""

    def __call__(self, rows: slice, wait: bool) -> list[Tensor]:
        self.append(rows.start // CHUNK)
        return values(rows)


def make_table(
    store: Store,
    fill: Callable[[slice, bool], Any],
    name: str = "t",
    key: str = "k",
    rows: int = ROWS,
) -> ArrayTable:
    return store.entry("kind", [key], {"about": f"entry {key}"}).table(name, rows, COLUMNS, fill)


def is_right(table: ArrayTable) -> bool:
    return all(
        torch.equal(a, b) for a, b in zip(table.tensors(), values(slice(0, ROWS)), strict=True)
    )


def test_what_was_computed_once_is_read_ever_after(tmp_path: Path) -> None:
    first, second = Filled(), Filled()
    table = make_table(Store(tmp_path, 10**9), first)
    assert table.missing() == ROWS
    assert is_right(table) and first == list(range(6))
    again = make_table(Store(tmp_path, 10**9), second)
    assert again.missing() == 0
    assert is_right(again) and second == []
    assert torch.equal(again.chunk(2, wait=True)[0], values(slice(2 * CHUNK, 3 * CHUNK))[0])


def test_single_chunks_are_kept_and_not_computed_again(tmp_path: Path) -> None:
    first, second = Filled(), Filled()
    table = make_table(Store(tmp_path, 10**9), first)
    table.chunk(3, wait=True)
    table.chunk(3, wait=True)
    assert first == [3] and table.has(3) and not table.has(0) and not table.path.exists()
    assert is_right(make_table(Store(tmp_path, 10**9), second)) and second == [0, 1, 2, 4, 5]


def test_large_tables_have_larger_chunks(tmp_path: Path) -> None:
    table = make_table(Store(tmp_path, 10**9), Filled(), rows=1_000_000)
    assert table.chunks <= 256 and table.chunk_rows % CHUNK == 0


def _spoil_byte(table: ArrayTable) -> None:
    with table.path.open("r+b") as file:
        file.seek(table.path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def _truncate(table: ArrayTable) -> None:
    os.truncate(table.path, 1000)


def _empty(table: ArrayTable) -> None:
    table.path.write_bytes(b"")


def _other_shape(table: ArrayTable) -> None:
    description = json.loads(table.path.with_suffix(".json").read_text())
    description["columns"][0][1] = [4]
    table.path.with_suffix(".json").write_text(json.dumps(description))


def _half_a_description(table: ArrayTable) -> None:
    table.path.with_suffix(".json").write_text('{"rows": ')


@pytest.mark.parametrize(
    "spoil", [_spoil_byte, _truncate, _empty, _other_shape, _half_a_description]
)
def test_a_damaged_file_is_noticed_and_computed_again(
    tmp_path: Path, spoil: Callable[[ArrayTable], None], caplog: pytest.LogCaptureFixture
) -> None:
    table = make_table(Store(tmp_path, 10**9), Filled())
    assert is_right(table)
    spoil(table)
    again = Filled()
    assert is_right(make_table(Store(tmp_path, 10**9), again)) and again == list(range(6))
    assert re.search(r"t\.bin is damaged \(.*\): it is computed again", caplog.text)


def test_a_damaged_part_is_noticed_and_computed_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = make_table(Store(tmp_path, 10**9), Filled())
    for number in (1, 4):
        table.chunk(number, wait=True)
    rows = tmp_path / "kind" / "k" / "t.part" / "rows"
    with rows.open("r+b") as file:
        file.seek(12 * CHUNK + 5)  # in chunk 1 of the first column
        file.write(b"\xff")
    again = Filled()
    assert is_right(make_table(Store(tmp_path, 10**9), again)) and again == [0, 1, 2, 3, 5]
    assert "part 1 of" in caplog.text


def test_the_least_recently_wanted_goes_first_and_what_is_in_use_stays(tmp_path: Path) -> None:
    """Entries of a megabyte each, of which three fit."""

    def fill(key: str, when: float) -> Store:
        store = Store(tmp_path, 3_500_000)
        column = ArraySpec((1_000_000,), torch.uint8)
        entry = store.entry("kind", [key], {})
        entry.table(
            "t", 1, [column], lambda rows, wait: [torch.ones(1, 1_000_000, dtype=torch.uint8)]
        ).tensors()
        age(key, when)
        return store

    def age(key: str, when: float) -> None:
        os.utime(tmp_path / "kind" / key / "entry.json", (when, when))

    def kept() -> set[str]:
        return {path.name for path in (tmp_path / "kind").iterdir()}

    held = fill("oldest", 1)
    for key, when in (("old", 2), ("new", 3)):
        fill(key, when).close()
        age(key, when)
    fill("newest", 4).close()
    assert kept() == {"oldest", "new", "newest"}
    held.close()
    age("oldest", 1)
    fill("another", 5)
    assert kept() == {"new", "newest", "another"}


def test_what_is_larger_than_the_budget_is_refused_before_it_is_computed(tmp_path: Path) -> None:
    filled = Filled()
    with pytest.raises(StoreError, match=r"do not fit into store.max_gb=1e-06"):
        make_table(Store(tmp_path, 1000), filled).tensors()
    assert filled == []


def test_nothing_is_evicted_for_what_would_not_fit_all_the_same(tmp_path: Path) -> None:
    first = Store(tmp_path, 3_000_000)
    column = ArraySpec((1_000_000,), torch.uint8)
    ones: Callable[[slice, bool], list[Tensor]] = lambda rows, wait: [  # noqa: E731
        torch.ones(rows.stop - rows.start, 1_000_000, dtype=torch.uint8)
    ]
    first.entry("kind", ["kept"], {}).table("t", 1, [column], ones).tensors()
    first.close()
    with pytest.raises(StoreError, match="4 MB do not fit"):
        Store(tmp_path, 3_000_000).entry("kind", ["large"], {}).table(
            "t", 4, [column], ones
        ).tensors()
    assert (tmp_path / "kind" / "kept" / "t.bin").exists()


def test_what_one_job_is_filling_counts_before_it_is_written(tmp_path: Path) -> None:
    """A large table of which one chunk is there takes its whole size from the budget."""
    large = make_table(Store(tmp_path, 40_000), Filled(), key="large")
    large.chunk(0, wait=True)
    assert list_entries(tmp_path)[0].size > large.size
    column = ArraySpec((40_000 - large.size + 1,), torch.uint8)
    with pytest.raises(StoreError, match="do not fit"):
        Store(tmp_path, 40_000).entry("kind", ["other"], {}).table(
            "t", 1, [column], lambda rows, wait: [torch.ones(1, *column.shape, dtype=torch.uint8)]
        ).tensors()


def _python(code: str, folder: Path) -> forks.Process:
    names = "Filled, Path, Store, StoreUnusable, fill_slowly, make_table, sys"
    header = f"from test_store import {names}\n"
    return forks.python(
        header + code, str(folder), cwd=folder, PYTHONPATH=f"{ROOT / 'tests'}:{ROOT}"
    )


def fill_slowly(folder: Path) -> None:
    """Complete the table, saying which chunks this process computes; half a second each."""

    def slowly(rows: slice, wait: bool) -> list[Tensor]:
        print("chunk", rows.start // CHUNK, flush=True)
        time.sleep(0.5)
        return values(rows)

    print("all right" if is_right(make_table(Store(folder, 10**9), slowly)) else "wrong")


@pytest.mark.slow
def test_processes_that_need_the_same_share_it_out(tmp_path: Path) -> None:
    processes = [_python("fill_slowly(Path(sys.argv[1]))", tmp_path) for _ in range(3)]
    printed = [process.communicate(timeout=100)[0] for process in processes]
    chunks = [re.findall(r"chunk (\d)", text) for text in printed]
    assert all("all right" in text for text in printed), printed
    assert sorted(number for own in chunks for number in own) == [*"012345"]
    assert sum(map(bool, chunks)) > 1


@pytest.mark.slow
def test_a_process_that_was_killed_leaves_what_it_had_and_holds_nobody_up(tmp_path: Path) -> None:
    process = _python("fill_slowly(Path(sys.argv[1]))", tmp_path)
    for _ in range(3):  # in the middle of the third chunk
        process.read_line()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not list(tmp_path.rglob("*.bin"))
    again, start = Filled(), time.monotonic()
    assert is_right(make_table(Store(tmp_path, 10**9), again)) and again == [2, 3, 4, 5]
    assert time.monotonic() - start < 5


@pytest.mark.slow
def test_a_file_that_cannot_grow_is_an_error_that_can_be_met(tmp_path: Path) -> None:
    """The system's own limit on a file's size, as a full disk would end a write."""
    code = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    make_table(Store(Path(sys.argv[1]), 10**9), Filled()).tensors()
except StoreUnusable as error:
    print("unusable:", error)
"""
    printed = _python(code, tmp_path).communicate(timeout=100)[0]
    assert re.search(r"unusable: File too large \(.*rows; tvf store clear makes room", printed), (
        printed
    )
    assert not list(tmp_path.rglob("*.bin"))


@pytest.mark.parametrize(
    "wrong",
    [{"mode": "maybe"}, {"max_gb": 0}, {"max_gb": float("nan")}, {"dtype": "float8"}],
    ids=str,
)
def test_options_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"store.{next(iter(wrong))}"):
        StoreOptions(**wrong)


def test_modes_may_be_written_as_yaml_reads_them() -> None:
    modes: Any = (True, False)
    assert [StoreOptions(mode=mode).mode for mode in modes] == ["on", "off"]


def test_a_folder_that_cannot_be_written_means_no_store_and_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with StoreOptions(dir="/dev/null/store").open() as store:
        assert store is None
    assert "/dev/null/store cannot be written" in caplog.text


def test_info_lists_and_clear_removes_what_nobody_uses(
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
        make_table(store, Filled(), key=key).tensors()
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


def test_what_lies_in_the_folder_but_is_no_entry_is_left_alone(tmp_path: Path) -> None:
    make_table(Store(tmp_path, 10**9), Filled()).tensors()
    foreign = tmp_path / "work" / "sample12"
    foreign.mkdir(parents=True)
    (foreign / "entry.json").write_text('{"kind": "kind"}')
    (tmp_path / ".removed" / "half").mkdir(parents=True)  # what a process that was killed left
    (tmp_path / ".removed" / "half" / "t.bin").write_bytes(b"0" * 1000)
    assert len(list_entries(tmp_path)) == 1
    assert clear_store(tmp_path)[:2] == (1, 1)
    assert (foreign / "entry.json").exists() and not (tmp_path / ".removed" / "half").exists()


def test_clearing_a_store_that_is_not_there_makes_none(tmp_path: Path) -> None:
    assert clear_store(tmp_path / "nowhere") == (0, 0, 0)
    assert not (tmp_path / "nowhere").exists()
