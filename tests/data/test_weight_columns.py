"""Weights of images in tables: read, checked, and part of what identifies a job."""

import time
from pathlib import Path

import numpy as np
import pytest

from helpers.folders import write_images
from helpers.tables import LABELS, lines, open_table, write_table
from tvf.data import count_images, describe_pool
from tvf.data.splits import divide
from tvf.errors import InputError
from tvf.job.images import check_same_images


def _table(*weights: str, header: str = "image,label,weight") -> str:
    return lines(LABELS, weights, header=header)


@pytest.mark.parametrize("header", ["image,label,weight", "image,label,Sample_Weight"])
def test_weights_are_read_from_their_usual_columns_and_said(tmp_path: Path, header: str) -> None:
    path = write_table(tmp_path, _table("1", "2.0", "0", "1e-1", " .5 ", "-0", header=header))
    catalog = open_table(path).catalog()
    assert catalog.weights is not None
    assert catalog.weights.tolist() == [1, 2, 0, 0.1, 0.5, 0]
    assert f"weight in column {header.split(',')[-1]}" in catalog.notes[0]
    assert "null: all count the same" in catalog.notes[0]
    assert catalog.take(np.array([1, 3])).weights.tolist() == [2, 0.1]  # type: ignore[union-attr]
    unweighted = open_table(path, weight_column=None).catalog()
    assert (unweighted.weights, unweighted.notes) == (None, ())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("-1", "weights that are not numbers of at least 0 .line 4: -1"),
        ("nan", "weights that are not numbers of at least 0 .line 4: nan"),
        ("inf", "line 4: inf"),
        ("1e999", "line 4: 1e999"),
        ("heavy", "line 4: heavy.*data.weight_column=null"),
        ("1_0", "line 4: 1_0"),
        ("1;5", "line 4: 1;5"),
        ("0x1", "line 4: 0x1"),
        ("", "1 rows without weight .line 4"),
    ],
)
def test_what_is_no_weight_is_named_by_its_line(tmp_path: Path, value: str, message: str) -> None:
    path = write_table(tmp_path, _table("1", "2", value, "1", "2", "1"))
    with pytest.raises(InputError, match=message):
        open_table(path)


def test_an_image_with_two_weights_is_a_mistake_and_with_equal_ones_none(tmp_path: Path) -> None:
    rows = _table(*"111111")
    open_table(write_table(tmp_path, rows + "0.png,cat,1.00\n"))
    with pytest.raises(InputError, match="images with two weights .line 8: 0.png is 3.0"):
        open_table(write_table(tmp_path, rows + "0.png,cat,3\n"))


def test_weights_of_training_images_must_not_all_be_0(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="all weights of images to train on are 0"):
        open_table(write_table(tmp_path, _table(*"000000")))
    text = lines(LABELS, "000000", ["train"] * 6, header="image,label,weight,split")
    text += "6.png,cat,3,test\n7.png,dog,3,test\n"
    with pytest.raises(InputError, match="all weights of images to train on are 0"):
        open_table(write_table(tmp_path, text, images=8))


def test_a_class_without_weight_to_train_with_is_an_error(tmp_path: Path) -> None:
    text = lines(LABELS, "110010", ["train"] * 6, header="image,label,weight,split")
    text += "".join(
        f"{6 + n}.png,{label},3,{part}\n"
        for n, (label, part) in enumerate(
            [("cat", "test"), ("dog", "test"), ("cat", "val"), ("dog", "val")]
        )
    )
    table = open_table(write_table(tmp_path, text, images=10))
    with pytest.raises(InputError, match="training images of class dog have the weight 0"):
        divide(table.catalog(), table)


def test_changed_weights_are_counted_and_a_job_does_not_resume_on_them(tmp_path: Path) -> None:
    write_images(tmp_path)
    names = [f"train/{name}/{i}.png" for name in ("cats", "dogs") for i in range(24)]

    def source(*weights: str):
        rows = [f"{n},{n[6:10]},{w}" for n, w in zip(names, weights, strict=True)]
        path = tmp_path / "labels.csv"
        path.write_text("\n".join(["image,label,weight", *rows]))
        return open_table(path)

    ones = source(*48 * ["1"]).load()
    plain = open_table(tmp_path / "labels.csv", weight_column=None).load()
    counts = count_images(plain)
    assert count_images(ones) == counts and "weights" not in counts  # all ones: as without
    before, classes = describe_pool(ones.train.pool), ones.classes
    since = time.time() + 1
    weighted = source("3", "0", *46 * ["1"])
    for described in (before, describe_pool(plain.train.pool)):
        assert weighted.count_changes(described, classes, since) == {"reweighted": 2}
    data = weighted.load()
    changed = count_images(data)
    assert changed["digest"] != counts["digest"]
    different = [k for k, v in changed["digests"].items() if v != counts["digests"][k]]
    assert different == ["train"]
    assert data.train.weights is not None
    assert changed["weights"]["high"] == 3
    with pytest.raises(InputError, match="have changed since the checkpoint"):
        check_same_images({"images": counts["digests"]}, changed, tmp_path)
    assert open_table(tmp_path / "labels.csv", weight_column=None).count_changes(
        describe_pool(data.train.pool), classes, since
    ) == {"reweighted": 2}
