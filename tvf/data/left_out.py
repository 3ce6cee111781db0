"""What a data set's folder holds that is not read: counted by reason and kind, and put in words."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tvf.files import printable

# The reasons, as they stand in summary.json and in messages.
ENDING = "files with other endings"
SYSTEM = "hidden or system files"
LOOSE = "images outside a class folder"
OTHER_FOLDER = "folders that are no split"
REPEATED = "links to what is read already"
UPWARDS = "links that lead upwards"
BROKEN = "broken links"
SPECIAL = "special files"
# Usual in a folder of images: no cause for a warning, unless these are images themselves.
USUAL = (ENDING, SYSTEM)
OTHER_IMAGES = (
    *(".heic", ".heif", ".jxl", ".svg", ".eps", ".psd", ".exr", ".hdr", ".dcm", ".npy", ".pdf"),
    *(".raw", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".czi", ".svs", ".mp4"),
)


@dataclass(frozen=True)
class LeftOut:
    """`count` files or folders of one `kind` that were not read, why, and one of them."""

    reason: str
    kind: str
    count: int
    example: str


def is_usual(entry: LeftOut) -> bool:
    """Whether leaving this out is no cause for a warning."""
    return entry.reason in USUAL and entry.kind not in OTHER_IMAGES


class Tally:
    """Counts what is left out."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], tuple[int, str]] = {}

    def add(self, reason: str, kind: str, example: str, count: int = 1) -> None:
        """Count `count` more; `example` is kept if it is the first in order."""
        before, first = self._found.get((reason, kind), (0, example))
        self._found[reason, kind] = (before + count, min(first, example))

    def merge(self, other: "Tally") -> None:
        """Add all that `other` has counted."""
        for (reason, kind), (count, example) in other._found.items():
            self.add(reason, kind, example, count)

    def entries(self) -> tuple[LeftOut, ...]:
        """All that was left out, the most first, with names that can be shown."""
        found = [
            LeftOut(reason, printable(kind), count, printable(example))
            for (reason, kind), (count, example) in self._found.items()
        ]
        return tuple(sorted(found, key=lambda entry: (-entry.count, entry.reason, entry.kind)))


def describe_left_out(entries: Iterable[LeftOut]) -> str:
    """In words: files with other endings 3 (.txt 2, .xml 1; train/cat/a.txt), ..."""
    by_reason: dict[str, list[LeftOut]] = {}
    for entry in entries:
        by_reason.setdefault(entry.reason, []).append(entry)
    parts = []
    for reason, group in by_reason.items():
        kinds = first_few([f"{entry.kind} {entry.count:,}" for entry in group if entry.kind])
        details = "; ".join(filter(None, [kinds, group[0].example]))
        parts.append(f"{reason} {sum(entry.count for entry in group):,} ({details})")
    return ", ".join(parts)


def first_few(names: Sequence[object], limit: int = 10) -> str:
    """The first names, and how many more there are."""
    shown = ", ".join(printable(name) for name in names[:limit])
    more = len(names) - limit
    return f"{shown} and {more:,} more" if more > 0 else shown
