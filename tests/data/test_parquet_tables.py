"""Tables in Parquet files."""

import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.tables import LABELS, PLAIN, open_table, write_table
from tvf.errors import InputError


def _parquet(path: Path, **columns: list[Any]) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table(columns), path)
    return path


def test_parquet_is_read_like_text(tmp_path: Path) -> None:
    write_table(tmp_path, "")
    names = [f"{number}.png" for number in range(6)]
    path = _parquet(
        tmp_path / "labels.parquet", id=names, image=names, target=[3, 3, 10, 10, 3, 10]
    )
    catalog = open_table(path).catalog()
    assert catalog.classes == ("10", "3") and catalog.labels.tolist() == [1, 1, 0, 0, 1, 0]
    path = _parquet(tmp_path / "labels.parquet", image=names, label=[*LABELS[:5], None])
    with pytest.raises(InputError, match=r"1 rows without label \(row 6: 5.png\)"):
        open_table(path)
    path = _parquet(tmp_path / "labels.parquet", image=[b"\x89PNG"] * 6, label=LABELS)
    with pytest.raises(InputError, match="column image holds bytes, but must hold text"):
        open_table(path)


def test_parquet_that_is_damaged_inside_is_an_error(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(6)]
    path = _parquet(write_table(tmp_path, "").with_suffix(".parquet"), image=names, label=LABELS)
    content = path.read_bytes()
    messages = set()
    for place in range(4, 60):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        try:
            open_table(path).catalog()
        except InputError as error:  # and nothing else
            messages.add(str(error).partition(":")[0])
    assert f"{path} cannot be read as Parquet" in messages


def test_parquet_that_cannot_be_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow")
    path = write_table(tmp_path, PLAIN, "labels.parquet")
    with pytest.raises(InputError, match="labels.parquet cannot be read as Parquet: "):
        open_table(path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"needs pyarrow, .*: pip install 'tvf\[parquet\]'"):
        open_table(path)
