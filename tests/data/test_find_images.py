"""Which files of a class are read: each real image once, and nothing that systems leave."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from helpers.folders import add, fill, left_out
from tvf.data.find_images import find_images
from tvf.data.left_out import describe_left_out, is_usual
from tvf.data.sources import ImageFolder
from tvf.errors import InputError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three cats and three dogs to train on."""
    return fill(tmp_path / "data", train=3)


def test_plain_folders_are_listed_as_torchvision_lists_them(root: Path) -> None:
    add(root / "train" / "cat" / "b" / "deep", "2.JPG", "1.png")
    add(root / "train" / "cat-b", "x.tiff")
    add(root / "train" / "cat" / "a", "9.webp", "10.png")
    classes = {"cat": 0, "cat-b": 1, "dog": 2}
    expected = make_dataset(str(root / "train"), classes, IMG_EXTENSIONS)
    found = find_images(root)
    assert [f"{root}/{name}" for name in found.names] == [path for path, _ in expected]
    assert found.labels == [label for _, label in expected]


@pytest.mark.parametrize("ending", ["jfif", "gif", "GIF", "jp2", "avif", "tif", "JPE"])
def test_whatever_pillow_opens_is_an_image(root: Path, ending: str) -> None:
    add(root / "train" / "cat", f"new.{ending}")
    assert f"train/cat/new.{ending}" in find_images(root).names


def test_what_is_left_out_is_counted_by_ending(root: Path) -> None:
    add(root / "train" / "cat", "a.heic", "b.HEIC", "a.xml", "0001", "photo.jpg_large")
    add(root, "README.md")
    found = find_images(root)
    reason = "files with other endings"
    assert len(found.names) == 6 and left_out(found) == {
        (reason, ".heic"): (2, "train/cat/a.heic"),
        (reason, ".xml"): (1, "train/cat/a.xml"),
        (reason, ".jpg_large"): (1, "train/cat/photo.jpg_large"),
        (reason, ".md"): (1, "README.md"),
        (reason, "without ending"): (1, "train/cat/0001"),
    }


def test_images_that_pillow_cannot_read_are_a_cause_for_a_warning(root: Path) -> None:
    add(root / "train" / "cat", "notes.txt")
    assert all(map(is_usual, find_images(root).left_out))
    add(root / "train" / "cat", "a.HEIC")
    assert not all(map(is_usual, find_images(root).left_out))


def test_links_to_images_that_no_class_holds_are_read(root: Path) -> None:
    add(root, "loose.png")
    add(root / "train", "beside.png")
    (root / "train" / "cat" / "one.png").symlink_to("../../loose.png")
    (root / "train" / "dog" / "two.png").symlink_to("../beside.png")
    assert {"train/cat/one.png", "train/dog/two.png"} <= {*find_images(root).names}


def test_numbers_and_long_words_are_no_endings_of_their_own(root: Path) -> None:
    add(root / "train" / "cat", *(f"scan.{number:04d}" for number in range(30)), "a.b" + "c" * 20)
    add(root / "train" / "dog", *(f"0.e{number:02d}" for number in range(12)))
    found = find_images(root)
    assert left_out(found)["files with other endings", "without ending"] == (
        31,
        "train/cat/a.bccccc" + "c" * 15,
    )
    assert "and 3 more; train/cat/a.b" in describe_left_out(found.left_out)


def test_a_class_of_files_that_are_not_read_is_an_error_that_counts_them(root: Path) -> None:
    add(root / "train" / "bird", "1.heic", "2.heic")
    with pytest.raises(InputError, match=r"without images: bird, but .* 2 \(.heic 2; "):
        find_images(root)
    add(root / "train" / "bird", "3.png")
    add(root / "test" / "bird", "1.dcm")
    with pytest.raises(InputError, match=r"test has no images, but .* 1 \(.dcm 1; test/bird/1"):
        find_images(root)


@pytest.mark.parametrize(
    "name",
    [".ipynb_checkpoints", "@eaDir", "__MACOSX", ".thumbnails", "lost+found", "$Recycle.Bin"],
)
@pytest.mark.parametrize("below", ["train/cat", "train/cat/deep", "train", "."])
def test_hidden_and_system_folders_are_skipped_at_every_depth(
    root: Path, name: str, below: str
) -> None:
    add(root / below / name, "1.png", "2.png")
    found = find_images(root)
    assert len(found.names) == 6
    (((reason, _), (count, example)),) = left_out(found).items()
    assert reason == "hidden or system files" and count in (1, 2)
    assert example == os.path.normpath(f"{below}/{name}")


@pytest.mark.parametrize("name", ["._0.png", ".DS_Store", "Thumbs.db", "desktop.ini", "~$a.png"])
def test_hidden_and_system_files_are_skipped(root: Path, name: str) -> None:
    add(root / "train" / "dog", name)
    found = find_images(root)
    assert len(found.names) == 6
    assert left_out(found) == {("hidden or system files", ""): (1, f"train/dog/{name}")}


