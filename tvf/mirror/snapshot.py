"""The files of a job's folder as they are at one moment, to be uploaded.

A job writes its files whole and renames them, so an open file stays as it was. If no file has been
replaced while they were opened, they belong together: a checkpoint and the weights it relies on.
"""

import hashlib
import io
import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

LOG = "job.log"  # grows while a job runs
NOT_MIRRORED = ("wandb", "previous.pt")  # what W&B keeps for itself; what the last one replaces
Signature = dict[str, list[int]]  # size and time of each file, by name
RETRY = 0.02  # seconds


class Changing(Exception):
    """The files of the folder change too fast for a snapshot."""


@dataclass(frozen=True)
class Snapshot:
    """Open files by their names in the job's folder, and how they are told from later ones."""

    files: dict[str, BinaryIO]
    signature: Signature

    def digests(self) -> dict[str, str]:
        """A digest of each file's content."""
        return {name: digest_of(file) for name, file in self.files.items()}

    @property
    def done(self) -> bool:
        """Whether the job is done."""
        return "summary.json" in self.files and _state_of(self.files.get("status.json")) == "done"


def mirrored_files(folder: Path) -> list[str]:
    """The names of the files that a mirror keeps of a job."""
    found = []
    for path, folders, files in os.walk(folder):
        inside = Path(path).relative_to(folder)
        folders[:] = [
            name
            for name in folders
            if name not in NOT_MIRRORED and (not name.startswith(".") or name == ".hydra")
        ]
        found += [
            (inside / name).as_posix()
            for name in files
            if not name.startswith(".") and name not in NOT_MIRRORED and not name.endswith(".new")
        ]
    return sorted(found)


def signature_of(folder: Path) -> Signature:
    """Sizes and times of the files that a mirror keeps of a job, except for its log."""
    found: Signature = {}
    for name in mirrored_files(folder):
        try:
            found[name] = _sign((folder / name).stat())
        except FileNotFoundError:
            continue
    found.pop(LOG, None)
    return found


@contextmanager
def open_snapshot(folder: Path, attempts: int = 50) -> Iterator[Snapshot]:
    """Open the files of a job. Raises Changing, and OSError for a file that cannot be read."""
    for _ in range(attempts):
        with ExitStack() as opened:
            before, files = signature_of(folder), dict[str, BinaryIO]()
            try:
                for name in mirrored_files(folder):
                    files[name] = opened.enter_context(open(folder / name, "rb"))
            except FileNotFoundError:
                time.sleep(RETRY)
                continue
            held = {name: _sign(os.fstat(file.fileno())) for name, file in files.items()}
            held.pop(LOG, None)
            if held == before == signature_of(folder):
                if LOG in files:
                    files[LOG] = io.BytesIO(files[LOG].read())
                yield Snapshot(files, held)
                return
        time.sleep(RETRY)
    raise Changing(f"the files in {folder} change too fast")


def is_done(folder: Path) -> bool:
    """Whether a job is done by its own record."""
    try:
        with open(folder / "status.json", "rb") as status:
            return (folder / "summary.json").exists() and _state_of(status) == "done"
    except FileNotFoundError:
        return False


def digest_of(file: BinaryIO) -> str:
    """A digest of a file's whole content."""
    file.seek(0)
    digest = hashlib.blake2b(digest_size=16)
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _state_of(status: BinaryIO | None) -> Any:
    if status is None:
        return None
    status.seek(0)
    try:
        content = json.loads(status.read())
    except ValueError:
        return None
    return content.get("state") if isinstance(content, dict) else None


def _sign(stat: os.stat_result) -> list[int]:
    return [stat.st_size, stat.st_mtime_ns]
