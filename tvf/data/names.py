"""Names of classes that are easily confused: in case, spaces, Unicode form, or as copies."""

import re
import unicodedata
from collections.abc import Iterable

from tvf.data.left_out import first_few
from tvf.errors import InputError

# What file managers append to the name of a copy: cat (1), cat - Copy, cat copy 2.
_COPY = re.compile(r"(( - copy)? \(\d+\)| - copy| copy( \d+)?)$")


def folded(name: str) -> str:
    """A name without differences in case, width and spaces around it."""
    return unicodedata.normalize("NFKC", name).casefold().strip()


def spell_out(name: str) -> str:
    """A name with escapes for all that is not ASCII."""
    return ascii(name)


def note_alike(classes: Iterable[str], where: str, remedy: str) -> list[str]:
    """Notes about classes whose names are alike; InputError if two of them look the same.

    `where` begins the message, `remedy` says what can be done besides renaming one.
    """
    classes = list(classes)
    shapes: dict[str, list[str]] = {}
    for name in classes:
        shapes.setdefault(folded(name), []).append(name)
    notes = []
    for names in shapes.values():
        forms = {unicodedata.normalize("NFC", name) for name in names}
        if len(forms) < len(names):
            spelled = " and ".join(map(spell_out, names))
            raise InputError(
                f"{where} whose names look the same, in different Unicode forms: {spelled}. "
                f"{remedy}, or rename one of them."
            )
        if len(names) > 1:
            notes.append(f"classes differ in case or spaces alone: {first_few(names)}")
    for name in classes:
        original = _COPY.sub("", folded(name))
        if original != folded(name) and original in shapes:
            notes.append(f"class {first_few([name])} may be a copy of {shapes[original][0]}")
    return notes
