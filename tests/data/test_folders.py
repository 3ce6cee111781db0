"""Which folders are splits and classes, and what is said about the others."""

import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.folders import add, fill, left_out
from tvf.data.entries import IMAGE_ENDINGS, is_system
from tvf.data.find_images import find_images
from tvf.data.split_names import split_of, suggest_split
from tvf.errors import InputError


@pytest.mark.parametrize(
    ("part", "names"),
    {
        "train": "train Training TRAIN training_set trainset train_images TrainImages train2017",
        "val": "val valid VALIDATION Val dev validate val_set ValData my-val valid_imgs dev_2",
        "test": "test Testing TEST eval evaluation test-images testset Test_Data test2017",
    }.items(),
)
def test_the_usual_names_of_splits_are_known_in_any_case(part: str, names: str) -> None:
    assert {name: split_of(name) for name in names.split()} == dict.fromkeys(names.split(), part)


@pytest.mark.parametrize(
    "name",
    [
        *("extra", "images", "trainval", "train_val", "pretrained", "latest", "cat", "", "données"),
        *(
            "val_DO_NOT_USE",
            "test_old",
            "train.bak",
            "eval_logs",
            "Copy of val",
            "valé",
            "VAL unused",
        ),
    ],
)
def test_other_names_mean_no_split(name: str) -> None:
    assert split_of(name) is None


@pytest.mark.parametrize(("val", "test"), [("valid", "test"), ("Dev", "EVAL"), ("VAL", "Testing")])
def test_splits_are_read_under_their_usual_names(tmp_path: Path, val: str, test: str) -> None:
    found = find_images(fill(tmp_path, train=24, **{val: 8, test: 7}))
    counts = [found.parts.count(part) for part in ("train", "val", "test")]
    assert counts == [48, 16, 14]
    assert found.names[48] == f"{val}/cat/0.png"
    assert (f"{val}/ is read as the val split" in found.notes) == (val.lower() != "val")


def test_a_plain_name_comes_before_one_that_contains_it(tmp_path: Path) -> None:
    found = find_images(fill(tmp_path, train=3, test=2, test_old=9))
    assert (found.parts.count("test"), len(found.notes)) == (4, 1)
    assert "no split is read from test_old/" in found.notes[0]


@pytest.mark.parametrize("names", [("val", "valid"), ("Test", "eval"), ("train", "Train")])
def test_two_folders_for_one_split_are_an_error_that_names_both(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    fill(tmp_path, **dict.fromkeys(["train", *names], 3))
    with pytest.raises(InputError, match=f"several folders.*{names[0]}/|{names[1]}/"):
        find_images(tmp_path)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        *(("trainning", "train"), ("trianval", "train"), ("tran", "train"), ("vla", "val")),
        *(("validtion", "val"), ("tset", "test"), ("Testt_images", "test"), ("val_old", None)),
        *(("text", None), ("latest", None), ("train", None), ("masks", None), ("rest", None)),
    ],
)
def test_slips_of_the_pen_are_found(name: str, part: str | None) -> None:
    assert suggest_split(name) == part


@pytest.mark.parametrize("name", ["extra", "masks", "trainval"])
def test_any_other_folder_beside_train_is_named(tmp_path: Path, name: str) -> None:
    found = find_images(fill(tmp_path, train=3, **{name: 2}))
    assert len(found.names) == 6 and f"no split is read from {name}/" in found.notes[0]
    assert left_out(found) == {("folders that are no split", ""): (1, f"{name}/")}


def test_a_root_one_level_too_high_is_explained(tmp_path: Path) -> None:
    fill(tmp_path / "data", train=2)
    with pytest.raises(InputError, match=r"no train/ folder.*Its folder data/ has one: .*/data\.$"):
        find_images(tmp_path)


def test_a_root_two_levels_too_high_is_explained(tmp_path: Path) -> None:
    fill(tmp_path / "data" / "v2", train=2)
    with pytest.raises(InputError, match=r"Its folder data/v2/ has one: data.root=.*/data/v2\.$"):
        find_images(tmp_path)


