"""Tables of images, beside empty files, which are listed and never read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from helpers.folders import add
from tvf.data.sources.image_table import ImageTable

LABELS = ["cat", "cat", "dog", "dog", "cat", "dog"]


def write_table(folder: Path, text: str | bytes, name: str = "labels.csv", images: int = 6) -> Path:
    """A table of this content, beside the empty files 0.png, 1.png, ..."""
    add(folder, *(f"{number}.png" for number in range(images)))
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def lines(*columns: Sequence[str], header: str = "image,label") -> str:
    """A table of the images 0.png, 1.png, ... with these columns beside them."""
    rows = [
        f"{number}.png,{','.join(cells)}" for number, cells in enumerate(zip(*columns, strict=True))
    ]
    return "\n".join([header, *rows]) + "\n"


def open_table(path: Path, **options: Any) -> ImageTable:
    """The data source of a table."""
    return ImageTable(path=str(path), image_size=32, **options)


PLAIN = lines(LABELS)
