"""Tables in files: CSV, TSV and Parquet, read as text with the number of each line."""

import csv
import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tvf.errors import InputError
from tvf.files import printable

SEPARATED, PARQUET = (".csv", ".tsv"), ".parquet"
ENDINGS = (*SEPARATED, PARQUET)
DELIMITERS = ",;\t|"  # of a .csv file: the first line says which
_QUOTED = re.compile('"[^"]*"')
Row = tuple[int, tuple[str, ...] | None]


def row_word(path: Path) -> str:
    """What the numbers of rows count: lines of a text file, rows of Parquet."""
    return "row" if path.suffix.lower() == PARQUET else "line"


def read_header(path: Path) -> tuple[str, ...]:
    """The names of a table's columns. Raises InputError for a file that holds no table."""
    if path.suffix.lower() == PARQUET:
        names = tuple(_open_parquet(path).schema_arrow.names)
    else:
        names = next(_lines(path), (1, ()))[1]
        if not names:
            raise InputError(
                f"{printable(path)} is empty: it must have a header that names the columns, and a "
                "line for each image."
            )
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise InputError(
            f"{printable(path)} has several columns called {', '.join(map(printable, twice))}: "
            "rename or remove all but one."
        )
    return names


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """The number of each row and its text in these columns; None if it does not fit the header.

    Lines are counted from the header, which is line 1, rows of Parquet from 1. Text is without
    spaces around it; missing values are empty, numbers as Python writes them. Blank lines are
    skipped. Raises InputError for what is no table.
    """
    if path.suffix.lower() == PARQUET:
        yield from _parquet_rows(path, columns)
        return
    lines = _lines(path)
    _, header = next(lines)
    places = [header.index(name) for name in columns]
    for number, cells in lines:
        fits = len(cells) >= len(header) and not any(cells[len(header) :])
        yield number, tuple(cells[place] for place in places) if fits else None


def _lines(path: Path) -> Iterator[tuple[int, tuple[str, ...]]]:
    """The number of each line that is not blank, at which a record begins, and its cells."""
    text = _decode(path)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else _guess_delimiter(text)
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True
    )
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(
                f"{printable(path)}, line {number}: {error}. Put a value in quotes if it has "
                "quotes or line ends in it, write its own quotes twice, and nothing, not even a "
                "space, between its last quote and the delimiter."
            ) from error
        if any(stripped := tuple(cell.strip() for cell in cells)):
            yield number, stripped


def _decode(path: Path) -> str:
    try:
        content = path.read_bytes()
        wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except OSError as error:
        raise InputError(f"{printable(path)} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{printable(path)}, line {line}: byte 0x{error.object[error.start]:02x} is not "
            "UTF-8. Save the table as UTF-8."
        ) from error
    if "\0" in text:
        raise InputError(f"{printable(path)} is no text: it has NUL characters. Save it as UTF-8.")
    return text


def _guess_delimiter(text: str) -> str:
    header = _QUOTED.sub("", text.lstrip().partition("\n")[0])
    return max(DELIMITERS, key=header.count)


def _open_parquet(path: Path) -> Any:
    try:
        import pyarrow  # pyright: ignore[reportMissingImports]
        import pyarrow.parquet  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(
            f"{printable(path)} needs pyarrow, which is not installed: pip install 'tvf[parquet]'."
        ) from error
    with _parquet_errors(path):
        return pyarrow.parquet.ParquetFile(path)


@contextmanager
def _parquet_errors(path: Path) -> Iterator[None]:
    """Raise InputError for whatever pyarrow raises."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # it has kinds of its own, and takes Python's for damaged files
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise InputError(
            f"{printable(path)} cannot be read as Parquet: {printable(reason)}."
        ) from error


def _parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    number = 0
    # Without threads of pyarrow's own, which would not survive the forks of jobs.
    batches = _open_parquet(path).iter_batches(columns=list(columns), use_threads=False)
    with _parquet_errors(path):
        for batch in batches:
            values = [batch.column(name).to_pylist() for name in columns]
            for cells in zip(*values, strict=True):
                number += 1
                named = zip(columns, cells, strict=True)
                yield number, tuple(_as_text(path, column, cell) for column, cell in named)


def _as_text(path: Path, column: str, value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bytes | dict | list):
        raise InputError(
            f"{printable(path)}: column {printable(column)} holds {type(value).__name__}, but must "
            "hold text or numbers: paths of image files and names of classes."
        )
    return str(value).strip()
