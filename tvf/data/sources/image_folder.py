"""Your own images: one folder per class, below `train/` and, if they exist, `val/` and `test/`."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tvf.data.images import read_images
from tvf.data.sources.base import DataSource
from tvf.data.splits import DataSplits, Split, split_off
from tvf.errors import InputError, require_number
from tvf.metrics import require_metric
from tvf.store import Store


@dataclass(frozen=True, kw_only=True)
class ImageFolder(DataSource):
    """Images in `root/train/<class>/`; `val/` and `test/` likewise, or split off from `train/`.

    Without a `test/` folder, `test_fraction` of the training images become the test split; without
    `val/`, `val_fraction` of the rest become the val split; both are stratified by class. Images
    larger than `max_megapixels` are an error.
    """

    root: str
    test_fraction: float = 0.25
    max_megapixels: float = 100.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("data.test_fraction", self.test_fraction, 0, 0.9, above=True)
        require_number("data.max_megapixels", self.max_megapixels, 0, above=True)
        root = Path(self.root).expanduser()
        if not root.is_dir():
            raise InputError(
                f"data.root={self.root} must be a folder with images in train/<class>/."
            )
        if not (root / "train").is_dir():
            raise InputError(
                f"data.root={self.root} has no train/ folder: put the images in train/<class>/."
            )
        require_metric(self.metric, len(_classes(root)))

    def load(self, progress: bool = False, store: Store | None = None) -> DataSplits:
        """List, split and read the images; InputError names the folder or file at fault."""
        root = Path(self.root).expanduser()
        classes = _classes(root)
        paths: list[Path] = []
        labels: list[int] = []
        splits: dict[str, np.ndarray] = {}
        for name in ("train", "val", "test"):
            if (root / name).is_dir():
                images = _list_images(root / name, classes)
                splits[name] = np.arange(len(paths), len(paths) + len(images))
                paths += [path for path, _ in images]
                labels += [label for _, label in images]
        targets = np.array(labels)
        for name, fraction in (("test", self.test_fraction), ("val", self.val_fraction)):
            if name not in splits:
                size = int(fraction * len(splits["train"]))
                splits["train"], splits[name] = split_off(
                    splits["train"], targets, size, self.split_seed
                )

        def read(samples: np.ndarray) -> Split:
            return read_images(
                [paths[sample] for sample in samples],
                torch.from_numpy(targets[samples]),
                self.image_size,
                max_megapixels=self.max_megapixels,
                progress=progress,
                store=store,
            )

        return self.read_splits(classes, [splits[n] for n in ("train", "val", "test")], read)


def _classes(root: Path) -> list[str]:
    """Return the names of the class folders in train/, ascending."""
    classes = sorted(folder.name for folder in (root / "train").iterdir() if _is_class(folder))
    if len(classes) < 2:
        raise InputError(
            f"{root / 'train'} has {len(classes)} class folders, but must have at least 2: put the "
            "images in train/<class>/."
        )
    return classes


def _is_class(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")  # .ipynb_checkpoints is not a class


def _list_images(folder: Path, classes: list[str]) -> list[tuple[Path, int]]:
    """Return path and label of each image in the folder of a split."""
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    found = sorted(path.name for path in folder.iterdir() if _is_class(path))
    if unknown := [name for name in found if name not in classes]:
        raise InputError(
            f"{folder / unknown[0]} is a class that train/ does not have: it must be one of "
            f"{', '.join(classes)}."
        )
    try:
        images = make_dataset(
            str(folder),
            {name: label for label, name in enumerate(classes)},
            extensions=IMG_EXTENSIONS,
            allow_empty=folder.name != "train",
        )
    except FileNotFoundError as error:
        raise InputError(
            f"{folder} has a class folder without images. Add images or remove it. ({error})"
        ) from error
    if not images:
        raise InputError(
            f"{folder} has no images: add some, or remove it to split off a part of train/ instead."
        )
    return [(Path(path), label) for path, label in images]
