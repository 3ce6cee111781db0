"""CIFAR-10 (Krizhevsky 2009), read and downloaded by torchvision."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tvf.data import DataOptions, Dataset, Labelled
from tvf.data.images import check_memory
from tvf.data.splits import split_off
from tvf.errors import InputError, require_choice


@dataclass(frozen=True, kw_only=True)
class Cifar10(DataOptions):
    """50,000 images of 32 pixels a side to train and validate on, 10,000 to test on, in ten classes.

    `validate_on` "split" sets a share of the 50,000 apart; "test" trains on all of them and validates on the test
    images, as many tutorials do: the epoch is then chosen by the very images that judge it.
    """

    root: str
    download: bool = True
    validate_on: str = "split"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("data.validate_on", self.validate_on, ("split", "test"))

    def load(self, progress: bool = False) -> Dataset:
        """Read CIFAR-10 below `root`, downloading it if allowed; InputError where it cannot be had."""
        from torchvision.datasets import CIFAR10

        root = Path(self.root).expanduser()
        try:
            training = CIFAR10(root, train=True, download=self.download)
            testing = CIFAR10(root, train=False)
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"CIFAR-10 could not be had ({error}). Its files are expected in {root / CIFAR10.base_folder}: put "
                "them there, or connect and set data.download=true; data=elpv needs no download."
            ) from error
        pixels, labels = np.concatenate([training.data, testing.data]), np.array(training.targets + testing.targets)
        train, test = np.arange(len(training.data)), np.arange(len(training.data), len(labels))
        val = test
        if self.validate_on == "split":
            train, val = split_off(train, labels, int(self.val_fraction * len(train)), self.split_seed)

        def read(part: np.ndarray) -> Labelled:
            images = torch.from_numpy(pixels[part]).permute(0, 3, 1, 2).contiguous()
            return Labelled(_resized(images, self.image_size), torch.from_numpy(labels[part]))

        return self.read_parts(training.classes, (train, val, test), read)


def _resized(images: Tensor, size: int) -> Tensor:
    from torchvision.transforms.v2.functional import resize

    if images.shape[-1] == size:
        return images
    check_memory(len(images), size)
    return torch.cat([resize(part, [size, size], antialias=True) for part in images.split(512)])
