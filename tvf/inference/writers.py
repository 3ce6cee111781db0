"""Writes predictions as CSV, JSON lines or Parquet, batch by batch."""

import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from tvf.errors import InputError, require_choice
from tvf.files import printable
from tvf.inference.pipeline import Chunk

FORMATS = {"csv": ".csv", "jsonl": ".jsonl", "parquet": ".parquet"}
Rows = list[dict[str, Any]]
DIGITS = 6  # of a probability in text


def rows_of(chunk: Chunk, classes: Sequence[str], top: int, every_class: bool) -> Rows:
    """One dictionary per image: image, class, probability, and what else is asked for.

    `top` adds class_2, probability_2 and so on; `every_class` adds the probability of each class.
    """
    rows = []
    for item, probabilities in zip(chunk.items, chunk.probabilities, strict=True):
        order = np.argsort(-probabilities, kind="stable")[:top].tolist()
        row: dict[str, Any] = {"image": item.name}
        for rank, place in enumerate(order, 1):
            suffix = "" if rank == 1 else f"_{rank}"
            row[f"class{suffix}"] = classes[place]
            row[f"probability{suffix}"] = round(float(probabilities[place]), DIGITS)
        if every_class:
            values = probabilities.round(DIGITS).tolist()
            row |= {f"p({name})": value for name, value in zip(classes, values, strict=True)}
        rows.append(row)
    return rows


@contextmanager
def open_writer(path: Path | None, file_format: str) -> Iterator[Callable[[Rows], None]]:
    """Yield a function that writes rows to `path`, or to stdout; all rows have the same keys.

    The file appears whole, at the end. Raises InputError if it cannot be written.
    """
    require_choice("--format", file_format, tuple(FORMATS))
    if path is None:
        if file_format == "parquet":
            raise InputError("--format parquet needs a file: name it with --output.")
        with _text_writer(sys.stdout, file_format) as write:
            yield write
        return
    if path.is_dir():
        raise InputError(f"{printable(path)} is a folder: name a file in it.")
    # A device, a pipe or a link stays what it is.
    whole = not path.is_symlink() and (path.is_file() or not path.exists())
    target = path.with_name(f".{path.name}.part") if whole else path
    try:
        if file_format == "parquet":
            with _parquet_writer(target) as write:
                yield write
        else:
            with target.open("w", newline="", encoding="utf-8") as file:
                with _text_writer(file, file_format) as write:
                    yield write
        if whole:
            if target.exists():
                target.replace(path)
            else:  # Parquet without a row has no columns
                path.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{printable(path)} cannot be written: {error.strerror}.") from error
    finally:
        if whole:
            with suppress(OSError):
                target.unlink()


@contextmanager
def _text_writer(file: TextIO, file_format: str) -> Iterator[Callable[[Rows], None]]:
    table: Any = None

    def write(rows: Rows) -> None:
        """Append rows to the file."""
        nonlocal table
        if file_format == "jsonl":
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        elif rows:
            if table is None:
                table = csv.DictWriter(file, list(rows[0]))
                table.writeheader()
            table.writerows(rows)

    yield write
    if table is None and file_format == "csv":  # no image could be read
        file.write("image,class,probability\r\n")
    file.flush()


@contextmanager
def _parquet_writer(path: Path) -> Iterator[Callable[[Rows], None]]:
    try:
        import pyarrow  # pyright: ignore[reportMissingImports]
        import pyarrow.parquet  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(
            "--format parquet needs pyarrow, which is not installed: pip install 'tvf[parquet]'."
        ) from error
    writer: Any = None

    def write(rows: Rows) -> None:
        """Append rows to the file."""
        nonlocal writer
        if not rows:
            return
        table = pyarrow.Table.from_pylist(rows)
        writer = writer or pyarrow.parquet.ParquetWriter(path, table.schema)
        writer.write_table(table)

    try:
        yield write
    finally:
        if writer is not None:
            writer.close()
