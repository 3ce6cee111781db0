"""How the pool is divided: fractions, folds, groups and limits; and what cannot be divided."""

from typing import Any

import numpy as np
import pytest
import torch

from tvf.data.pool import (
    Catalog,
    DataSplits,
    Pixels,
    Pool,
    Split,
    count_images,
    describe_classes,
    describe_images,
)
from tvf.data.splits import SplitOptions, divide, limit_pool
from tvf.errors import InputError


def catalog(labels: Any, **more: Any) -> Catalog:
    labels = np.asarray(labels)
    classes = tuple("abcdefgh"[: labels.max() + 1])
    names = [str(number) for number in range(len(labels))]
    return Catalog(classes, labels, names, read=lambda *how: pytest.fail("reads"), **more)


def options(**changes: Any) -> SplitOptions:
    return SplitOptions(**changes)


LABELS = np.tile([0, 0, 1, 0, 0, 1, 2, 0, 1, 0], 32)  # 192, 96 and 32 images
GROUPS = np.repeat(np.arange(40), 8)


def sizes(splits: dict[str, np.ndarray]) -> list[int]:
    return [len(splits[name]) for name in ("train", "val", "test")]


@pytest.mark.parametrize("groups", [None, GROUPS], ids=["images", "groups"])
def test_a_division_is_complete_disjoint_stratified_and_a_function_of_its_seed(groups: Any) -> None:
    pool = catalog(LABELS, groups=groups)
    splits = divide(pool, options())
    assert sorted(np.concatenate(list(splits.values()))) == list(range(320))
    assert sizes(splits) == pytest.approx([192, 48, 80], abs=8)
    for places in splits.values():
        shares = np.bincount(LABELS[places]) / len(places)
        assert shares == pytest.approx([0.6, 0.3, 0.1], abs=0.04)
        if groups is not None:
            others = np.setdiff1d(np.arange(320), places)
            assert not np.intersect1d(groups[places], groups[others]).size
    again, other = divide(pool, options()), divide(pool, options(split_seed=1))
    assert all(np.array_equal(splits[name], again[name]) for name in splits)
    for name in splits:
        overlap = len(np.intersect1d(splits[name], other[name])) / len(splits[name])
        # Independent divisions share as much as chance has it.
        assert overlap < {"train": 0.75, "val": 0.45, "test": 0.55}[name]


@pytest.mark.parametrize("groups", [None, GROUPS], ids=["images", "groups"])
@pytest.mark.parametrize("fixed", [False, True], ids=["pool", "own test images"])
def test_folds_validate_every_image_that_is_not_test_exactly_once(groups: Any, fixed: bool) -> None:
    parts = np.where(np.arange(320) < 240, "train", "test") if fixed else None
    pool = catalog(LABELS, groups=groups, parts=parts)
    folds = [divide(pool, options(folds=5, fold=fold)) for fold in range(5)]
    test = folds[0]["test"]
    assert all(np.array_equal(fold["test"], test) for fold in folds)
    validated = np.concatenate([fold["val"] for fold in folds])
    assert sorted(validated) == sorted(np.setdiff1d(np.arange(320), test))
    for fold in folds:
        assert np.array_equal(
            np.sort(np.concatenate([fold["train"], fold["val"]])), np.sort(validated)
        )
        assert len(fold["val"]) == pytest.approx(48, abs=10)


def test_outer_folds_test_every_image_once() -> None:
    pool = catalog(LABELS, groups=GROUPS)
    outer = [
        divide(pool, options(outer_folds=4, outer_fold=fold, folds=3, fold=1)) for fold in range(4)
    ]
    assert sorted(np.concatenate([fold["test"] for fold in outer])) == list(range(320))
    for fold in outer:
        assert sizes(fold) == pytest.approx([160, 80, 80], abs=16)


def test_images_of_a_val_part_validate_unless_there_are_folds() -> None:
    parts = np.repeat(["train", "val", "test"], [200, 60, 60])
    pool = catalog(LABELS, parts=parts)
    assert sizes(divide(pool, options())) == [200, 60, 60]
    assert sizes(divide(pool, options(folds=4))) == [195, 65, 60]
    with pytest.raises(InputError, match=r"outer_folds=4 .*has its own test images"):
        divide(pool, options(outer_folds=4))


def test_the_test_images_validate_on_request_and_not_with_folds() -> None:
    parts = np.where(np.arange(320) < 240, "train", "test")
    pool = catalog(LABELS, parts=parts, val_is_test=True)
    assert sizes(divide(pool, options())) == [240, 80, 80]
    with pytest.raises(InputError, match="data.folds=5 cannot be used with data.validate_on=test"):
        divide(pool, options(folds=5))


@pytest.mark.parametrize("groups", [None, GROUPS], ids=["images", "groups"])
def test_a_train_limit_cuts_training_images_only_and_is_nested(groups: Any) -> None:
    pool = catalog(LABELS, groups=groups)
    whole = divide(pool, options())
    larger = whole["train"]
    for limit in (150, 100, 50):
        splits = divide(pool, options(train_limit=limit))
        assert np.array_equal(splits["val"], whole["val"])
        assert np.array_equal(splits["test"], whole["test"])
        train = splits["train"]
        assert set(train) < set(larger)
        assert len(train) == pytest.approx(limit, abs=0 if groups is None else 4)
        if groups is None:
            shares = np.bincount(LABELS[train]) / len(train)
            assert shares == pytest.approx([0.6, 0.3, 0.1], abs=0.02)
        else:
            rest = np.setdiff1d(whole["train"], train)
            assert not np.intersect1d(groups[train], groups[rest]).size
        larger = train


