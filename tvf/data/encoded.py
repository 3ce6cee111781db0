"""Images where a data set keeps them: in files of their own, or encoded in one file with others."""

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

AnyPath = str | os.PathLike[str]


@dataclass(frozen=True)
class EncodedImage:
    """The content of an image file that is kept inside another file, `changed` at this time.

    `name` tells people which image it is. `load` returns its bytes; it raises OSError.
    """

    name: str
    load: Callable[[], bytes]
    changed: float


ImageFile = AnyPath | EncodedImage


def content_of(file: ImageFile, size: int | None = None) -> bytes:
    """The encoded bytes of an image, or at most the first `size`. Raises OSError."""
    if isinstance(file, EncodedImage):
        return file.load()[:size]
    with open(file, "rb", buffering=0) as opened:
        return opened.readall() if size is None else opened.read(size)


def openable(file: ImageFile) -> AnyPath | BinaryIO:
    """What Pillow opens. Raises OSError."""
    return io.BytesIO(file.load()) if isinstance(file, EncodedImage) else file


def name_of(file: ImageFile) -> str:
    """What messages call an image: its path, or its name in the data set."""
    return file.name if isinstance(file, EncodedImage) else os.fspath(file)


def is_younger(file: ImageFile, since: float) -> bool:
    """Whether an image's file was written, copied or moved after this time."""
    if isinstance(file, EncodedImage):
        return file.changed >= since
    try:
        status = os.stat(file)
    except OSError:
        return True
    return max(status.st_mtime, status.st_ctime) >= since
