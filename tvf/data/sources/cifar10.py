"""CIFAR-10 (Krizhevsky 2009), downloaded and read by torchvision; errors name the broken file."""

import tarfile
import zlib
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tvf.data.images import check_memory
from tvf.data.pool import Catalog, Pixels, digest_pixels
from tvf.data.sources.base import DataSource
from tvf.errors import InputError, require_bool, require_choice, require_path
from tvf.lease import Lease
from tvf.metrics import require_metric
from tvf.store import Store

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10


# What torchvision raises when it cannot download, unpack or accept a file.
TORCHVISION_ERRORS = (OSError, RuntimeError, EOFError, HTTPException, tarfile.TarError, zlib.error)


@dataclass(frozen=True, kw_only=True)
class Cifar10(DataSource):
    """50,000 images of 32x32 pixels to train and validate on, 10,000 to test on, in ten classes.

    `validate_on` "split" validates on `val_fraction` of the 50,000. "test" trains on all of them
    and validates on the test images, as many tutorials do: the images that choose the epoch then
    also judge it.
    """

    root: str
    download: bool = True
    validate_on: str = "split"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_path("data.root", self.root)
        require_bool("data.download", self.download)
        require_choice("data.validate_on", self.validate_on, ("split", "test"))
        require_metric(self.metric, 10)

    def catalog(self) -> Catalog:
        """Open CIFAR-10 below `root`; with `download`, download it if needed.

        An archive that is already in `root` is unpacked without a network. Raises InputError that
        names a missing or damaged file.
        """
        training, testing = self._open(Path(self.root).expanduser())
        pixels = np.concatenate([training.data, testing.data])
        labels = np.array(training.targets + testing.targets)
        given = np.where(np.arange(len(labels)) < len(training.data), "train", "test")

        def read(places: np.ndarray, progress: bool, store: Store | None) -> Pixels:
            images = torch.from_numpy(pixels[places]).permute(0, 3, 1, 2).contiguous()
            digests = digest_pixels(images)
            images = _resize(images, self.image_size)
            return Pixels(images, digests, digests)

        names = [str(place) for place in range(len(labels))]
        return Catalog(
            tuple(training.classes),
            labels,
            names,
            read,
            parts=given,
            val_is_test=self.validate_on == "test",
        )

    def _open(self, root: Path) -> "tuple[CIFAR10, CIFAR10]":
        from torchvision.datasets import CIFAR10

        try:
            if self.download and _find_faults(root):
                root.mkdir(parents=True, exist_ok=True)
                # The jobs of a sweep start together: one downloads, the others wait for it.
                with Lease(root / ".cifar10.lease"):
                    CIFAR10(root, download=True)
            return CIFAR10(root, train=True), CIFAR10(root, train=False)
        except TORCHVISION_ERRORS as error:
            raise InputError(self._explain(root, error)) from error

    def _explain(self, root: Path, error: Exception) -> str:
        """Return a message that names the files at fault and the remedy."""
        from torchvision.datasets import CIFAR10

        folder, archive = root / CIFAR10.base_folder, root / CIFAR10.filename
        faults = _find_faults(root)
        if not faults:
            return f"CIFAR-10 in {folder} could not be read ({type(error).__name__}: {error})."
        again = "connect to the internet" if self.download else "set data.download=true"
        offline = f"with data.download=true, {archive.name} in {root} is unpacked without a network"
        if folder.exists():
            what = "; ".join(f"{folder / name} {fault}" for name, fault in faults.items())
            # The whole folder, because torchvision does not download again for batches.meta alone.
            remedy = f"Replace the file, or delete {folder} and {again}; {offline}."
        else:
            what = f"CIFAR-10 is not in {root}: its files are expected in {folder}"
            remedy = f"Put the files there, or {again}; {offline}; data=elpv needs no download."
        # torchvision does not download if only batches.meta is wrong.
        if self.download and set(faults) - {CIFAR10.meta["filename"]}:
            what += f". The download failed ({type(error).__name__}: {error})"
            if fault := _find_fault(archive, CIFAR10.tgz_md5) if archive.exists() else None:
                what += f" and {archive} {fault}: delete it"
        return f"{what}. {remedy}"


def _find_faults(root: Path) -> dict[str, str]:
    """Return what is wrong with each faulty CIFAR-10 file below `root`, in reading order."""
    from torchvision.datasets import CIFAR10

    files = [
        *CIFAR10.train_list,
        *CIFAR10.test_list,
        [CIFAR10.meta["filename"], CIFAR10.meta["md5"]],
    ]
    found = {name: _find_fault(root / CIFAR10.base_folder / name, md5) for name, md5 in files}
    return {name: fault for name, fault in found.items() if fault is not None}


def _find_fault(path: Path, md5: str) -> str | None:
    from torchvision.datasets.utils import check_integrity

    try:
        if check_integrity(path, md5):
            return None
        if not path.exists():
            return "is missing"
        return "is damaged or incomplete (its MD5 sum is not CIFAR-10's)"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _resize(images: Tensor, size: int) -> Tensor:
    from torchvision.transforms.v2.functional import resize

    if images.shape[-1] == size:
        return images
    check_memory(len(images), size)
    return torch.cat([resize(chunk, [size, size], antialias=True) for chunk in images.split(512)])
