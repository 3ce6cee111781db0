"""Images that were added, removed, replaced or moved since a job read them are counted."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers import Outcome
from tvf.data import ImageFolder, describe_pool

Shell = Callable[..., Outcome]


def _add(train: Path) -> None:
    shutil.copy(train / "dogs" / "1.png", train / "cats" / "copy.png")


def _replace(train: Path) -> None:
    """With a file of the same date and size, as `cp -p` does."""
    cat, dog = train / "cats" / "1.png", train / "dogs" / "1.png"
    date = cat.stat().st_mtime_ns
    cat.write_bytes(dog.read_bytes()[: cat.stat().st_size].ljust(cat.stat().st_size, b"\0"))
    os.utime(cat, ns=(date, date))


def _touch(train: Path) -> None:
    for path in train.glob("*/*.png"):
        path.touch()


def _swap(train: Path) -> None:
    cat, dog = train / "cats" / "1.png", train / "dogs" / "1.png"
    cat.rename(train / "x.tmp")
    dog.rename(cat)
    (train / "x.tmp").rename(dog)


CHANGES = {
    "nothing": (lambda train: None, {}),
    "touched": (_touch, {}),
    "added": (_add, {"added": 1}),
    "removed": (lambda train: (train / "dogs" / "3.png").unlink(), {"removed": 1}),
    "replaced": (_replace, {"replaced": 1}),
    "swapped": (_swap, {"replaced": 2}),
    "relabelled": (
        lambda train: (train / "cats" / "1.png").rename(train / "dogs" / "from cats.png"),
        {"relabelled": 1},
    ),
    "renamed": (
        lambda train: (train / "cats" / "1.png").rename(train / "cats" / "one.png"),
        {"renamed": 1},
    ),
    "a class renamed": (
        lambda train: (train / "cats").rename(train / "kittens"),
        {"relabelled": 24},
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_every_change_of_the_images_is_counted_as_what_it_is(image_root: Path, what: str) -> None:
    change, expected = CHANGES[what]
    source = ImageFolder(root=str(image_root), image_size=32)
    before = describe_pool(source.load().train.pool)
    since = int(time.time())  # as jobs record it
    change(image_root / "train")
    assert source.count_changes(before, ("cats", "dogs"), since) == expected


def test_files_that_are_older_than_the_record_are_not_read(
    image_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ImageFolder(root=str(image_root), image_size=32)
    before = describe_pool(source.load().train.pool)
    monkeypatch.setattr("tvf.data.changes._content", None)
    assert source.count_changes(before, ("cats", "dogs"), time.time() + 1) == {}


@pytest.mark.slow
def test_a_finished_sweep_says_that_its_images_have_changed(
    shell: Shell, image_root: Path, tmp_path: Path
) -> None:
    command = ["-m", "data=image_folder", f"data.root={image_root}", "data.image_size=32"]
    command += ["epochs=1", "tracker=none", "hydra.sweep.dir=sweep", "hydra/launcher=basic"]
    command += ["model=transfer", "seed=1,2"]
    assert shell(*command).code == 0
    assert "images have changed" not in shell(*command).out
    _add(image_root / "train")
    _swap(image_root / "train")
    again = shell(*command)
    assert again.code == 0
    expected = "1 added, 2 replaced since 2 of the jobs read them. Finished jobs keep the scores"
    assert expected in again.out and "choose another folder" in again.out
    more = shell(*command[:-1], "seed=2,3")
    assert "transfer-learning-seed2" in more.out and "since transfer-learning-seed2" in more.out
    single = [*command[1:-4], "model=transfer", "seed=1", "hydra.run.dir=single"]
    assert "images have changed" not in shell(*single).out + shell(*single).out
    (image_root / "train" / "dogs" / "7.png").unlink()
    assert "1 removed since single read them" in shell(*single).out
    shutil.rmtree(image_root / "train" / "dogs")
    (image_root / "train" / "dogs").mkdir()
    assert "has a class folder without images" in shell(*command).out
