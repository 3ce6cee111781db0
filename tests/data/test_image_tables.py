"""Tables of images: what is read from them, and mistakes that are found before anything trains."""

import csv
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.folders import add, write_images
from helpers.tables import LABELS, PLAIN, lines, open_table, write_table
from tvf.data.changes import describe_pool
from tvf.data.sources.image_folder import ImageFolder
from tvf.data.splits import divide
from tvf.errors import InputError


@pytest.mark.parametrize(
    "content",
    [
        PLAIN,
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace("\n", "\r"),
        PLAIN.replace(",", ";"),
        "\n" + PLAIN.replace("\n", "\n\n"),
        PLAIN.replace(",", " , "),
        PLAIN.replace("cat", '"cat"'),
        PLAIN.replace(",", ', "').replace("\n", '"\n'),
        PLAIN.replace("\n", ",,\n"),
        PLAIN.encode("utf-8-sig"),
        PLAIN.encode("utf-16"),
        PLAIN.rstrip("\n"),
    ],
)
def test_usual_forms_of_text_are_read_alike(tmp_path: Path, content: str | bytes) -> None:
    catalog = open_table(write_table(tmp_path, content)).catalog()
    assert catalog.classes == ("cat", "dog")
    assert catalog.labels.tolist() == [0, 0, 1, 1, 0, 1]
    assert list(catalog.names) == [f"{number}.png" for number in range(6)]
    assert catalog.files == [str(tmp_path / f"{number}.png") for number in range(6)]
    assert (catalog.parts, catalog.groups, catalog.notes) == (None, None, ())


def test_tsv_and_quoted_fields_with_delimiters_and_line_ends(tmp_path: Path) -> None:
    add(tmp_path, "a,b\t1.png", "c.png")
    rows = [
        ("a,b\t1.png", 'big "cat"'),
        ("c.png", 'big "cat"'),
        ("0.png", "x\ny"),
        ("1.png", "x\ny"),
    ]
    path = write_table(tmp_path, "", "labels.tsv")
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([("image", "label"), *rows])
    catalog = open_table(path).catalog()
    assert catalog.classes == ('big "cat"', "x\\ny")
    assert catalog.names[2] == r"a,b\t1.png"
    path.write_text(path.read_text() + "9.png\tcat\n")  # after a record of two lines
    with pytest.raises(InputError, match=r"missing files \(line 8: 9.png\)"):
        open_table(path)


def test_images_are_read_like_those_of_a_folder(tmp_path: Path) -> None:
    root = write_images(tmp_path / "images", each=12)
    folder = ImageFolder(root=str(root), image_size=32)
    catalog = folder.catalog()
    rows = [
        f"{name},{catalog.classes[k]}"
        for name, k in zip(catalog.names, catalog.labels, strict=True)
    ]
    path = write_table(tmp_path, "\n".join(["filename,class", *rows]))
    table = open_table(path, root=str(root))
    one, other = folder.load(), table.load()
    for name, split in one.by_name.items():
        assert np.array_equal(split.places, other.by_name[name].places)
        assert split.fingerprint == other.by_name[name].fingerprint
    (root / "train" / "cats" / "3.png").unlink()
    path.write_text(path.read_text() + "\n")  # so that it is read again
    with pytest.raises(InputError, match=r"1 missing files \(line 7: train/cats/3.png\)"):
        open_table(path, root=str(root))


def test_labels_that_have_changed_in_the_table_are_counted(tmp_path: Path) -> None:
    root = write_images(tmp_path / "images", each=12)
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*.png"))
    rows = [f"{name},{name.split('/')[1]}" for name in names]
    path = write_table(tmp_path, "\n".join(["image,label", *rows]))
    source = open_table(path, root=str(root))
    data = source.load()
    before, now = describe_pool(data.train.pool), time.time() + 9
    assert source.count_changes(before, data.classes, now) == {}
    rows[0] = rows[0].replace(",cats", ",dogs")
    path.write_text("\n".join(["image,label", *rows[:-1]]))
    found = open_table(path, root=str(root)).count_changes(before, data.classes, now)
    assert found == {"removed": 1, "relabelled": 1}


def test_splits_and_groups_are_columns(tmp_path: Path) -> None:
    parts = ["Train", "train", "training", "train", "valid", "val"]
    text = lines(LABELS, parts, list("aabbcc"), header="image,label,split,group")
    source = open_table(write_table(tmp_path, text), val_fraction=0.5)
    catalog = source.catalog()
    assert catalog.parts is not None and catalog.groups is not None
    assert catalog.parts.tolist() == [*["train"] * 4, "val", "val"]
    assert catalog.groups.tolist() == [0, 0, 1, 1, 2, 2]
    assert {*catalog.notes} == {
        "split training is read as train",
        "split valid is read as val",
    }
    plain = open_table(tmp_path / "labels.csv", split_column=None, group_column=None).catalog()
    assert (plain.parts, plain.groups) == (None, None)


