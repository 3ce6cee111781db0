"""Which columns of a Hugging Face data set hold what: by their types, or their usual names."""

from collections.abc import Mapping, Sequence
from typing import Any

from tvf.data.hf_dataset import import_datasets
from tvf.data.left_out import first_few
from tvf.data.table_columns import (
    AUTO,
    USUAL,
    Columns,
    choose_columns,
    plain_name,
    require_known,
)
from tvf.errors import InputError
from tvf.files import printable

WHOLE = ("int", "uint", "bool")  # how the types of whole numbers begin
TEXT = ("string", "large_string")


def choose_hf_columns(
    path: str, features: Mapping[str, Any], given: Mapping[str, str | None], divided: bool
) -> Columns:
    """The columns of the image and the label by their types, of the others by their names.

    With `divided`, the data set has splits of its own, and none in a column. Raises InputError as
    `choose_columns`.
    """
    kinds = import_datasets()
    images = [name for name, kind in features.items() if isinstance(kind, kinds.Image)]
    labels = [name for name, kind in features.items() if isinstance(kind, kinds.ClassLabel)]
    usual = [name for name in features if plain_name(name) in USUAL["label"]]
    named = [name for name in usual if is_text(features[name])]
    labels = [name for name in labels if plain_name(name) not in USUAL["split"]] or named or labels
    chosen = {
        "image": _one(path, "image", images, given["image"], features),
        "label": _one(path, "label", labels, given["label"], features),
    }
    if not isinstance(features[chosen["image"]], kinds.Image):
        raise InputError(
            f"data.image_column={chosen['image']} must be a column of images, but {path} has "
            f"{type_of(features[chosen['image']])} there: cast it to datasets.Image() and save it."
        )
    label = features[chosen["label"]]
    if not isinstance(label, kinds.ClassLabel) and not is_text(label):
        raise InputError(
            f"data.label_column={chosen['label']} must hold ClassLabel, text or whole numbers, but "
            f"{path} has {type_of(label)} there."
        )
    if not divided or given["split"] is None:
        return choose_columns(path, [*features], {**given, **chosen})
    if given["split"] != AUTO:
        raise InputError(
            f"data.split_column={given['split']} cannot be used with {path}, which has splits of "
            "its own. Remove it."
        )
    columns = choose_columns(path, [*features], {**given, **chosen, "split": None})
    notes = [
        f"column {printable(name)} is not used, as the data set has splits of its own"
        for name in features
        if plain_name(name) in USUAL["split"] and name not in columns.names.values()
    ]
    return Columns(columns.names, (*columns.notes, *notes))


def _one(
    path: str, what: str, found: Sequence[str], given: str | None, features: Mapping[str, Any]
) -> str:
    if given != AUTO and given is not None:
        return require_known(path, features, what, given)
    chosen = [name for name in found if plain_name(name) == what] or list(found)
    if len(chosen) == 1:
        return chosen[0]
    if chosen:
        raise InputError(
            f"{path} has several columns that may hold the {what}: {first_few(chosen)}. Choose one "
            f"with data.{what}_column=."
        )
    kind = "Image" if what == "image" else "ClassLabel, or text or numbers called label"
    held = first_few([f"{name} ({type_of(feature)})" for name, feature in features.items()])
    raise InputError(
        f"{path} has no column of type {kind}, but {held}. Name the column "
        f"with data.{what}_column=, or cast it and save the data set again."
    )


def type_of(feature: Any) -> str:
    """The type of a column, in a word."""
    kind = type(feature).__name__
    return str(feature.dtype) if kind == "Value" else kind


def is_text(feature: Any) -> bool:
    """Whether a column holds text or whole numbers."""
    kind = getattr(feature, "dtype", None)
    plain = type(feature).__name__ == "Value"
    return plain and isinstance(kind, str) and (kind in TEXT or kind.startswith(WHOLE))