@pytest.mark.parametrize("name", ["trainning", "trianval", "cifar_train"])
def test_a_training_folder_of_another_name_is_told_to_be_renamed(tmp_path: Path, name: str) -> None:
    fill(tmp_path, **{name: 2}, val=2)
    with pytest.raises(InputError, match=f"Did you mean train/ by {name}/. Rename it"):
        find_images(tmp_path)


def test_a_split_that_is_misspelled_or_not_to_be_used_is_named_and_not_read(tmp_path: Path) -> None:
    found = find_images(fill(tmp_path, train=3, val_DO_NOT_USE=2, tset=2))
    assert {*found.parts} == {"train"}
    assert "from tset/ (did you mean test/?), val_DO_NOT_USE/" in found.notes[0]
    found = find_images(fill(tmp_path, train=3, test=2))
    assert "did you mean" not in found.notes[0]  # there is one


@pytest.mark.parametrize("others", [("train",), ("train", "val"), ("Training", "Valid", "test")])
@pytest.mark.parametrize("outer", ["train", "training_data"])
def test_splits_inside_the_training_folder_are_not_read_as_classes(
    tmp_path: Path, outer: str, others: tuple[str, ...]
) -> None:
    fill(tmp_path / outer, **dict.fromkeys(others, 2))
    with pytest.raises(InputError, match=f"holds splits, not classes.*: set data.root=.*/{outer},"):
        find_images(tmp_path)
    find_images(tmp_path / outer)


def test_classes_may_be_called_like_splits(tmp_path: Path) -> None:
    for name in ("train", "dev"):  # of a railway and an office
        add(tmp_path / "train" / name, "0.png")
    assert find_images(tmp_path).classes == ("dev", "train")
    for name in ("cat", "train"):
        add(tmp_path / "other" / "train" / name / "deep", "0.png")
    assert find_images(tmp_path / "other").classes == ("cat", "train")


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_classes_in_a_folder_more_are_told_to_be_moved_up(tmp_path: Path, part: str) -> None:
    fill(tmp_path, **{name: 2 for name in ("train", "val", "test") if name != part})
    fill(tmp_path / part, archive=2)
    with pytest.raises(InputError, match=f"/{part} has a single folder, archive/.*cat, dog.*move"):
        find_images(tmp_path)


def test_images_without_splits_or_classes_are_shown_in_the_error(tmp_path: Path) -> None:
    add(tmp_path, "1.png", "2.png")
    with pytest.raises(InputError, match=r"no train/ folder.*It has 1.png, 2.png"):
        find_images(tmp_path)


@pytest.mark.parametrize("part", ["test", "valid", "train"])
def test_images_without_class_folders_are_named_with_the_place_they_belong_to(
    tmp_path: Path, part: str
) -> None:
    fill(tmp_path, train=3)
    if part == "train":
        (tmp_path / "train").rename(tmp_path / "old")
    add(tmp_path / part, *(f"{number:02d}.png" for number in range(12)))
    match = rf"{part} has .*12 images lie in it without a class \({part}/00.png.* {part}/<class>/"
    with pytest.raises(InputError, match=match):
        find_images(tmp_path)


def test_images_beside_class_folders_are_counted(tmp_path: Path) -> None:
    add(fill(tmp_path, train=3) / "train", "b.png", "a.png")
    assert left_out(find_images(tmp_path)) == {
        ("images outside a class folder", ""): (2, "train/a.png")
    }


NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(("train", "test"), [(NFC, NFD), (NFD, NFC)])
def test_a_class_in_another_unicode_form_is_explained(
    tmp_path: Path, train: str, test: str
) -> None:
    add(tmp_path / "train" / train, "1.png")
    fill(tmp_path, train=2)
    add(tmp_path / "test" / test, "1.png")
    form = "NFC" if train == NFC else "NFD"
    with pytest.raises(InputError, match=f"train/ has it in Unicode form {form} .*Rename one"):
        find_images(tmp_path)


@pytest.mark.parametrize("name", ["CAT", "cat ", "ｃａｔ"])
def test_a_class_that_differs_in_case_spaces_or_width_is_explained(
    tmp_path: Path, name: str
) -> None:
    add(fill(tmp_path, train=2) / "test" / name, "1.png")
    with pytest.raises(InputError, match=r"train/ has cat \('cat', and this one is "):
        find_images(tmp_path)


