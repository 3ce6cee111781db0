"""CIFAR-10 (Krizhevsky 2009), read and downloaded by torchvision; what is wrong with its files is said by name."""

import tarfile
import zlib
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from tvf.data.images import check_memory
from tvf.data.sources.base import DataSource
from tvf.data.splits import DataSplits, Split, split_off
from tvf.errors import InputError, require_bool, require_choice
from tvf.metrics import require_metric
from tvf.store import Store

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10


# What torchvision raises where it cannot download, unpack or accept a file.
FAILURES = (OSError, RuntimeError, EOFError, HTTPException, tarfile.TarError, zlib.error)


@dataclass(frozen=True, kw_only=True)
class Cifar10(DataSource):
    """50,000 images of 32 pixels a side to train and validate on, 10,000 to test on, in ten classes.

    `validate_on` "split" sets a share of the 50,000 apart; "test" trains on all of them and validates on the test
    images, as many tutorials do: the epoch is then chosen by the very images that judge it.
    """

    root: str
    download: bool = True
    validate_on: str = "split"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_bool("data.download", self.download)
        require_choice("data.validate_on", self.validate_on, ("split", "test"))
        require_metric(self.metric, 10)

    def load(self, progress: bool = False, store: Store | None = None) -> DataSplits:
        """Read CIFAR-10 below `root`, downloading it if allowed; InputError names the file that is not as it should be.

        With `download` an archive that lies in `root` is unpacked instead, which needs no network.
        """
        training, testing = self._open(Path(self.root).expanduser())
        pixels, labels = (
            np.concatenate([training.data, testing.data]),
            np.array(training.targets + testing.targets),
        )
        train, test = np.arange(len(training.data)), np.arange(len(training.data), len(labels))
        val = test
        if self.validate_on == "split":
            train, val = split_off(
                train, labels, int(self.val_fraction * len(train)), self.split_seed
            )

        def read(part: np.ndarray) -> Split:
            images = torch.from_numpy(pixels[part]).permute(0, 3, 1, 2).contiguous()
            return Split(_resized(images, self.image_size), torch.from_numpy(labels[part]))

        return self.read_parts(training.classes, (train, val, test), read)

    def _open(self, root: Path) -> "tuple[CIFAR10, CIFAR10]":
        from torchvision.datasets import CIFAR10

        try:
            if self.download and _faults(root):
                root.mkdir(parents=True, exist_ok=True)
                # The jobs of a sweep start together: one of them downloads, the others wait for it.
                with FileLock(root / ".cifar10.lock"):
                    CIFAR10(root, download=True)
            return CIFAR10(root, train=True), CIFAR10(root, train=False)
        except FAILURES as error:
            raise InputError(self._explain(root, error)) from error

    def _explain(self, root: Path, error: Exception) -> str:
        from torchvision.datasets import CIFAR10

        folder, archive = root / CIFAR10.base_folder, root / CIFAR10.filename
        faults = _faults(root)
        if not faults:
            return f"CIFAR-10 in {folder} could not be read ({type(error).__name__}: {error})."
        again = "connect" if self.download else "set data.download=true"
        offline = f"{archive.name} in {root} is unpacked without a network if data.download=true"
        if folder.exists():
            what = "; ".join(f"{folder / name} {fault}" for name, fault in faults.items())
            # The whole folder, because torchvision does not download again for the sake of batches.meta alone.
            remedy = f"Put the right file there, or delete {folder} and {again}; {offline}."
        else:
            what = f"CIFAR-10 is not in {root}: its files are expected in {folder}"
            remedy = f"Put the files there, or {again}; {offline}; data=elpv needs no download."
        # torchvision tries only if one of the batches is not as it should be.
        if self.download and set(faults) - {CIFAR10.meta["filename"]}:
            what += f". The download failed ({type(error).__name__}: {error})"
            if fault := _fault(archive, CIFAR10.tgz_md5) if archive.exists() else None:
                what += f" and {archive} {fault}: delete it"
        return f"{what}. {remedy}"


def _faults(root: Path) -> dict[str, str]:
    """What is wrong with which of CIFAR-10's files below `root`, in the order in which they are read."""
    from torchvision.datasets import CIFAR10

    files = [
        *CIFAR10.train_list,
        *CIFAR10.test_list,
        [CIFAR10.meta["filename"], CIFAR10.meta["md5"]],
    ]
    found = {name: _fault(root / CIFAR10.base_folder / name, md5) for name, md5 in files}
    return {name: fault for name, fault in found.items() if fault is not None}


def _fault(path: Path, md5: str) -> str | None:
    from torchvision.datasets.utils import check_integrity

    try:
        if check_integrity(path, md5):
            return None
        return (
            "is damaged or only a part (its MD5 sum is not CIFAR-10's)"
            if path.exists()
            else "is missing"
        )
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _resized(images: Tensor, size: int) -> Tensor:
    from torchvision.transforms.v2.functional import resize

    if images.shape[-1] == size:
        return images
    check_memory(len(images), size)
    return torch.cat([resize(part, [size, size], antialias=True) for part in images.split(512)])
