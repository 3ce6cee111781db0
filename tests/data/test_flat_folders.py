"""Image folders without splits: the folders of the data root are the classes, or it is said why."""

from pathlib import Path

import numpy as np
import pytest

from helpers.folders import add, left_out, write_images
from tvf.data.find_images import find_images
from tvf.data.pool import count_images
from tvf.data.sources.image_folder import ImageFolder
from tvf.data.split_names import holds_all
from tvf.data.splits import divide
from tvf.errors import InputError


def _classes(root: Path, *names: str, images: int = 2) -> Path:
    for name in names:
        add(root / name, *(f"{number}.png" for number in range(images)))
    return root


def test_a_root_without_splits_holds_the_classes_and_this_is_said(tmp_path: Path) -> None:
    add(_classes(tmp_path, "cat", "dog") / "dog" / "old" / "scans", "a.png")
    add(tmp_path, "loose.png", "README.md")
    found = find_images(tmp_path)
    assert found.flat and found.classes == ("cat", "dog") and {*found.parts} == {"train"}
    assert found.names == [
        *("cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png", "dog/old/scans/a.png")
    ]
    assert found.labels == [0, 0, 1, 1, 1]
    assert left_out(found)[("images outside a class folder", "")] == (1, "loose.png")
    (note,) = found.notes
    assert note.startswith("no train/ folder in data.root: its 2 folders are read as classes")
    assert find_images(tmp_path, "flat").notes == ()


def test_a_flat_data_set_is_divided_as_the_same_images_in_train_are(tmp_path: Path) -> None:
    split = ImageFolder(root=str(write_images(tmp_path / "a")), image_size=32, split_seed=3)
    flat = ImageFolder(root=str(tmp_path / "a" / "train"), image_size=32, split_seed=3)
    one, other = split.load(), flat.load()
    for name, part in one.by_name.items():
        assert np.array_equal(part.places, other.by_name[name].places) and len(part)
    digests = [count_images(data)["digests"] for data in (one, other)]
    assert digests[0] == digests[1]


@pytest.mark.parametrize("groups", [1, r"^patient\d", r"patient\d"])
def test_groups_and_folds_of_flat_data_sets(tmp_path: Path, groups: int | str) -> None:
    for number in range(6):
        for name in ("cat", "dog"):
            add(tmp_path / name / f"patient{number}", "0.png", "1.png")
    layout = "auto" if isinstance(groups, int) else "flat"
    source = ImageFolder(
        root=str(tmp_path), image_size=32, groups=groups, folds=3, fold=2, layout=layout
    )
    catalog = source.catalog()
    assert catalog.groups is not None and len(np.unique(catalog.groups)) == 6
    sides = [{*catalog.groups[places]} for places in divide(catalog, source).values()]
    assert sum(map(len, sides)) == 6 and all(sides)


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ("cat dog test", r"no train/ folder.*It has cat/, dog/, test/\..*set data.layout=flat"),
        ("cat dog vlaid", "no train/ folder.*set data.layout=flat"),
        ("cifar_train/a cifar_train/b cifar_test/a", "Did you mean train/ by cifar_train/.*flat"),
        ("images labels", "the name of images/ is no class's: rename it, or move it away"),
        ("my_photos/a my_photos/b masks", "my_photos/ is no class's.*or data.root=.*/my_photos"),
        ("cat dog bird/cat bird/dog", r"bird/ has folders that are classes beside it \(cat, dog\)"),
        ("kaggle_train/a kaggle_train/b more", "Did you mean train/ by kaggle_train/.*layout=flat"),
        ("my_test_x/a my_test_x/b more", "no train/ folder.*my_test_x/.*set data.layout=flat"),
        ("1999/cat 1999/dog 2000/cat 2000/dog", r"1999/, 2000/, which have the same folders \(cat"),
        ("1/cat 1/dog 2/cat 2/dog 3/cat", r"has 1/, 2/, which have the same folders \(cat, dog\)"),
        ("1/cat 1/dog 2/cat 2/dog more", r"has 1/, 2/, which have the same folders \(cat, dog\)"),
        ("1/a 1/b 2/b 2/c 3/a 3/c", r"has 1/, 2/, 3/, which have the same folders \(a, b, c\)"),
        ("pets/cat pets/dog", r"a single one, pets/.*below it \(cat, dog\): data.root=.*/pets\.$"),
        ("pets/pets/cat pets/pets/dog", r"below it \(cat, dog\): data.root=.*/pets/pets\.$"),
        ("pets", r"and 1 class folder \(pets\), but must have at least 2"),
        ("a/b/c/d/e", "and 1 class folder"),
        ("a/b/c/train", r"no train/ folder"),
    ],
)
def test_what_may_be_no_class_is_an_error(tmp_path: Path, folders: str, message: str) -> None:
    _classes(tmp_path, *folders.split())
    with pytest.raises(InputError, match=message):
        find_images(tmp_path)


