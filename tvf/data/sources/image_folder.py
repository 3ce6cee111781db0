"""Images of your own: one folder a class, below `train/` and, where they exist, `val/` and `test/`."""

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
    """`root/train/<class>/<image>`; `val/` and `test/` likewise, or stratified shares of the training images.

    `test_fraction` of the training images become the test part if there is no `test/`; of what is left, `val_fraction`
    become the val part if there is no `val/`. Larger images than `max_megapixels` are refused.
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
                f"data.root={self.root} is not a folder: it must hold train/<class>/<image>."
            )
        if not (root / "train").is_dir():
            raise InputError(
                f"data.root={self.root} has no folder train/: it must hold train/<class>/<image>."
            )
        require_metric(self.metric, len(_classes(root)))

    def load(self, progress: bool = False, store: Store | None = None) -> DataSplits:
        """List, split and read; InputError names the folder or file at fault."""
        root = Path(self.root).expanduser()
        classes = _classes(root)
        samples = {
            part: _list(root / part, classes)
            for part in ("train", "val", "test")
            if (root / part).is_dir()
        }
        paths = [path for listed in samples.values() for path, _ in listed]
        labels = np.array([label for listed in samples.values() for _, label in listed])
        bounds = np.cumsum([0, *map(len, samples.values())])
        parts = {part: np.arange(bounds[i], bounds[i + 1]) for i, part in enumerate(samples)}
        for part, fraction in (("test", self.test_fraction), ("val", self.val_fraction)):
            if part not in parts:
                size = int(fraction * len(parts["train"]))
                parts["train"], parts[part] = split_off(
                    parts["train"], labels, size, self.split_seed
                )

        def read(part: np.ndarray) -> Split:
            return read_images(
                *([paths[i] for i in part], torch.from_numpy(labels[part]), self.image_size),
                max_megapixels=self.max_megapixels,
                progress=progress,
                store=store,
            )

        return self.read_parts(classes, [parts[part] for part in ("train", "val", "test")], read)


def _classes(root: Path) -> list[str]:
    classes = sorted(folder.name for folder in (root / "train").iterdir() if _is_class(folder))
    if len(classes) < 2:
        raise InputError(
            f"{root / 'train'} holds {len(classes)} class folders: at least 2 are needed."
        )
    return classes


def _is_class(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")  # .ipynb_checkpoints is nobody's class


def _list(folder: Path, classes: list[str]) -> list[tuple[Path, int]]:
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    numbers = {name: number for number, name in enumerate(classes)}
    if unknown := sorted(
        path.name for path in folder.iterdir() if _is_class(path) and path.name not in numbers
    ):
        raise InputError(
            f"{folder / unknown[0]} is a class that train/ does not have: {', '.join(classes)}."
        )
    try:
        listed = make_dataset(
            str(folder), numbers, extensions=IMG_EXTENSIONS, allow_empty=folder.name != "train"
        )
    except FileNotFoundError as error:
        raise InputError(f"{folder}: a class folder has no images. {error}") from error
    if not listed:
        raise InputError(
            f"{folder} holds no images: fill it, or remove it to have a part of train/ set apart."
        )
    return [(Path(path), label) for path, label in listed]
