"""Which split a folder's name means, and which it may have been meant to mean."""

import difflib
import re

# The names of splits in Hugging Face datasets, Keras, Ultralytics, fastai, COCO, Kaggle and others.
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "validate": "val",
    "dev": "val",
    "development": "val",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
# Words that are written next to them: training_set, testImages, ValData, my-val.
_BESIDE = re.compile("^(images?|imgs?|data|set)|(images?|imgs?|data|dataset|set|split|folder)$")
_ALSO = frozenset("my the image images img imgs photo photos picture pictures jpg jpeg png".split())
# Names of splits that are none here: VOC's trainval is divided by the user, or is train/.
_NEAR = {name: part for name, part in SPLIT_NAMES.items() if len(name) > 2} | {"trainval": "train"}
CLOSE = 0.81  # of two words: above the ratio of test to text and to latest


def split_of(name: str) -> str | None:
    """The split that a folder's name means: valid, VAL, val_images or val2017 mean val.

    None if it means none or several, or has other words too: val_old, val_DO_NOT_USE.
    """
    parts = {_meaning(word) for word in _words(name)} - {""}
    return parts.pop() if len(parts) == 1 else None


def suggest_split(name: str) -> str | None:
    """The split that a name which means none may be meant for: trainning, vla.

    None if there is no such split.
    """
    if split_of(name) is not None:
        return None
    unknown = [word for word in _words(name) if _meaning(word) is None]
    near = {_NEAR[close] for word in unknown if (close := _nearest(word))}
    return near.pop() if len(near) == 1 else None


def split_words(name: str) -> set[str]:
    """The splits that words of a name mean, whatever other words it has: cifar_test means test."""
    return {part for word in _words(name) if (part := _meaning(word))}


def holds_all(name: str) -> bool:
    """Whether a folder's name says that it holds images, and not which: images, data, my photos."""
    words = _words(name)
    return bool(words) and all(_meaning(word) == "" for word in words)


def _words(name: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", name.casefold())


def _meaning(word: str) -> str | None:
    """The split of a word; "" for one that is written beside, None for any other."""
    bare = _BESIDE.sub("", word)
    part = SPLIT_NAMES.get(word) or SPLIT_NAMES.get(bare)
    return part or ("" if not bare or word in _ALSO else None)


def _nearest(word: str) -> str | None:
    """The name of a split that differs from a word by a slip, such as two letters swapped."""
    swapped = [name for name in _NEAR if sorted(name) == sorted(word)]
    return next(iter(swapped or difflib.get_close_matches(word, _NEAR, n=1, cutoff=CLOSE)), None)
