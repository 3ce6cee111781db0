"""Reading CIFAR-10: the files as torchvision expects them, and what is said when they are not."""

import pickle
import re
import shutil
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10

from helpers.cifar_files import (
    CLASSES,
    TRAIN_FILES,
    Images,
    draw_images,
    expect_files,
    md5,
    pack_cifar10,
    write_cifar10,
)
from tvf.data.sources.cifar10 import Cifar10
from tvf.errors import InputError

TRAIN, TEST = draw_images(100, seed=1), draw_images(30, seed=2)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with small files in CIFAR-10's format that torchvision accepts as the real ones."""
    root = tmp_path / "data"
    expect_files(monkeypatch, write_cifar10(root, TRAIN, TEST))
    return root


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", fail)


def read(root: Path, **options: object) -> list[Images]:
    data = Cifar10(root=str(root), image_size=32, **{"download": False, **options}).load()  # type: ignore[arg-type]
    assert data.classes == tuple(CLASSES)
    return [
        Images(split.pixels(np.arange(len(split))).numpy(), split.labels.numpy())
        for split in (data.train, data.val, data.test)
    ]


def error_message(root: Path, **options: object) -> str:
    """The error that reading this folder raises."""
    with pytest.raises(InputError) as caught:
        read(root, **options)
    return str(caught.value)


def same(one: Images, other: Images) -> bool:
    return np.array_equal(one.pixels, other.pixels) and np.array_equal(one.labels, other.labels)


def test_files_are_read_in_order_and_the_test_images_validate_on_request(root: Path) -> None:
    train, val, test = read(root, validate_on="test")
    assert same(train, TRAIN)
    assert same(val, TEST)
    assert same(test, TEST)


def test_a_split_validates_on_a_stratified_share_of_the_training_images(root: Path) -> None:
    train, val, test = read(root)
    assert np.bincount(val.labels).tolist() == [2] * 10
    together = np.concatenate([train.pixels, val.pixels]).reshape(100, -1)
    assert np.array_equal(
        np.unique(together, axis=0), np.unique(TRAIN.pixels.reshape(100, -1), axis=0)
    )
    assert same(test, TEST)


def test_images_are_resized_on_request(root: Path) -> None:
    data = Cifar10(root=str(root), image_size=48, download=False).load()
    assert data.test.pool.pixels.images.shape == (130, 3, 48, 48)
    assert data.test.pool.pixels.images.dtype == torch.uint8


def test_missing_data_without_a_download_names_the_expected_folder(
    root: Path,
) -> None:
    shutil.rmtree(root)
    message = error_message(root)
    assert f"expected in {root / 'cifar-10-batches-py'}" in message
    assert "set data.download=true" in message
    assert "download failed" not in message
    assert not root.exists()


def test_a_failed_download_names_the_cause_and_the_expected_folder(
    root: Path,
) -> None:
    shutil.rmtree(root)
    message = error_message(root, download=True)
    assert "no network" in message
    assert f"expected in {root / 'cifar-10-batches-py'}" in message


def remove_file(path: Path) -> str:
    path.unlink()
    return "is missing"


def truncate(path: Path) -> str:
    path.write_bytes(path.read_bytes()[:-100])
    return "is damaged or incomplete"


def change_one_byte(path: Path) -> str:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return "is damaged or incomplete"


@pytest.mark.parametrize("name", [*TRAIN_FILES, "test_batch", "batches.meta"])
@pytest.mark.parametrize("damage", [remove_file, truncate, change_one_byte])
@pytest.mark.parametrize("download", [False, True])
def test_a_missing_or_damaged_file_is_named_with_the_remedy(
    root: Path, name: str, damage: Callable[[Path], str], download: bool
) -> None:
    path = root / CIFAR10.base_folder / name
    fault = damage(path)
    message = error_message(root, download=download)
    assert f"{path} {fault}" in message
    assert re.findall(r"(\S+) (?:is missing|is damaged)", message) == [str(path)]
    assert (
        f"delete {path.parent} and {'connect' if download else 'set data.download=true'}" in message
    )


