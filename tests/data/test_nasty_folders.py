"""Folders as they come: whatever they hold, each real image is read once, as what it is."""

import os
import shutil
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvf.data.entries import is_image, is_system
from tvf.data.find_images import FoundImages, find_images
from tvf.data.sources import ImageFolder
from tvf.files import encode_text, printable

LONG = "x" * 251
CURATED = [
    b"a b", b"it's", b'"quoted"', "😀👩‍🔬".encode(), b"100%s", b"line\nbreak", b"tab\t", b"-rf",
    b"*", b"$HOME", b"back\\slash", b"caf\xe9", b"\xff\xfe", "données".encode(), b"train", b"val",
    b"cat", b"Cat", b"CAT", b"a,b;c|d", b"<b>&amp;", b"[red]", b"{x}", b"~", b" ", b"con",
    LONG.encode(), b".hidden", b"@eaDir", b"Thumbs.db", b"..."
]  # fmt: skip
ANY = st.binary(min_size=1, max_size=20).filter(
    lambda name: name not in (b".", b"..") and not {*b"/\0"} & {*name}
)
NAMES = st.one_of(st.sampled_from(CURATED), ANY).map(os.fsdecode)
ENDINGS = st.sampled_from([".png", ".PNG", ".jpeg", ".txt", "", ".jpg~", ".tar.gz", ".webp"])
FILES = st.tuples(NAMES, ENDINGS).map(lambda parts: (parts[0] + parts[1])[-200:])
KINDS = st.sampled_from(["file", "file", "folder", "fifo", "link"])
TARGETS = st.sampled_from(
    ["..", ".", "../..", "/", "../dog", "../cat/real.png", "real.png", "/nowhere", "itself",
     "../../outside", "../../outside/1.png", "/dev/null"]
)  # fmt: skip
ENTRIES = st.lists(st.tuples(FILES, KINDS, TARGETS, st.integers(0, 3)), max_size=12)


def build(root: Path, entries: list[tuple[str, str, str, int]], classes: list[str]) -> None:
    """Two classes and those of `classes`, and the entries in folders among them."""
    places = [root / "train" / name for name in ("cat", "dog", *classes)]
    for place in (*places, root / "outside"):
        place.mkdir(parents=True, exist_ok=True)
        (place / "real.png").touch()
    for name, kind, target, number in entries:
        path = places[number % len(places)] / name
        if os.path.lexists(path):
            continue
        if kind == "folder":
            path.mkdir()
            (path / "inner.png").touch()
            places.append(path)
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "link":
            path.symlink_to(path.name if target == "itself" else target)
        else:
            path.touch()


def real_images(root: Path) -> dict[str, str]:
    """The class of each real image that nothing hides, by its path below `root`."""
    found = {}
    for folder, folders, files in os.walk(root / "train"):
        folders[:] = [name for name in folders if not is_system(name)]
        for name in files:
            path = os.path.join(folder, name)
            if is_image(name) and not is_system(name) and stat.S_ISREG(os.lstat(path).st_mode):
                below = os.path.relpath(path, root)
                found[below] = below.split("/")[1]
    return found


@settings(max_examples=60)
@given(entries=ENTRIES, classes=st.lists(NAMES.filter(lambda n: not is_system(n)), max_size=2))
def test_each_real_image_is_read_once_as_what_it_is(
    tmp_path_factory: pytest.TempPathFactory,
    entries: list[tuple[str, str, str, int]],
    classes: list[str],
) -> None:
    root = tmp_path_factory.mktemp("nasty")
    try:
        build(root, entries, classes)
        found, real = find_images(root), real_images(root)
        _check(root, found, real)
        catalog = ImageFolder(root=str(root), image_size=32).catalog()
        for name in (*catalog.names, *catalog.classes, *catalog.notes):
            assert encode_text(name) == name.encode() and name == printable(name)
    finally:
        shutil.rmtree(root)


def _check(root: Path, found: FoundImages, real: dict[str, str]) -> None:
    listed = dict(zip(found.names, found.labels, strict=True))
    assert {*real} <= {*listed} and len(listed) == len(found.names)
    for name, label in listed.items():
        assert stat.S_ISREG(os.stat(root / name).st_mode)  # whatever a link leads to
        if name in real:
            assert found.classes[label] == printable(real[name])
    truth = [os.path.realpath(root / name) for name in found.names]
    assert len({*truth}) == len(truth)
    assert found.parts == ["train"] * len(truth)
    # A link may only bring in what lies outside.
    outside = [path for path in truth if os.path.relpath(path, root) not in real]
    assert all("/train/" not in path.removeprefix(str(root)) for path in outside)


def test_the_generator_makes_every_kind_of_entry(tmp_path: Path) -> None:
    """Otherwise the law above would hold for want of cases."""
    entries = [
        (f"{kind}.png", kind, target, 0)
        for kind, target in [("file", ""), ("folder", ""), ("fifo", ""), ("link", "..")]
    ]
    build(tmp_path, [*entries, ("out", "link", "../../outside", 1)], ["train", "caf\udce9"])
    found = find_images(tmp_path)
    assert found.classes == (r"caf\xe9", "cat", "dog", "train")
    assert found.names == [
        "train/caf\udce9/real.png",
        "train/cat/file.png",
        "train/cat/real.png",
        "train/cat/folder.png/inner.png",
        "train/dog/real.png",
        "train/dog/out/real.png",
        "train/train/real.png",
    ]
    assert [entry.reason for entry in found.left_out] == [
        "folders that are no split",
        "links that lead upwards",
        "special files",
    ]
