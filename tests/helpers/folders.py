"""Folders of images, and of empty files, which are listed and never read."""

from pathlib import Path

import numpy as np
from PIL import Image

from tvf.data.find_images import FoundImages


def write_images(root: Path, each: int = 24) -> Path:
    """Two classes of images that differ in colour, of unequal shapes, below `root`/train."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(("cats", "dogs")):
        folder = root / "train" / name
        folder.mkdir(parents=True)
        for i in range(each):
            pixels = rng.integers(0, 128, (40 + i, 48, 3), dtype=np.uint8)
            pixels[..., number] += 100
            Image.fromarray(pixels).save(folder / f"{i}.png", compress_level=1)
    return root


def fill(root: Path, **parts: int) -> Path:
    """So many empty files `root/<part>/cat/0.png`, ..., and as many dogs."""
    for part, count in parts.items():
        for name in ("cat", "dog"):
            add(root / part / name, *(f"{number}.png" for number in range(count)))
    return root


def add(folder: Path, *names: str) -> None:
    """Empty files of these names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def left_out(found: FoundImages) -> dict[tuple[str, str], tuple[int, str]]:
    """Count and example of what was left out, by reason and kind."""
    return {(each.reason, each.kind): (each.count, each.example) for each in found.left_out}
