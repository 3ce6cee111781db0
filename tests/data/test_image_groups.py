"""Groups of images from names, folders and tables."""

from pathlib import Path

import numpy as np
import pytest

from tvf.data.groups import check_groups, find_groups
from tvf.errors import InputError

NAMES = [
    "train/cat/ann/day1/patient07_a.png",
    "train/cat/bob/day1/patient08_a.png",
    "train/dog/ann/day2/patient07_b.png",
]


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        (1, [0, 1, 0]),
        (2, [0, 0, 1]),
        (r"patient\d+", [0, 1, 0]),
        (r"patient(\d+)_(\w)", [0, 1, 2]),
        (r"^ann|bob", [0, 1, 0]),
    ],
)
def test_groups_are_a_folder_level_or_what_an_expression_matches(
    groups: int | str, expected: list[int]
) -> None:
    check_groups(groups)
    assert find_groups(NAMES, groups).tolist() == expected


def test_groups_can_be_a_table(tmp_path: Path) -> None:
    table = tmp_path / "groups.csv"
    rows = [f"{name},{group}" for name, group in zip(NAMES, "xyx", strict=True)]
    table.touch()
    check_groups(str(table))
    for delimiter in (",", ";", ", "):
        table.write_text("\n".join(["image,group", *rows]).replace(",", delimiter) + "\n")
        assert np.array_equal(find_groups(NAMES, str(table)), [0, 1, 0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,patient\na,b\n", "must have the columns image and group, but has image, patient"),
        ("image,group\n{0},x\n{1},\n", "line 3: the group is missing"),
        ("image,group\n{0},x\n{0},y\n", "line 3: .* is in two groups, x and y"),
        ("image,group\n{0},x\n", "gives no group for 2 of 3 images, train/cat/bob"),
        ("", "groups.csv is empty: it must have a header that names the columns"),
        ("image,group\n{0},x,y\n", "line 2: it does not fit the header"),
        ("image,group\n{0},caf\udce9\n", "line 2: byte 0xe9 is not UTF-8"),
    ],
)
def test_a_table_with_gaps_is_an_error_that_names_the_place(
    tmp_path: Path, content: str, message: str
) -> None:
    table = tmp_path / "groups.csv"
    table.write_text(content.format(*NAMES), errors="surrogateescape")
    with pytest.raises(InputError, match=message):
        find_groups(NAMES, str(table))


@pytest.mark.parametrize("groups", [3, r"patient9\d"])
def test_an_image_without_a_group_is_an_error(groups: int | str) -> None:
    with pytest.raises(InputError, match=r"gives no group for 3 of 3 images, train/cat/ann"):
        find_groups(NAMES, groups)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (0, "data.groups=0 must be a regular expression"),
        (True, "data.groups=True must be"),
        ("", "data.groups='' must be"),
        ("patient(", "is not a regular expression"),
        ("nowhere.csv", "data.groups=nowhere.csv must be an existing CSV file"),
    ],
)
def test_an_option_that_names_no_groups_is_an_error(groups: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_groups(groups)
