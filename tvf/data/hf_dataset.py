"""Data sets of Hugging Face `datasets`: opened from a folder or the hub, and their splits.

Only what `save_to_disk` wrote or the hub has as data is read. Code of a data set is never executed:
the library has not done that since version 4.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tvf.data.left_out import first_few
from tvf.data.pool import PARTS
from tvf.data.split_names import SPLIT_NAMES, split_of
from tvf.errors import InputError
from tvf.files import printable
from tvf.hub import cache_alone_if_offline

SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` writes for several and for one
OLDEST = 4  # version of the library
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
INSTALL = "pip install 'tvf[hf]'"


@dataclass(frozen=True, eq=False)
class HfSplits:
    """The data sets to read by their names, "" for one alone, and the split that each becomes.

    A split "" is divided by tvf. `notes` are for the user to read. It is equal to itself alone.
    """

    datasets: Mapping[str, Any]
    parts: Mapping[str, str]
    notes: tuple[str, ...]


def import_datasets() -> Any:
    """The library; InputError if it is missing or executes code of data sets."""
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(f"data=hf needs datasets, which is not installed: {INSTALL}.") from error
    if int(datasets.__version__.split(".")[0]) < OLDEST:
        raise InputError(
            f"data=hf needs datasets {OLDEST} or later, but {datasets.__version__} is installed: "
            f"{INSTALL}."
        )
    return datasets


def on_hub(path: str) -> bool:
    """Whether `path` is a name on the hub: no file or folder, and with the letters of a name."""
    if os.path.exists(os.path.expanduser(path)):
        return False
    return bool(_HUB_NAME.fullmatch(path)) and path not in (".", "..")


def open_splits(
    path: str, config_name: str | None, revision: str | None, download: bool = True
) -> HfSplits:
    """Open the data set in the folder `path`, or of this name on the hub with `download`.

    Raises InputError for what is none, and for splits whose meaning is unclear. A data set that has
    not changed is not opened again by the same process.
    """
    folder = Path(os.path.expanduser(path))
    if os.path.isdir(folder):
        for name, value in (("config_name", config_name), ("revision", revision)):
            if value is not None:
                raise InputError(
                    f"data.{name}={value} is for names on the hub, but data.path="
                    f"{printable(path)} is a folder. Remove it."
                )
        if not any((folder / name).is_file() for name in SAVED):
            raise InputError(
                f"data.path={printable(path)} is a folder without {' or '.join(SAVED)}: it must "
                "be one that save_to_disk of Hugging Face datasets has written. For a folder of "
                f"images: data=image_folder data.root={printable(path)}."
            )
        files = sorted(each for each in folder.glob("**/*") if each.suffix in (".arrow", ".json"))
        status = [(str(each), each.stat().st_mtime_ns, each.stat().st_size) for each in files]
        return _open(str(folder), None, None, tuple(status))
    if not on_hub(path):
        what = "a file" if os.path.exists(folder) else "neither"
        hint = " For a table: data=table." if os.path.exists(folder) else ""
        raise InputError(
            f"data.path={printable(path)} is {what}: it must be a folder that save_to_disk of "
            f"Hugging Face datasets has written, or a name on their hub (owner/name).{hint}"
        )
    if not download:
        raise InputError(
            f"data.path={path} is no folder here, and names on the hub are not loaded with "
            "data.download=false: name the folder that its save_to_disk writes."
        )
    return _open(path, config_name, revision, None)


@lru_cache(maxsize=2)
def _open(path: str, config_name: str | None, revision: str | None, _status: Any) -> HfSplits:
    datasets = import_datasets()
    try:
        if _status is not None:
            found = datasets.load_from_disk(path)
        else:
            with cache_alone_if_offline():
                found = datasets.load_dataset(path, config_name, revision=revision)
    except Exception as error:  # its own kinds, those of pyarrow, of the network, of the disk
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        if isinstance(error, IndexError):
            reason = "one of its splits has no rows, which the library cannot read"
        if _status is not None:
            raise InputError(
                f"data.path={printable(path)} cannot be read as a data set: {printable(reason)}. "
                "Save it again with save_to_disk."
            ) from error
        raise InputError(
            f"data.path={printable(path)} is no folder here, and cannot be loaded from the hub: "
            f"{printable(reason)}. Correct the name, connect to the internet, or load it elsewhere "
            "and name the folder that its save_to_disk writes."
        ) from error
    if not isinstance(found, Mapping):
        return HfSplits({"": found}, {"": ""}, ())
    return _assign_splits(printable(path), dict(found))


def _assign_splits(path: str, found: Mapping[str, Any]) -> HfSplits:
    """The split of each data set, by its usual names: as for folders."""
    if not found:
        raise InputError(f"data.path={path} has no splits.")
    if len(found) == 1 and split_of(next(iter(found))) != "train":
        (name,) = found
        return HfSplits(found, {name: ""}, (f"{printable(name)}, the only split, is divided",))
    parts: dict[str, str] = {}
    for part in PARTS:
        meant = [name for name in found if split_of(name) == part]
        chosen = [name for name in meant if name.casefold() in SPLIT_NAMES] or meant
        if len(chosen) > 1:
            raise InputError(
                f"data.path={path} has several splits for {part}: {first_few(chosen)}. Save it "
                "with one of them, or name the others train, validation and test as they are meant."
            )
        if chosen:
            parts[chosen[0]] = part
    if "train" not in parts.values():
        raise InputError(
            f"data.path={path} has no split to train on, such as train, but {first_few([*found])}. "
            "Rename its splits, or save one of them alone, which is then divided."
        )
    notes = [
        f"{printable(name)} is read as the {part} split"
        for name, part in parts.items()
        if split_of(name.casefold()) != name.casefold() and name != "validation"
    ]
    if others := [name for name in found if name not in parts]:
        notes.append(f"splits that are not read: {first_few(others)}")
    return HfSplits({name: found[name] for name in parts}, parts, tuple(notes))