def test_classes_that_look_the_same_are_an_error_and_those_that_differ_in_case_are_noted(
    tmp_path: Path,
) -> None:
    add(fill(tmp_path, train=2) / "train" / "Cat", "1.png")
    found = find_images(tmp_path)
    assert found.classes == ("Cat", "cat", "dog")
    assert found.notes == ("classes differ in case or spaces alone: Cat, cat",)
    add(tmp_path / "train" / NFC, "1.png")
    add(tmp_path / "train" / NFD, "1.png")
    with pytest.raises(InputError, match="look the same, in different Unicode forms"):
        find_images(tmp_path)


def test_names_that_are_not_utf_8_are_escaped(tmp_path: Path) -> None:
    folder = os.fsencode(fill(tmp_path, train=2)) + b"/train/caf\xe9"
    os.mkdir(folder)
    with open(folder + b"/line\nbreak.png", "wb"):
        pass
    found = find_images(tmp_path)
    assert found.classes == (r"caf\xe9", "cat", "dog")
    assert os.fsencode(found.names[0]) == b"train/caf\xe9/line\nbreak.png"
    os.rename(os.fsencode(tmp_path) + b"/train/cat", os.fsencode(tmp_path) + b"/tr\xffin")
    assert r"no split is read from tr\xffin/" in find_images(tmp_path).notes[0]


def _unreadable(folder: Path) -> Callable[[str], object]:
    real = os.scandir

    def scandir(path: str) -> object:
        if Path(path) == folder:
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    return scandir


@pytest.mark.parametrize("below", ["train", "train/cat", "train/cat/deep"])
def test_a_folder_that_cannot_be_read_is_an_error(
    tmp_path: Path, below: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulated, as nothing is unreadable for root."""
    add(fill(tmp_path, train=2) / "train" / "cat" / "deep", "1.png")
    monkeypatch.setattr(os, "scandir", _unreadable(tmp_path / below))
    with pytest.raises(InputError, match=f"{below} cannot be read: Permission denied"):
        find_images(tmp_path)


def test_every_ending_that_pillow_opens_by_itself_is_read() -> None:
    from PIL import Image, ImageFile

    endings = Image.registered_extensions()  # after importing all of Pillow's formats
    needs_help = {"EPS", "MPEG", "IPTC"}  # Ghostscript, or no decoder at all
    stubs = ImageFile.StubImageFile.__subclasses__()
    own = {
        ending.removeprefix(".")
        for ending, name in endings.items()
        if name in Image.OPEN and name not in needs_help and Image.OPEN[name][0] not in stubs
    }
    assert "jfif" in own and own <= IMAGE_ENDINGS
    assert not IMAGE_ENDINGS & {"eps", "h5", "wmf", "mpg", "pdf", "txt", "heic", "npy", "mp4"}


@pytest.mark.parametrize(
    "name",
    "Thumbs.db desktop.ini __MACOSX @eaDir .DS_Store ._000.png lost+found $RECYCLE.BIN .git "
    "~$notes.png THUMBS.DB #recycle .ipynb_checkpoints System\tVolume\tInformation".split(" "),
)
def test_names_that_systems_leave_are_known(name: str) -> None:
    assert is_system(name.replace("\t", " "))
    assert not is_system(name.replace("\t", " ") + "x" if name[0] not in ".~" else "x" + name)


def test_folders_that_only_sound_like_a_split_are_named_not_refused(tmp_path: Path) -> None:
    root = fill(tmp_path, train=3, val=2, test_set=2)
    for name in ("eval_logs/run", "val_ids", "test_results/figures"):
        (root / name).mkdir(parents=True)
    found = find_images(root)
    assert {*found.parts} == {"train", "val", "test"}
    assert any("eval_logs/, test_results/, val_ids/" in note for note in found.notes)


def test_classes_above_the_splits_are_told_to_change_places(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        add(tmp_path / name / "train", "0.png")
    with pytest.raises(InputError, match=r"cat/, dog/ have one each: put the split first"):
        find_images(tmp_path)