class Trap:
    """A pickle (the format of CIFAR-10's files) that runs code when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["data_batch_1", "batches.meta", "archive"])
def test_a_malicious_pickle_in_place_of_a_file_is_named_and_never_loaded(
    root: Path, tmp_path: Path, name: str
) -> None:
    trapped = tmp_path / "trapped"
    malicious = pickle.dumps({"data": Trap(trapped)})
    if name == "archive":
        with tarfile.open(root / CIFAR10.filename, "w:gz") as archive:
            entry = tarfile.TarInfo(f"{CIFAR10.base_folder}/data_batch_1")
            entry.size = len(malicious)
            archive.addfile(entry, BytesIO(malicious))
        shutil.rmtree(root / CIFAR10.base_folder)
        assert f"{root / CIFAR10.filename} is damaged" in error_message(root, download=True)
    else:
        (root / CIFAR10.base_folder / name).write_bytes(malicious)
        assert f"{root / CIFAR10.base_folder / name} is damaged" in error_message(root)
    assert not trapped.exists()


def test_all_bad_files_are_named(root: Path) -> None:
    folder = root / CIFAR10.base_folder
    for name in ("data_batch_2", "test_batch"):
        (folder / name).unlink()
    message = error_message(root)
    assert f"{folder / 'data_batch_2'} is missing; {folder / 'test_batch'} is missing" in message


def test_an_unreadable_file_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("torchvision.datasets.utils.check_md5", deny)
    assert (
        f"{root / CIFAR10.base_folder / 'data_batch_1'} cannot be read (Permission denied)"
        in error_message(root)
    )


@pytest.mark.parametrize("name", ["data_batch_3", "batches.meta"])
def test_the_remedy_works_deleting_the_folder_unpacks_the_archive(
    root: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(pack_cifar10(root)))
    truncate(root / CIFAR10.base_folder / name)
    assert f"delete {root / CIFAR10.base_folder}" in error_message(root)
    shutil.rmtree(root / CIFAR10.base_folder)
    assert same(read(root, download=True)[2], TEST)


def test_a_partially_unpacked_archive_is_unpacked_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(pack_cifar10(root)))
    (root / CIFAR10.base_folder / "data_batch_5").unlink()
    truncate(root / CIFAR10.base_folder / "test_batch")
    assert same(read(root, download=True)[2], TEST)


def test_a_damaged_archive_is_named_if_it_cannot_be_downloaded_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = pack_cifar10(root)
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(archive))
    shutil.rmtree(root / CIFAR10.base_folder)
    truncate(archive)
    message = error_message(root, download=True)
    assert f"{archive} is damaged or incomplete" in message
    assert "no network" in message


@pytest.mark.parametrize("keep", [0, 10, 1000, -100])
def test_an_archive_that_fails_to_unpack_is_a_readable_error(
    root: Path, monkeypatch: pytest.MonkeyPatch, keep: int
) -> None:
    archive = pack_cifar10(root)
    archive.write_bytes(archive.read_bytes()[:keep])
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(archive))
    shutil.rmtree(root / CIFAR10.base_folder)
    assert "The download failed" in error_message(root, download=True)


def test_an_interrupted_download_names_the_archive(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Response(BytesIO):
        url, length = CIFAR10.url, 100

    shutil.rmtree(root)
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: Response(b"half of it"))
    message = error_message(root, download=True)
    assert f"{root / CIFAR10.filename} is damaged or incomplete" in message
    assert "delete it" in message


def test_jobs_that_start_together_download_once(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = pack_cifar10(root)
    content, requests = archive.read_bytes(), []
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(archive))
    shutil.rmtree(root)

    class Response(BytesIO):
        url, length = CIFAR10.url, len(content)

    def respond(request: urllib.request.Request) -> Response:
        requests.append(request.full_url)
        return Response(content)

    monkeypatch.setattr(urllib.request, "urlopen", respond)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: read(root, download=True), range(4)))
    assert all(same(test, TEST) for _, _, test in results)
    assert len(requests) == 2  # one finds the URL of the archive, one fetches it
