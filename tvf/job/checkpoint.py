"""What a job keeps of itself: its weights, and all that it needs to go on after it was stopped at any moment.

Nothing in these files is executed by reading them: weights are safetensors, checkpoints are loaded `weights_only`.
"""

import hashlib
import io
import logging
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from tvf.errors import require_number
from tvf.files import LAST_CHECKPOINT, write_whole

log = logging.getLogger(__name__)

MAGIC = b"tvf checkpoint 1\n"
DIGEST = 16  # bytes


class Checkpoints:
    """The last two states of a job in `folder`; the older one is for when the newer one is damaged.

    `of` names the configuration: states of another one are as good as none. `every_minutes`: how long an epoch may
    train until its middle is saved too.
    """

    def __init__(self, folder: Path, of: str, every_minutes: float = 10.0) -> None:
        require_number("checkpoint.every_minutes", every_minutes, 0, above=True)
        self.last, self.previous = folder / Path(LAST_CHECKPOINT).name, folder / "previous.pt"
        self._of, self._seconds, self._saved = of, 60 * every_minutes, time.monotonic()
        self._warned = False

    def due(self) -> bool:
        """Whether the last save is longer ago than it should be."""
        return time.monotonic() - self._saved >= self._seconds

    def save(self, state: dict[str, Any]) -> None:
        """Keep `state`: tensors, numbers, strings, and lists, tuples and dicts of them. Where it cannot: a warning."""
        self._saved = time.monotonic()
        buffer = io.BytesIO()
        torch.save({"of": self._of, "state": state}, buffer)
        content, new = buffer.getbuffer(), self.last.with_suffix(".new")
        try:
            self.last.parent.mkdir(parents=True, exist_ok=True)
            write_whole(new, MAGIC, hashlib.blake2b(content, digest_size=DIGEST).digest(), content)
            if self.last.exists():
                self.last.replace(self.previous)
            new.replace(self.last)
        except OSError as error:
            if not self._warned:
                self._warned = True
                log.warning(
                    "%s cannot be written (%s): the job goes on without it.",
                    self.last,
                    error.strerror,
                )

    def load(self) -> dict[str, Any] | None:
        """The last state that is whole and of this configuration; None if there is none."""
        damaged = False
        for path in (self.last, self.previous):
            try:
                held = _read(path)
            except FileNotFoundError:
                continue
            except (OSError, ValueError) as error:
                log.warning(
                    "%s is damaged (%s): going on from the one before it, if there is one.",
                    path,
                    error,
                )
                damaged = True
                with suppress(OSError):
                    path.unlink()  # else it would be the one before the next
                continue
            return held["state"] if held["of"] == self._of else None
        if damaged:
            log.warning("No checkpoint is whole: the job starts anew.")
        return None

    def finish(self) -> None:
        """The job is done: nothing has to go on from here."""
        for path in (self.last, self.previous):
            path.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    start = len(MAGIC) + DIGEST
    if not content.startswith(MAGIC):
        raise ValueError("it is not a checkpoint of tvf")
    if hashlib.blake2b(content[start:], digest_size=DIGEST).digest() != content[len(MAGIC) : start]:
        raise ValueError("its checksum is wrong")
    try:
        held = torch.load(io.BytesIO(content[start:]), map_location="cpu", weights_only=True)
        return {"of": held["of"], "state": dict(held["state"])}
    except Exception as error:  # what torch makes of a file that was made to look like one of ours
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(reason) from error