def test_a_limit_cuts_the_pool_once_so_that_splits_and_folds_share_it() -> None:
    parts = np.where(np.arange(320) < 240, "train", "test")
    pool = catalog(LABELS, parts=parts)
    kept = limit_pool(pool, options(limit=80))
    assert len(kept) == 80 and (parts[kept] == "test").sum() == 20
    assert np.bincount(LABELS[kept]).tolist() == pytest.approx([48, 24, 8], abs=1)
    assert np.array_equal(kept, limit_pool(pool, options(limit=80, folds=5, fold=3)))
    assert np.array_equal(kept, limit_pool(pool, options(limit=80, split_seed=7)))
    assert set(limit_pool(pool, options(limit=40))) < set(kept)
    assert np.array_equal(limit_pool(pool, options(limit=1000)), np.arange(320))


@pytest.mark.parametrize(
    ("labels", "more", "changes", "message"),
    [
        ([0] * 20 + [1], {}, {}, r"21 images cannot .* the \w+ split .* none of class b"),
        ([0, 1] * 3, {}, {"folds": 5}, "none of class"),
        ([0] * 50 + [1] * 3, {}, {"folds": 5}, "none of class b"),
        (
            [0, 1] * 20,
            {"groups": np.repeat([0, 1], 20)},
            {},
            r"40 images in 2 groups cannot .*none of class",
        ),
        ([0, 1, 2] * 40, {}, {"train_limit": 2}, r"train split \(2 images\) has none of class"),
    ],
)
def test_a_split_that_would_lack_a_class_is_an_error(
    labels: list[int], more: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        for fold in range(changes.get("folds", 1)):
            divide(catalog(labels, **more), options(**changes, fold=fold))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folds": 5, "fold": 5}, r"data.fold=5 must be at most 4: data.folds=5"),
        ({"fold": 1}, "data.fold=1 needs data.folds"),
        ({"folds": 1}, "data.folds=1 must be a whole number of at least 2"),
        ({"folds": 5, "fold": -1}, "data.fold=-1"),
        ({"outer_folds": 3, "outer_fold": 3}, "data.outer_fold=3 must be at most 2"),
        ({"outer_folds": 2.5}, "data.outer_folds=2.5"),
        ({"train_limit": 0}, "data.train_limit=0"),
    ],
)
def test_options_out_of_range_are_errors(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        options(**changes)


def test_groups_that_the_data_set_cuts_are_an_error_that_names_two_images() -> None:
    parts = np.where(np.arange(320) % 8 < 6, "train", "test")
    with pytest.raises(InputError, match=r"groups are in two splits, train and test \(0 and 6 "):
        divide(catalog(LABELS, groups=GROUPS, parts=parts), options())


def test_fewer_groups_than_folds_is_an_error() -> None:
    pool = catalog(LABELS, groups=np.repeat([0, 1, 2, 3], 80))
    with pytest.raises(InputError, match="3 groups of images cannot be divided into 5 sides"):
        divide(pool, options(folds=5))


def test_folds_that_lack_a_class_are_an_error_for_all_of_them() -> None:
    pool = catalog([0] * 50 + [1] * 5)
    for fold in range(5):
        with pytest.raises(InputError, match="none of class b"):
            divide(pool, options(folds=5, fold=fold))


def test_the_images_of_a_job_are_counted_by_split_class_and_group() -> None:
    pixels = Pixels(torch.zeros(10, 3, 2, 2, dtype=torch.uint8))
    labels = torch.tensor([0, 0, 1, 0, 1, 1, 0, 0, 1, 0])
    groups = np.arange(10) // 2
    pool = Pool(pixels, labels, [str(number) for number in range(10)], groups)
    parts = {"train": range(6), "val": range(6, 8), "test": range(8, 10)}
    splits = {name: Split(pool, np.array(places)) for name, places in parts.items()}
    counts = count_images(DataSplits(("cat", "dog"), **splits))
    assert (counts["pool"], counts["train"], counts["val"], counts["test"]) == (10, 6, 2, 2)
    assert counts["by_class"] == {"train": [3, 3], "val": [2, 0], "test": [1, 1]}
    assert counts["groups"] == {"train": 3, "val": 1, "test": 1}
    assert describe_images(counts, ("cat", "dog")) == (
        "train 6 of 3 groups (cat 3, dog 3), val 2 of 1 group (cat 2, dog 0), "
        "test 2 of 1 group (cat 1, dog 1)"
    )
    many = [f"class {number}" for number in range(11)]
    counts = count_images(DataSplits(tuple(many), **splits))
    assert "train 6 of 3 groups (11 classes of 0 to 3)" in describe_images(counts, many)
    listed = describe_classes(counts, many)
    assert listed and listed.startswith(
        f"train/val/test of each class: {many[0]} 3/2/1, {many[1]} "
    )
    assert listed.count(",") == 10 and describe_classes(counts, many[:10]) is None


def test_a_split_of_images_and_labels_as_in_the_first_version_raises() -> None:
    images: Any = torch.zeros(4, 3, 2, 2, dtype=torch.uint8)
    with pytest.raises(InputError, match="a data source lists its images in `catalog`"):
        Split(images, np.zeros(4))
