"""Rows of a table: what is one image, what does not depend on their order, and what is noted."""

import difflib
import os
from pathlib import Path

import pytest

from helpers.folders import add
from helpers.tables import LABELS, PLAIN, lines, open_table, write_table
from tvf.data.find_images import find_images
from tvf.data.splits import divide
from tvf.errors import InputError


def test_the_division_does_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to("7.png")
    header, *rows = lines(LABELS * 4, list("abcdefgh") * 3, header="image,label,kind").split()
    rows.append(rows[7].replace("7.png", "link.png"))
    found = []
    for number, each in enumerate((rows, rows[::-1])):
        text = "\n".join([header, *each])
        path = write_table(tmp_path, text, f"{number}.csv", images=24)
        for group in (None, "kind"):
            source = open_table(path, group_column=group, val_fraction=0.4)
            catalog = source.catalog()
            found.append([*catalog.names, *divide(catalog, source)["test"]])
    assert found[:2] == found[2:] and found[0] != found[1]


def test_classes_are_in_the_order_of_folders_of_their_names(tmp_path: Path) -> None:
    names = ["10", "9", "stage 2", "stage 10", "B", "a", "ä", "Z"]
    for name in names:
        add(tmp_path / "flat" / name, "0.png")
    path = write_table(tmp_path, lines(names * 2), images=16)
    assert open_table(path).catalog().classes == find_images(tmp_path / "flat").classes


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """Images 0.png to 5.png, a link to 0.png, and one to the folder real/deep."""
    write_table(tmp_path, PLAIN)
    add(tmp_path / "real" / "deep", "9.png")
    add(tmp_path / "real", "0.png")
    (tmp_path / "deep").symlink_to(tmp_path / "real" / "deep")
    (tmp_path / "z.png").symlink_to("0.png")
    return tmp_path


@pytest.mark.parametrize("again", ["z.png", "deep/../../0.png", "{}/0.png", "real/.././0.png"])
def test_a_file_is_one_image_by_whatever_path(
    linked: Path, again: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(linked)
    again = again.format(linked)
    Path("labels.csv").write_text(PLAIN + f"{again},dog\n")
    with pytest.raises(InputError, match=r"images with two labels \(line 8: .*, in line 2 cat\)"):
        open_table(Path("labels.csv"))
    Path("labels.csv").write_text(PLAIN + f"{again},cat\n\n")
    catalog = open_table(Path("labels.csv")).catalog()
    assert len(catalog) == 6 and "1 rows repeat an image" in catalog.notes[-1]


def test_a_folder_above_is_that_of_the_file_system(linked: Path) -> None:
    path = linked / "labels.csv"
    path.write_text(PLAIN + "deep/../0.png,dog\n")
    catalog = open_table(path).catalog()
    assert catalog.files is not None and len(catalog) == 7
    assert os.path.samefile(str(catalog.files[-1]), linked / "real" / "0.png")


SPLITS = ["train", "Train", "test", "val2017", "train", "valid"]


def _moved(folders: list[str]) -> str:
    """The rows of PLAIN with each image in one of these folders."""
    header, *rows = PLAIN.split()
    return "\n".join([header, *(f"{f}/{row}" for f, row in zip(folders, rows, strict=True))])


@pytest.mark.parametrize(
    ("folders", "noted"),
    [
        (SPLITS, True),
        ([f"data/{part}/x" for part in SPLITS], True),
        ([f"./{part}" for part in SPLITS], True),
        (["train"] * 6, False),
        ([*SPLITS[:5], "more"], False),
        (["a", "b"] * 3, False),
    ],
)
def test_splits_in_the_paths_are_noted_if_no_column_has_them(
    tmp_path: Path, folders: list[str], noted: bool
) -> None:
    for number, folder in enumerate(folders):
        add(tmp_path / folder, f"{number}.png")
    for text in (_moved(folders), _moved(folders).replace("/", "\\")):
        notes = open_table(write_table(tmp_path, text)).catalog().notes
        found = [note for note in notes if "paths have folders called like splits" in note]
        assert len(found) == noted
    path = write_table(tmp_path, _moved(folders))
    assert open_table(path, split_column=None).catalog().notes == ()


def test_labels_and_groups_that_may_be_missing_values_are_noted(tmp_path: Path) -> None:
    labels, groups = ["nan", "nan", "?", "?", "none", "none"], ["NA", "NA", "a", "b", "None", "c"]
    path = write_table(tmp_path, lines(labels, groups, header="image,label,group"))
    assert open_table(path).catalog().notes == (
        "labels that may mean a missing value are read as names of classes: ?, nan",
        "groups that may mean a missing value are read as names of groups: one group each: "
        "NA, None",
    )


def test_only_labels_that_are_named_are_compared_with_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared, find = [], difflib.get_close_matches
    monkeypatch.setattr(
        difflib, "get_close_matches", lambda *a, **k: compared.append(a[0]) or find(*a, **k)
    )
    path = write_table(tmp_path, lines([*LABELS, *(f"cat{n}" for n in range(9))]), images=15)
    with pytest.raises(InputError, match=r"9 labels .* \(did you mean cat\?\); and 4 more"):
        open_table(path)
    assert compared == [f"cat{n}" for n in range(5)]
