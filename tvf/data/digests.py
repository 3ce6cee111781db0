"""Digests of image files, which identify what jobs have read."""

import os
import time
from collections.abc import Sequence

import numpy as np

from tvf.data.bad_images import BadImageError
from tvf.data.encoded import AnyPath, EncodedImage, ImageFile, content_of
from tvf.data.pool import digest
from tvf.findings import recall, remember

KNOWN_FILES = 20_000  # whose digests a process remembers
SETTLED = 2.0  # seconds after which a file that changes gets another time from its file system


def digest_file(path: AnyPath) -> bytes:
    """A digest of a file's content, as `Pixels.digests` holds it. Raises OSError."""
    return digest(content_of(path))


def digest_files(files: Sequence[ImageFile]) -> np.ndarray:
    """A digest of each file's content, bytes [N]. Raises BadImageError.

    A file is read once for all jobs that a process trains, until its status changes.
    """
    digests = []
    for file in files:
        try:
            digests.append(_digest_of(file))
        except OSError as error:
            raise BadImageError(file, str(error.strerror), "cannot be read: ") from error
    return np.array(digests, "S32")


def _digest_of(file: ImageFile) -> bytes:
    if isinstance(file, EncodedImage):
        return digest(content_of(file))
    path = os.fspath(file)
    with open(file, "rb", buffering=0) as opened:  # a network's disk says then what it has now
        status = os.fstat(opened.fileno())
        state = (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)
        if (known := recall("digests", path)) and known[0] == state:
            return known[1]
        found = digest(opened.readall())
    changed = max(status.st_mtime, status.st_ctime)
    if time.time() - changed > SETTLED:
        remember("digests", path, (state, found), KNOWN_FILES)
    return found