def test_images_without_a_split_are_divided_by_group(tmp_path: Path) -> None:
    text = lines(LABELS * 4, [str(n // 6) for n in range(24)], header="image,label,group")
    source = open_table(write_table(tmp_path, text, images=24), val_fraction=0.3)
    catalog = source.catalog()
    assert catalog.groups is not None
    sides = [{*catalog.groups[places]} for places in divide(catalog, source).values()]
    assert sum(map(len, sides)) == 4 and all(sides)


@pytest.mark.parametrize(
    ("header", "notes"),
    [
        ("Image Path,category", ["the images are those in column Image Path", "category"]),
        ("image,image_id,class", ["in column image, not in image_id", "column class"]),
        ("image,label,patient_id", ["patient_id may say which images belong together"]),
        ("file,label,weight", ["column file", "by its weight in column weight"]),
        ("image,label,Fold_ID", ["column Fold_ID is not used: data.folds draws"]),
    ],
)
def test_what_is_guessed_is_said(tmp_path: Path, header: str, notes: list[str]) -> None:
    more = [["1.5"] * 6] * (header.count(",") - 1)
    columns = [*more, LABELS] if header.endswith("class") else [LABELS, *more]
    found = open_table(write_table(tmp_path, lines(*columns, header=header))).catalog().notes
    assert len(found) == len(notes)
    assert all(part in note for part, note in zip(notes, found, strict=True))


def test_columns_can_be_named(tmp_path: Path) -> None:
    path = write_table(tmp_path, lines(LABELS, ["1"] * 6, header="x,kind,class"))
    catalog = open_table(path, image_column="x", label_column="kind").catalog()
    assert catalog.classes == ("cat", "dog") and not catalog.notes


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("", {}, "labels.csv is empty: it must have a header"),
        ("\n\n", {}, "labels.csv is empty"),
        ("image,label\n", {}, "labels.csv has no rows"),
        (
            "0.png,cat\n1.png,dog\n",
            {},
            r"no column for images, .*Its first line.*it has 0.png, cat. An image stands in its",
        ),
        ("sep=;\nimage;label\n", {}, "Remove the lines above the one that names the columns"),
        ("# mine, of May\nimage,label\n", {}, "Remove the lines above the one that names"),
        ("image^label\n0.png^cat\n", {}, "a single column: separate columns with commas, semi"),
        ("which,what\n0,cat\n", {}, "Name the column with data.image_column="),
        ("image\n0.png\n", {}, "no column for their labels, such as label or labels"),
        ("image,label,label\n0.png,a,b", {}, "several columns called label: rename"),
        (
            "file,path,label\n0.png,a,b",
            {},
            "several columns that may hold the image .*: file, path",
        ),
        (
            PLAIN,
            {"label_column": "klass"},
            "data.label_column=klass must be a column of .*: image, ",
        ),
        (
            "file,Diagnosis\n0.png,cat",
            {"label_column": "diagnosis"},
            "must be a column of .*: did you mean Diagnosis. It has file, Diagnosis",
        ),
        (PLAIN, {"label_column": "image"}, "column image cannot be both the image and the label"),
        (PLAIN, {"label_column": None}, "data.label_column=None must be the name of a column"),
        (
            PLAIN,
            {"label_column": 0},
            "or auto. Quote a number: 'data.label_column=\"0\"'",
        ),
        (PLAIN, {"ending": 3}, "data.ending=3 must be text such as .jpg, or null"),
        (b"image,label\n0.png,caf\xe9\n", {}, "line 2: byte 0xe9 is not UTF-8. Save"),
        (b"image\0,label\n", {}, "NUL characters"),
        ('image,label\n0.png,"cat\n1.png,dog\n', {}, "line 2: unexpected end of data"),
        ('image,label\n0.png,"cat"s\n', {}, "line 2: ',' expected after"),
        ('image,label\n"0.png" ,"cat"\n', {}, "not even a space, between its last quote and the"),
        (PLAIN.replace("dog", "cat"), {}, "has 1 class, cat, but must have 2"),
        (PLAIN, {"metric": "auroc", "root": "nowhere"}, "data.root=nowhere must be the folder"),
        (
            lines(list("aabbcc")),
            {"metric": "auroc"},
            "must be used with 2 classes, but there are 3",
        ),
    ],
)
def test_what_is_no_table_of_images_is_an_error(
    tmp_path: Path, content: str | bytes, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        open_table(write_table(tmp_path, content), **options)


def test_the_path_must_be_a_table(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder, .* data=image_folder data.root="):
        open_table(tmp_path)
    with pytest.raises(InputError, match="does not exist: name a table"):
        open_table(tmp_path / "none.csv")
    with pytest.raises(InputError, match="must end in .csv, .tsv, .parquet: save"):
        open_table(write_table(tmp_path, PLAIN, "labels.xlsx"))
    with pytest.raises(InputError, match="is a file, .*data=table data.path=.*labels.xlsx"):
        ImageFolder(root=str(tmp_path / "labels.xlsx"), image_size=32)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PLAIN + "7.png,cat\nx/8.png,cat", r"2 missing files \(line 8: 7.png; line 9: x/8.png\)"),
        (PLAIN.replace("1.png,cat", "1.png,"), r"1 rows without label \(line 3: 1.png\)"),
        (PLAIN.replace("1.png,cat", " ,cat"), r"1 rows without image \(line 3\)"),
        (PLAIN.replace("1.png,cat", "1.png"), r"1 rows that do not fit the header \(line 3\)"),
        (PLAIN.replace("1.png,cat", "1.png,a,b"), r"rows that do not fit the header \(line 3\)"),
        (PLAIN + "./2.png,cat", r"two labels \(line 8: ./2.png is cat, in line 4 dog\)"),
        (PLAIN.replace("1.png,cat", "1.png,cta"), r"once \(line 3: cta \(did you mean cat\?\)\)"),
        (PLAIN + "..,cat", r"1 folders \(line 8: ..\)"),
    ],
)
def test_mistakes_are_named_with_their_lines(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_table(write_table(tmp_path, text))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            "train train train train fold1 val",
            r"1 unknown splits \(line 6: fold1\).*must be one of",
        ),
        ("train train train train  val", r"1 rows without split \(line 6: 4.png\)"),
        ("train train val val val val", r"without training images \(line 4: dog\)"),
        (
            "val val val val val val",
            r"2 labels without training images \(line 2: cat; line 4: dog\)",
        ),
    ],
)
def test_unusable_splits_are_named(tmp_path: Path, parts: str, message: str) -> None:
    text = lines(LABELS, parts.split(" "), header="image,label,split")
    with pytest.raises(InputError, match=message):
        open_table(write_table(tmp_path, text))
    with pytest.raises(InputError, match="images with two splits"):
        open_table(write_table(tmp_path, text + "0.png,cat,test\n"))