@pytest.mark.parametrize(
    ("folders", "classes"),
    [
        ("bus car train", ("bus", "car", "train")),
        ("drawings images", ("drawings", "images")),
        ("cat dog test", ("cat", "dog", "test")),
        ("cat/left cat/right dog/left dog/right", ("cat", "dog")),
    ],
)
def test_an_option_says_that_all_folders_are_classes(
    tmp_path: Path, folders: str, classes: tuple[str, ...]
) -> None:
    _classes(tmp_path, *folders.split())
    with pytest.raises(InputError, match="data.layout=flat"):
        find_images(tmp_path)
    assert find_images(tmp_path, "flat").classes == classes
    with pytest.raises(InputError, match="no train/ folder|train has 0 class folders"):
        find_images(tmp_path, "splits")


@pytest.mark.parametrize(
    "folders",
    [
        "cat/1999 cat/2000 dog/1999 dog/2000 bird cow pig",  # most have images without folders
        "cat/siam cat/manx dog/pug dog/collie",
        "cat/old dog/old cat/1 dog/2",
        "bullet_train/1 car/1",
        "bullet_train bullet_train/1 bullet_train/2 car",
    ],
)
def test_folders_inside_classes_are_read_where_they_can_be_nothing_else(
    tmp_path: Path, folders: str
) -> None:
    found = find_images(_classes(tmp_path, *folders.split()))
    assert {*found.classes} == {name.partition("/")[0] for name in folders.split()}
    said = "classes without images of their own have the same folders: cat/, dog/ (1999, 2000)"
    assert (said in found.notes) == ("1999" in folders)


def test_flat_classes_called_train_are_told_of_beside_others_with_images(tmp_path: Path) -> None:
    _classes(tmp_path, "car", "train/a", "train/b")
    (note,) = find_images(tmp_path).notes
    assert note.endswith(
        "no split is read from car/; if all of them are classes, set data.layout=flat"
    )


def test_folders_with_a_splits_word_in_their_name_are_named(tmp_path: Path) -> None:
    notes = find_images(_classes(tmp_path, "bullet train", "car")).notes
    assert notes[1] == "the names of some classes have a split's name in them: bullet train/"


@pytest.mark.parametrize("copy", ["cat (1)", "cat - Copy", "Cat copy 2", "cat - Copy (2)"])
def test_copies_of_classes_are_named(tmp_path: Path, copy: str) -> None:
    notes = find_images(_classes(tmp_path, "cat", "dog", copy), "flat").notes
    assert notes == (f"class {copy} may be a copy of cat",)


def test_a_folder_without_images_in_a_flat_root_is_an_error(tmp_path: Path) -> None:
    add(_classes(tmp_path, "cat", "dog") / "labels", "0.txt")
    with pytest.raises(
        InputError, match=rf"{tmp_path.name} has a class folder without .* labels, "
    ):
        find_images(tmp_path)
    with pytest.raises(InputError, match="has no train/ folder"):
        find_images(tmp_path / "labels")
    with pytest.raises(InputError, match="has 0 class folders, but must have at least 2 with"):
        find_images(tmp_path / "labels", "flat")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("images", True),
        ("my photos", True),
        ("data", True),
        ("image of a cat", False),
        ("7", False),
    ],
)
def test_names_that_say_images_and_not_which(name: str, expected: bool) -> None:
    assert holds_all(name) is expected


@pytest.mark.parametrize(("below", "layout"), [("train", "auto"), (".", "flat")])
def test_classes_that_hold_others_once_more_are_named(
    tmp_path: Path, below: str, layout: str
) -> None:
    _classes(tmp_path / below, "cat", "dog", "zip/cat", "zip/dog", "dog/cat")
    found = find_images(tmp_path, layout)
    assert found.classes == ("cat", "dog", "zip")
    (note,) = found.notes
    assert note.endswith(
        "zip/, which is read as a class, has folders that are called like other classes: cat, dog"
    )


def test_an_unknown_layout_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="data.layout=nested must be one of auto, splits, flat"):
        ImageFolder(root=str(_classes(tmp_path, "a", "b")), image_size=32, layout="nested")
