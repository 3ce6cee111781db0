"""Which divisions and seeds repeat a sweep's trainings."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvf.errors import InputError
from tvf.report import Training
from tvf.sweep.repetitions import choose_repetitions, fresh_values

NUMBERS = st.lists(st.integers(0, 50), min_size=1, max_size=9)


def config(root: Path, **data: Any) -> dict[str, Any]:
    node = {"_target_": "tvf.data.ImageFolder", "root": str(root), "image_size": 32}
    return {"data": node | data}


def trainings(seeds: Sequence[int], splits: Sequence[int] = (0,), folds: int = 1) -> list[Training]:
    return [
        Training(split, 0, fold, seed)
        for seed in seeds
        for split in splits
        for fold in range(folds)
    ]


@given(used=NUMBERS, count=st.integers(1, 9))
def test_fresh_values_are_as_many_as_before_and_none_of_them(used: list[int], count: int) -> None:
    again = trainings(used[:count])
    fresh = fresh_values(trainings(used), again, "seed")
    assert len(fresh) == len({*used[:count]}) and not {*fresh} & {*used}


@settings(max_examples=20)
@given(seeds=NUMBERS, splits=NUMBERS)
def test_the_overrides_are_exactly_the_trainings_that_are_included(
    image_folder: Path, seeds: list[int], splits: list[int]
) -> None:
    used = trainings(seeds, splits, folds=2)
    chosen = choose_repetitions(config(image_folder, folds=2), used, used)
    listed = {key: text.partition("=")[2] for key, text in chosen.overrides.items()}
    fresh = trainings(
        [int(value) for value in listed["seed"].split(",")],
        [int(value) for value in listed["data.split_seed"].split(",")],
        folds=2,
    )
    assert len(fresh) == chosen.number == len({*used}) and not {*fresh} & {*used}
    assert all(map(chosen.includes, fresh)) and not any(map(chosen.includes, used))


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 24 files, which are listed and never read."""
    root = tmp_path_factory.mktemp("images")
    for name in ("cats", "dogs"):
        folder = root / "train" / name
        folder.mkdir(parents=True)
        for number in range(24):
            (folder / f"{number}.png").touch()
    return root


def test_images_that_the_data_set_sets_aside_leave_only_the_seeds_fresh(
    image_folder: Path, tmp_path: Path
) -> None:
    root = tmp_path / "images"
    shutil.copytree(image_folder, root)
    used = trainings((5, 6))
    divided = choose_repetitions(config(root), used, used)
    assert divided.folds == 5 and "data.split_seed" in divided.overrides
    (root / "val").mkdir()
    for name in ("cats", "dogs"):
        (root / "train" / name).rename(root / "val" / name)
        shutil.copytree(image_folder / "train" / name, root / "train" / name)
    fixed = choose_repetitions(config(root), used, used)
    assert fixed.overrides == {"data.split_seed": "data.split_seed=0", "seed": "seed=7,8"}
    assert "only the seeds are fresh" in fixed.note
    # Folds divide these images too, so that a sweep by folds has fresh divisions.
    assert choose_repetitions(config(root, folds=3), used, used).values["data.split_seed"] == [1]


def test_images_that_cannot_be_divided_are_an_error_before_any_job(image_folder: Path) -> None:
    used = trainings((1,), folds=2)
    with pytest.raises(InputError, match="cannot be divided"):
        choose_repetitions(config(image_folder, folds=2), used, used, folds=40)