def test_thousands_of_mistakes_are_counted_and_the_first_named(tmp_path: Path) -> None:
    text = lines([*LABELS, *(f"name{n}" for n in range(3000))])
    with pytest.raises(InputError) as error:
        open_table(write_table(tmp_path, text))
    message = str(error.value)
    assert "3,000 missing files (line 8: 6.png;" in message and "and 2,995 more" in message
    assert "3,000 labels that occur once" in message and len(message) < 1200
    assert "If column label is not the class: data.label_column=" in message


def test_paths_may_lack_their_ending_or_begin_elsewhere(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a", PLAIN.replace(".png", ""))
    with pytest.raises(InputError, match="data.ending=.png is added to all paths"):
        open_table(path)
    assert open_table(path, ending=".png").catalog().names[0] == "0.png"
    lone = write_table(tmp_path / "b", PLAIN, images=0)
    with pytest.raises(InputError, match=rf"Paths begin in {tmp_path}/b: data.root= changes that"):
        open_table(lone)
    assert len(open_table(lone, root=str(tmp_path / "a")).catalog()) == 6


def test_paths_of_windows_and_full_paths_are_read(tmp_path: Path) -> None:
    add(tmp_path / "x", "7.png")
    text = f"{PLAIN}x\\7.png,cat\n{tmp_path}/x/../6.png,dog\n"
    catalog = open_table(write_table(tmp_path, text, images=7)).catalog()
    assert catalog.files is not None
    assert {*catalog.files[:1], catalog.files[-1]} == {
        f"{tmp_path}/x/../6.png",
        str(tmp_path / "x" / "7.png"),
    }
    assert catalog.notes == ("\\ is read as / in 1 paths",)


def test_repeated_rows_are_read_once_and_counted(tmp_path: Path) -> None:
    catalog = open_table(write_table(tmp_path, PLAIN + "0.png,cat\n./0.png,cat\n")).catalog()
    assert len(catalog) == 6
    assert catalog.notes == ("2 rows repeat an image, which is read once",)


def test_numbers_are_names_of_classes(tmp_path: Path) -> None:
    text = lines(["10", "01", "1", "2", "10", "01", "1", "2"])
    catalog = open_table(write_table(tmp_path, text, images=8)).catalog()
    assert catalog.classes == ("01", "1", "10", "2")  # as folders of these names are
    assert catalog.labels.tolist() == [2, 0, 1, 3, 2, 0, 1, 3]
    assert catalog.notes == ("classes are equal as numbers, and read as two: 01, 1",)


def test_labels_that_look_alike_are_named_or_refused(tmp_path: Path) -> None:
    notes = open_table(write_table(tmp_path, lines(["Cat", "cat"] * 3))).catalog().notes
    assert notes == ("classes differ in case or spaces alone: Cat, cat",)
    with pytest.raises(InputError, match="labels.csv has labels whose names look the same"):
        open_table(write_table(tmp_path, lines(["caf\u00e9", "cafe\u0301"] * 3)))
