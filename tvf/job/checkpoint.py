"""Checkpoints: everything a job needs to resume after it was stopped at any moment.

Reading these files executes no code from them: they are loaded with `weights_only`.
"""

import hashlib
import io
import logging
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from tvf.errors import InputError, require_number
from tvf.files import LAST_CHECKPOINT, write_whole
from tvf.models import is_readable
from tvf.training import STATE_KEYS, holds_best

log = logging.getLogger(__name__)

MAGIC = b"tvf checkpoint 3\n"
# 1: before the modules moved into rooms; 2: before splits and views were drawn from the pool.
OLD_MAGIC = (b"tvf checkpoint 1\n", b"tvf checkpoint 2\n")
DIGEST = 16  # bytes


class Checkpoints:
    """The last two states of a job in `folder`; the older one is used if the newer one is damaged.

    Checkpoints of another `configuration`, a fingerprint, are ignored. During long epochs, a state
    is saved every `every_minutes`.
    """

    def __init__(self, folder: Path, configuration: str, every_minutes: float = 10.0) -> None:
        require_number("checkpoint.every_minutes", every_minutes, 0, above=True)
        self.last, self.previous = folder / Path(LAST_CHECKPOINT).name, folder / "previous.pt"
        self._configuration, self._seconds = configuration, 60 * every_minutes
        self._saved = time.monotonic()
        self._warned = False

    def due(self) -> bool:
        """Whether the last checkpoint is older than `every_minutes`."""
        return self.age >= self._seconds

    @property
    def age(self) -> float:
        """The seconds since the last checkpoint, or since the start."""
        return time.monotonic() - self._saved

    def save(self, state: dict[str, Any]) -> None:
        """Keep `state`: tensors, numbers, strings, and containers of them.

        Logs a warning if it cannot be written.
        """
        self._saved = time.monotonic()
        buffer = io.BytesIO()
        torch.save({"of": self._configuration, "state": state}, buffer)
        content, new = buffer.getbuffer(), self.last.with_suffix(".new")
        digest = hashlib.blake2b(content, digest_size=DIGEST).digest()
        try:
            self.last.parent.mkdir(parents=True, exist_ok=True)
            write_whole(new, MAGIC, digest, content)
            if self.last.exists():
                self.last.replace(self.previous)
            new.replace(self.last)
        except OSError as error:
            if not self._warned:
                self._warned = True
                log.warning(
                    "cannot write %s (%s): the job continues without checkpoints.",
                    self.last,
                    error.strerror,
                )

    def load(self, earlier: Collection[str] = ()) -> dict[str, Any] | None:
        """The last intact state of this configuration; None if there is none.

        `earlier` are the fingerprints that earlier versions gave this configuration. Raises
        InputError for a checkpoint of an older tvf, which cannot be resumed.
        """
        damaged = False
        for path in (self.last, self.previous):
            try:
                held = _read(path)
            except FileNotFoundError:
                continue
            except InputError:
                raise
            except (OSError, ValueError) as error:
                log.warning("%s is damaged (%s): trying the previous one.", path, error)
                damaged = True
                with suppress(OSError):
                    path.unlink()  # otherwise the next save would make it the previous one
                continue
            if held["of"] in earlier and held["of"] != self._configuration:
                self.save(held["state"])  # as this version will look for it
                return held["state"]
            if held["of"] == self._configuration:
                return held["state"]
            log.warning("%s is of another configuration: the job restarts from scratch.", path)
            return None
        if damaged:
            log.warning("no checkpoint is intact: the job restarts from scratch.")
        return None

    def load_usable(
        self, name: str, metric: str, best_weights: Path, earlier: Collection[str] = ()
    ) -> dict[str, Any] | None:
        """Like `load`, but with a warning and None for a state that the job cannot resume from."""
        state = self.load(earlier)
        if state is None:
            return None
        if not STATE_KEYS | {"spent"} <= state.keys():
            log.warning("%s is not a job's checkpoint: %s restarts from scratch.", self.last, name)
            return None
        if not holds_best(state, metric) and not is_readable(best_weights):
            log.warning("%s: its best weights cannot be read: it restarts from scratch.", name)
            return None
        return state

    def delete(self) -> None:
        """Delete all checkpoints, once the job is done."""
        for path in (self.last, self.previous):
            path.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    start = len(MAGIC) + DIGEST
    if content.startswith(OLD_MAGIC):
        raise InputError(
            f"{path} was written by an older version of tvf, whose checkpoints this version cannot "
            "resume: finish the job with that version, or delete its folder to train it again."
        )
    if not content.startswith(MAGIC):
        raise ValueError("not a tvf checkpoint")
    if hashlib.blake2b(content[start:], digest_size=DIGEST).digest() != content[len(MAGIC) : start]:
        raise ValueError("wrong checksum")
    try:
        held = torch.load(io.BytesIO(content[start:]), map_location="cpu", weights_only=True)
        return {"of": held["of"], "state": dict(held["state"])}
    except Exception as error:  # torch can raise anything for a file that only looks like ours
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(reason) from error
