"""Small data sets in CIFAR-10's file format, which torchvision's reader accepts as the real one."""

import hashlib
import pickle
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import CIFAR10

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
TRAIN_FILES = [f"data_batch_{number}" for number in range(1, 6)]


@dataclass(frozen=True)
class Images:
    """Images, uint8 [N, 3, 32, 32], and their classes, int64 [N]."""

    pixels: np.ndarray
    labels: np.ndarray


def draw_images(count: int, seed: int) -> Images:
    """Return noise whose mean colour depends on the class: learnable, but not in one epoch."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % 10)
    colours = np.random.default_rng(0).uniform(-90, 90, (10, 3))[labels]
    noise = rng.normal(0, 40, (count, 3, 32, 32)) + rng.normal(0, 10, (count, 3, 1, 1))
    return Images(np.clip(128 + colours[:, :, None, None] + noise, 0, 255).astype(np.uint8), labels)


def write_cifar10(root: Path, train: Images, test: Images) -> dict[str, str]:
    """Write training batches, test batch and class names below `root`.

    Returns the files' MD5 sums by name.
    """
    folder = root / CIFAR10.base_folder
    folder.mkdir(parents=True)
    contents: dict[str, dict[str, object]] = {
        "batches.meta": {"label_names": CLASSES, "num_vis": 3072}
    }
    batches = [
        *zip(np.array_split(train.pixels, 5), np.array_split(train.labels, 5), strict=True),
        (test.pixels, test.labels),
    ]
    for name, (pixels, labels) in zip((*TRAIN_FILES, "test_batch"), batches, strict=True):
        contents[name] = {"data": pixels.reshape(len(pixels), 3072), "labels": labels.tolist()}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return {name: md5(folder / name) for name in contents}


def pack_cifar10(root: Path) -> Path:
    """Pack the folder in `root` as cifar-10-python.tar.gz beside it; return its path."""
    archive = root / CIFAR10.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(root / CIFAR10.base_folder, CIFAR10.base_folder)
    return archive


def expect_files(monkeypatch: pytest.MonkeyPatch, sums: dict[str, str], archive: str = "") -> None:
    """Make torchvision accept exactly the files with these MD5 sums as CIFAR-10."""
    monkeypatch.setattr(CIFAR10, "train_list", [[name, sums[name]] for name in TRAIN_FILES])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums["batches.meta"]})
    monkeypatch.setattr(CIFAR10, "tgz_md5", archive)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
