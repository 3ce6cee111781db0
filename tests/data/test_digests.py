"""Digests of image files, of which a process reads each once."""

import os
import time
from pathlib import Path

import pytest

from tvf import findings
from tvf.data import digests
from tvf.data.digests import digest_files
from tvf.data.encoded import EncodedImage


def test_a_file_is_read_again_only_after_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, read, digest = tmp_path / "image.png", list[bytes](), digests.digest
    path.write_bytes(b"one")
    monkeypatch.setattr(digests, "digest", lambda content: read.append(content) or digest(content))
    monkeypatch.setattr(findings, "_findings", {})
    first = digest_files([path])
    assert (digest_files([path]) == first).all() and len(read) == 2, "it has just changed"
    monkeypatch.setattr(digests, "SETTLED", -60)
    assert (digest_files([path, path]) == first).all() and len(read) == 3
    before = os.stat(path)
    time.sleep(0.02)  # file systems have ticks
    path.write_bytes(b"two")  # of the same length
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (digest_files([path]) != first).all() and len(read) == 4


def test_images_within_other_files_are_read_each_time() -> None:
    read = list[int]()
    image = EncodedImage("row 1", lambda: read.append(1) or b"one", changed=0)
    assert (digest_files([image]) == digest_files([image])).all() and len(read) == 2
