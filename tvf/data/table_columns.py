"""Which columns of a table hold what: as the options say, or by their usual names."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tvf.data.entries import is_image
from tvf.data.left_out import first_few
from tvf.errors import InputError
from tvf.files import printable

AUTO = "auto"
# Usual names, in lower case and without spaces, _ and -. The first is the plain one.
USUAL = {
    "image": (
        *("image", "images", "img", "file", "path", "filename", "filepath", "imagepath", "imgpath"),
        *("imagefile", "imagefilename", "imagename", "imgname", "imageid", "imgid", "relativepath"),
    ),
    "label": (
        *("label", "labels", "class", "classes", "classname", "labelname", "target", "targets"),
        *("category", "categoryname", "y"),
    ),
    "split": ("split", "set", "subset", "partition", "dataset"),
    "group": ("group", "groups", "groupid"),
    "weight": ("weight", "weights", "sampleweight", "imageweight"),
}
# What groups are usually called by. Only named, as it may also be something else.
GROUP_LIKE = frozenset(
    f"{each}{end}"
    for each in "patient subject case person video sequence scene site lesion animal slide".split()
    for end in ("", "s", "id", "no", "number", "name")
)
FOLD_LIKE = ("fold", "folds", "foldid", "kfold", "cvfold")
OPTIONAL = ("split", "group", "weight")


@dataclass(frozen=True)
class Columns:
    """The name of the column for each of USUAL that there is, and what to say about them."""

    names: Mapping[str, str]
    notes: tuple[str, ...]


def choose_columns(table: str, header: Sequence[str], given: Mapping[str, str | None]) -> Columns:
    """Choose the columns of a table; `given` has a name, AUTO, or None for none, for each.

    Raises InputError for a name that is not in `header`, and where none or several could be meant.
    """
    names: dict[str, str] = {}
    notes: list[str] = []
    for what, usual in USUAL.items():
        wanted = given[what]
        if wanted is None:
            continue
        if wanted != AUTO:
            names[what] = require_known(table, header, what, wanted)
            continue
        meant = [name for name in header if plain_name(name) in usual]
        chosen = [name for name in meant if plain_name(name) == what] or meant
        if len(chosen) > 1:
            raise InputError(
                f"{table} has several columns that may hold the {what} of an image: "
                f"{first_few(chosen)}. Choose one with data.{what}_column=."
            )
        if chosen:
            names[what] = chosen[0]
            # A weight may also be one in kilograms.
            if chosen[0] != what or len(meant) > 1 or what == "weight":
                notes.append(_describe_guess(what, chosen[0], meant))
        elif what not in OPTIONAL:
            raise InputError(
                f"{table} has no column for {'images' if what == 'image' else 'their labels'}, "
                f"such as {' or '.join(usual[:2])}. Its first line must name the columns; it has "
                f"{first_few(header)}. {_remedy(table, what, header)}"
            )
    taken: dict[str, str] = {}
    for what, name in names.items():
        if name in taken:
            raise InputError(
                f"{table}: column {printable(name)} cannot be both the {taken[name]} and the "
                f"{what}: set data.{taken[name]}_column or data.{what}_column."
            )
        taken[name] = what
    return Columns(names, (*notes, *_describe_others(header, names, given)))


def _remedy(table: str, what: str, header: Sequence[str]) -> str:
    """What to do about a header in which a column is not found."""
    first = header[0]
    if first.startswith("#") or first.lower().startswith("sep="):
        return "Remove the lines above the one that names the columns."
    if len(header) == 1:
        tabs = table.lower().endswith(".tsv")
        separators = "tabs, or call it .csv" if tabs else "commas, semicolons, tabs or |"
        return f"It has a single column: separate columns with {separators}."
    if any(map(is_image, header)):
        return "An image stands in its first line: write one above it, such as image,label."
    return f"Name the column with data.{what}_column=."


def require_column(what: str, value: object) -> None:
    """Raise InputError unless `value` can name the column of `what`."""
    if isinstance(value, str) or (value is None and what in OPTIONAL):
        return
    name = f"data.{what}_column"
    quoted = f". Quote a number: '{name}=\"{value}\"'" if type(value) in (int, float) else ""
    null = ", or null" if what in OPTIONAL else ""
    raise InputError(f"{name}={value!r} must be the name of a column, or auto{null}{quoted}.")


def require_known(table: str, header: Iterable[str], what: str, wanted: str) -> str:
    """The column `wanted` for `what`; InputError, with the closest one, unless `header` has it."""
    if wanted in (names := [*header]):
        return wanted
    plain = {plain_name(name): name for name in names}
    near = difflib.get_close_matches(plain_name(wanted), plain, n=1)
    hint = f"did you mean {printable(plain[near[0]])}? It has " if near else ""
    raise InputError(
        f"data.{what}_column={wanted} must be a column of {table}: {hint}{first_few(names)}."
    )


def plain_name(name: str) -> str:
    """A column's name in lower case, without spaces, _ and -."""
    return "".join(letter for letter in name.casefold() if letter not in " _-")


def _describe_guess(what: str, chosen: str, meant: Sequence[str]) -> str:
    note = f"each image's {what} is in column {printable(chosen)}"
    if what == "image":
        note = f"the images are those in column {printable(chosen)}"
    if what == "weight":
        note = f"each image counts in the training loss by its weight in column {printable(chosen)}"
    if others := [name for name in meant if name != chosen]:
        note += f", not in {first_few(others)}"
    null = "; null: all count the same" if what == "weight" else ""
    return f"{note} (data.{what}_column{null})"


def _describe_others(
    header: Sequence[str], names: Mapping[str, str], given: Mapping[str, str | None]
) -> list[str]:
    """Notes about columns that are not read and might matter."""
    unread = [name for name in header if name not in names.values()]
    notes = []
    alike = [name for name in unread if plain_name(name) in GROUP_LIKE]
    if alike and "group" not in names and given["group"] is not None:
        notes.append(
            f"column {printable(alike[0])} may say which images belong together: "
            f"data.group_column={printable(alike[0])} keeps them in one split, and "
            "data.group_column=null says that it does not"
        )
    if folds := [name for name in unread if plain_name(name) in FOLD_LIKE]:
        notes.append(
            f"column {printable(folds[0])} is not used: data.folds draws folds of its own; for one "
            "division, write train and val into a column split"
        )
    return notes
