"""Which images belong together (a patient, a module, a video), from names or a table."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tvf.data.left_out import first_few
from tvf.data.table_file import read_header, read_rows
from tvf.errors import InputError

TABLE = ".csv"
COLUMNS = ("image", "group")


def check_groups(groups: object) -> None:
    """Raise InputError unless `groups` is a folder level, an expression, a table, or None."""
    if groups is None:
        return
    if isinstance(groups, int) and not isinstance(groups, bool) and groups >= 1:
        return
    if isinstance(groups, str) and groups.endswith(TABLE):
        if not Path(groups).expanduser().is_file():
            raise InputError(
                f"data.groups={groups} must be an existing CSV file, by its path from here or in "
                "full."
            )
        return
    if isinstance(groups, str) and groups:
        try:
            re.compile(groups)
            return
        except re.error as error:
            raise InputError(
                f"data.groups={groups!r} is not a regular expression: {error}."
            ) from error
    raise InputError(
        f"data.groups={groups!r} must be a regular expression that finds the group in the path of "
        "an image, the level of a folder below the class (1 or more), or a CSV file with the "
        f"columns {' and '.join(COLUMNS)}."
    )


def find_groups(names: Sequence[str], groups: int | str, flat: bool = False) -> np.ndarray:
    """Return the group of each image, int64 [N], from its path below the data's root.

    `groups` is a level, an expression, or a table. Level 1 is the folder below the class
    (train/CLASS/LEVEL1/..., or CLASS/LEVEL1/... if the data set is `flat`). A regular expression is
    searched for in the path below the class; what it matches is the group, or its parenthesised
    parts if it has any. A table, a CSV file with the columns `image` and `group`, names paths below
    the root. Raises InputError for an image without a group.
    """
    above = 1 if flat else 2  # the class, or the split and the class
    if isinstance(groups, int):
        keys = [_folder_at(name.split("/")[above:], groups) for name in names]
    elif groups.endswith(TABLE):
        table = _read_table(Path(groups).expanduser())
        keys = [table.get(name) for name in names]
    else:
        keys = [_match("/".join(name.split("/")[above:]), groups) for name in names]
    without = [name for name, key in zip(names, keys, strict=True) if not key]
    if without:
        raise InputError(
            f"data.groups={groups} gives no group for {len(without)} of {len(names)} images, "
            f"{without[0]} for example: every image needs one."
        )
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([numbers[key] for key in keys], np.int64)


def _folder_at(below: Sequence[str], level: int) -> str | None:
    """The folder at a level of a path below the class."""
    return below[level - 1] if level < len(below) else None


def _match(below: str, expression: str) -> str | None:
    found = re.search(expression, below)
    if found is None:
        return None
    return " ".join(part or "" for part in found.groups()) if found.groups() else found.group()


def _read_table(path: Path) -> dict[str, str]:
    """The group of each image that the table names."""
    header = read_header(path)
    if not {*COLUMNS} <= {*header}:
        raise InputError(
            f"data.groups={path} must have the columns {' and '.join(COLUMNS)}, but has "
            f"{first_few(header)}."
        )
    table: dict[str, str] = {}
    for line, cells in read_rows(path, COLUMNS):
        if cells is None:
            raise InputError(f"{path}, line {line}: it does not fit the header.")
        image, group = cells
        if not image or not group:
            missing = COLUMNS[0] if not image else COLUMNS[1]
            raise InputError(f"{path}, line {line}: the {missing} is missing.")
        if table.setdefault(image, group) != group:
            raise InputError(
                f"{path}, line {line}: {image} is in two groups, {table[image]} and {group}."
            )
    return table
