"""Whether the folders of a data root without train/ are its classes, or what else they may be."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from tvf.data.layout_hints import folders_in, has_images
from tvf.data.left_out import first_few
from tvf.data.split_names import holds_all, split_of, split_words, suggest_split
from tvf.files import printable

DEEPEST = 3  # single folders inside each other, as archives leave them
CHOOSE_FLAT = "If all folders there are classes, set data.layout=flat."


def explain_unclear(
    root: Path, names: Sequence[str], loose: Sequence[str], grouped: bool
) -> str | None:
    """The message for a data root without a training split that cannot be read as flat.

    None if its folders, `names`, can only be the classes. Where images are `grouped` by folders
    inside classes, all classes may have the same ones.
    """
    inside = {name: folders_in(root / name) for name in names}
    without = [name for name in names if not has_images(root / name)]
    splits = [name for name in names if split_of(name) or suggest_split(name)]
    splits += [name for name in without if split_words(name) and len(inside[name]) > 1]
    words = {word for name in names for word in split_words(name)}
    if splits or ("train" in words and len(words) > 1):
        return f"{explain_no_train(root, names, loose)} {CHOOSE_FLAT}"
    if not names or _with_train([root / name for name in names]):
        return explain_no_train(root, names, loose)
    if len(names) == 1:
        return _explain_single(root, names[0], loose)
    if whole := [name for name in names if holds_all(name)]:
        deeper = f" or data.root={printable(root / whole[0])}" if len(inside[whole[0]]) > 1 else ""
        return (
            f"data.root={printable(root)} has no train/ folder, and the name of "
            f"{printable(whole[0])}/ is no class's: rename it,{deeper or ' or move it away'}. "
            f"{CHOOSE_FLAT}"
        )
    known = {*names}
    for name in names:
        if len(again := sorted((known - {name}) & {*inside[name]})) > 1:
            return (
                f"data.root={printable(root)}: {printable(name)}/ has folders that are classes "
                f"beside it ({first_few(again)}), as if an archive had been unpacked twice: remove "
                f"one of both. {CHOOSE_FLAT}"
            )
    alike, shared = _find_alike({name: inside[name] for name in without})
    if not grouped and alike and len(alike) >= len(names) - len(without):
        outer, inner = first_few([f"{name}/" for name in alike], 3), first_few(shared, 3)
        return (
            f"data.root={printable(root)} has {outer}, which have the same folders ({inner}): "
            "either may be the classes. If the inner ones are, move their images into <class>/. If "
            "they hold groups of images that belong together (patients, videos), set "
            "data.groups=1, and otherwise data.layout=flat."
        )
    return None


def _find_alike(inside: Mapping[str, Sequence[str]]) -> tuple[list[str], list[str]]:
    """The folders that have two or more inner folders called like those of others, and these."""
    counts = Counter(inner for folders in inside.values() for inner in folders)
    alike = [name for name in inside if sum(counts[inner] > 1 for inner in inside[name]) > 1]
    shared = {inner for name in alike for inner in inside[name] if counts[inner] > 1}
    return alike, sorted(shared)


def note_flat(root: Path, names: Sequence[str], grouped: bool) -> list[str]:
    """What to say of a data root whose folders are read as classes, because it has no train/."""
    notes = [
        f"no train/ folder in data.root: its {len(names):,} folders are read as classes, and their "
        "images are divided into train, val and test"
    ]
    if odd := [f"{name}/" for name in names if split_words(name)]:
        notes.append(f"the names of some classes have a split's name in them: {first_few(odd)}")
    without = [name for name in names if not has_images(root / name)]
    alike, shared = _find_alike({name: folders_in(root / name) for name in without})
    if alike and not grouped:
        notes.append(
            f"classes without images of their own have the same folders: "
            f"{first_few([f'{name}/' for name in alike], 3)} ({first_few(shared, 3)})"
        )
    return notes


def explain_no_train(root: Path, names: Sequence[str], loose: Sequence[str]) -> str:
    """The message for a data root without a training split: what it has instead."""
    held = [f"{name}/" for name in names] + list(loose)
    has = f" It has {first_few(held)}." if held else ""
    meant = [n for n in names if suggest_split(n) == "train" or "train" in n.casefold()]
    nested = _with_train([root / name for name in names])
    if not nested:  # one more level
        nested = _with_train([root / name / sub for name in names for sub in _few(root / name)])
    if meant:
        has += f" Did you mean train/ by {printable(meant[0])}/? Rename it."
    elif len(nested) > 1:
        shown = first_few([f"{folder.relative_to(root)}/" for folder in nested])
        has = f" {shown} have one each: put the split first."
    elif nested:
        inner = printable(nested[0].relative_to(root))
        has = f" Its folder {inner}/ has one: data.root={printable(nested[0])}."
    return (
        f"data.root={printable(root)} has no train/ folder: put the images in train/<class>/.{has}"
    )


def _explain_single(root: Path, name: str, loose: Sequence[str]) -> str:
    """The message for a root with one folder, which may hold the classes, or train/, somewhere."""
    folder = root / name
    for _ in range(DEEPEST):
        if has_images(folder) or len(inner := folders_in(folder)) == 0:
            break
        if any(split_of(each) == "train" for each in inner):
            return explain_no_train(root, [name], loose)
        if len(inner) > 1:
            return (
                f"data.root={printable(root)} has no train/ folder, and a single one, "
                f"{printable(name)}/. The classes seem to be below it ({first_few(inner)}): "
                f"data.root={printable(folder)}."
            )
        folder = folder / inner[0]
    return (
        f"data.root={printable(root)} has no train/ folder, and 1 class folder ("
        f"{printable(name)}), but must have at least 2: put the images in <class>/ or "
        "train/<class>/."
    )


def _few(folder: Path, limit: int = 20) -> list[str]:
    """The first folders in a folder: where there are many they are classes."""
    return folders_in(folder)[:limit]


def _with_train(folders: Sequence[Path]) -> list[Path]:
    return [each for each in folders if any(split_of(n) == "train" for n in folders_in(each))]
