"""What to say of a table that is read: of labels that may be mistakes, and of splits in paths."""

import math
import os
from collections.abc import Iterable, Sequence

from tvf.data.left_out import first_few
from tvf.data.split_names import split_of

# How programs write that a value is missing, in lower case.
MISSING = ("nan", "na", "n/a", "#n/a", "<na>", "nat", "null", "nil", "?", "-")


def note_missing(what: str, values: Iterable[str]) -> list[str]:
    """A note if some labels or groups look as if they were missing."""
    alike = [v for v in dict.fromkeys(values) if v.casefold() in MISSING or v == "None"]
    if not alike:
        return []
    read_as = "names of classes" if what == "label" else "names of groups: one group each"
    return [f"{what}s that may mean a missing value are read as {read_as}: {first_few(alike)}"]


def note_equal_numbers(classes: Iterable[str]) -> list[str]:
    """Notes about classes that are the same number."""
    numbers: dict[float, list[str]] = {}
    for name in classes:
        try:
            value = float(name)
        except ValueError:
            continue
        if math.isfinite(value):
            numbers.setdefault(value, []).append(name)
    return [
        f"classes are equal as numbers, and read as two: {first_few(names)}"
        for names in numbers.values()
        if len(names) > 1
    ]


def note_split_folders(names: Sequence[str]) -> list[str]:
    """A note if all paths have the folder of a split at one place: train/0.png, test/1.png."""
    folders = [os.path.normpath(n.replace("\\", "/")).split("/")[:-1] for n in names]
    for place in range(min(map(len, folders), default=0)):
        found = {path[place] for path in folders}
        parts = {split_of(name) for name in found} if len(found) < 20 else {None}
        if len(parts) > 1 and None not in parts:
            return [
                f"paths have folders called like splits ({first_few(sorted(found))}), but no "
                "column says the split, so all images are divided anew: add a column split to keep "
                "them apart; data.split_column=null says that this is meant"
            ]
    return []