@pytest.mark.parametrize("target", ["..", ".", "../..", "/", "../../train"])
def test_a_link_that_leads_upwards_is_named_and_not_followed(root: Path, target: str) -> None:
    (root / "train" / "cat" / "up").symlink_to(target)
    found = find_images(root)
    assert len(found.names) == 6
    assert left_out(found) == {("links that lead upwards", ""): (1, "train/cat/up")}


def test_links_in_linked_folders_that_lead_upwards_or_to_each_other_end(
    root: Path, tmp_path: Path
) -> None:
    add(tmp_path / "one", "1.png")
    add(tmp_path / "two", "2.png")
    (tmp_path / "one" / "two").symlink_to(tmp_path / "two")
    (tmp_path / "two" / "one").symlink_to(tmp_path / "one")
    (tmp_path / "two" / "all").symlink_to(tmp_path)
    (root / "train" / "cat" / "more").symlink_to(tmp_path / "one")
    found = find_images(root)
    assert found.names[3:5] == ["train/cat/more/1.png", "train/cat/more/two/2.png"]
    assert left_out(found) == {
        ("links to what is read already", "folder"): (1, "train/cat/more/two/one"),
        ("links that lead upwards", ""): (1, "train/cat/more/two/all"),
    }


def test_a_link_to_another_class_takes_nothing_from_it(root: Path) -> None:
    (root / "train" / "cat" / "all").symlink_to("../dog")
    (root / "train" / "cat" / "dog.png").symlink_to("../dog/1.png")
    found = find_images(root)
    assert (found.labels.count(0), found.labels.count(1)) == (3, 3)
    assert left_out(found) == {
        ("links to what is read already", "folder"): (1, "train/cat/all"),
        ("links to what is read already", "file"): (1, "train/cat/dog.png"),
    }


def test_each_file_that_links_lead_to_is_read_once(root: Path, tmp_path: Path) -> None:
    add(tmp_path / "blobs", "1", "2.png")
    (tmp_path / "again.png").symlink_to("blobs/1")
    for name, target in (("a.png", "blobs/1"), ("b.png", "blobs/2.png"), ("c.png", "again.png")):
        (root / "train" / "cat" / name).symlink_to(tmp_path / target)
    found = find_images(root)
    assert found.names[3:5] == ["train/cat/a.png", "train/cat/b.png"]
    assert left_out(found) == {("links to what is read already", "file"): (1, "train/cat/c.png")}


def test_splits_and_classes_may_be_links(root: Path, tmp_path: Path) -> None:
    fill(tmp_path, elsewhere=2)
    (root / "val").symlink_to(tmp_path / "elsewhere")
    add(tmp_path / "birds", "1.png")
    (root / "train" / "bird").symlink_to(tmp_path / "birds")
    found = find_images(root)
    assert found.classes == ("bird", "cat", "dog")
    assert [found.parts.count(part) for part in ("train", "val")] == [7, 4]


@pytest.mark.parametrize(
    ("link", "target", "message"),
    [
        ("test", "train", "train/ and test/ .* are one folder"),
        ("val", "..", "val/data is a class that train/ does not have"),
        ("train/kitten", "cat", "kitten is a link to .*cat, which is read already"),
        ("train/all", "..", "all is a link to .*data, which is read already"),
        ("train/bird", "/nowhere", "bird is a broken link, to /nowhere"),
        ("train/me", "me", "me is a broken link"),
        ("test", "/nowhere", "test cannot be read: No such file"),
    ],
)
def test_a_split_or_class_that_is_a_wrong_link_is_an_error(
    root: Path, link: str, target: str, message: str
) -> None:
    (root / link).symlink_to(target)
    with pytest.raises(InputError, match=message):
        find_images(root)


def test_broken_links_are_counted(root: Path) -> None:
    (root / "train" / "cat" / "gone.png").symlink_to("/nowhere/gone.png")
    (root / "train" / "cat" / "self.png").symlink_to("self.png")
    (root / "train" / "lost.png").symlink_to("/nowhere/lost.png")
    found = find_images(root)
    assert len(found.names) == 6
    assert left_out(found) == {("broken links", ""): (3, "train/cat/gone.png")}


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    os.chdir(path.parent)  # the path of a socket may have 107 bytes
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)


def _linked_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [_fifo, _socket, _linked_device])
@pytest.mark.parametrize("name", ["train/cat/x.png", "train/x.png", "x.png"])
def test_only_regular_files_are_read(
    root: Path, make: Callable[[Path], None], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    make(root / name)
    found = find_images(root)
    assert len(found.names) == 6 and left_out(found) == {("special files", ""): (1, name)}


def test_the_data_source_counts_what_is_left_out_and_opens_nothing_to_do_so(root: Path) -> None:
    os.mkfifo(root / "train" / "cat" / "x.png")
    catalog = ImageFolder(root=str(root), image_size=32).catalog()
    assert catalog.left_out == find_images(root).left_out and len(catalog) == 6
