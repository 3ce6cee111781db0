"""A job in a mirror: numbered claims, each of which names its holder and the job's files.

A claim is an object that is created only where there is none; taking over is creating the next
number. Its holder writes it anew every HEARTBEAT seconds, and with each upload, so that a claim
always names a whole set of files: their contents are objects of their own, uploaded before, and
named by digest. Who holds a job, and when its claim has expired, follows the rules of `tvf.lease`,
by the store's clock.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any
from uuid import uuid4

from tvf.files import read_json, write_json
from tvf.mirror import timing
from tvf.mirror.snapshot import LOG, Snapshot, digest_of, is_done, open_snapshot, signature_of
from tvf.mirror.stores import Store, Unreachable
from tvf.owners import Owner, temporary_beside, this_process

MARKER = ".mirror.json"  # in a job's folder: the claim whose files it last agreed with
UPLOADS = 4  # files of a job at once


class Busy(Exception):
    """Another process trains the job."""

    def __init__(self, claim: "Claim") -> None:
        super().__init__(f"claimed by {claim.owner}")
        self.claim = claim


class Taken(Exception):
    """Another process has taken over the claim."""

    def __init__(self, claim: "Claim") -> None:
        super().__init__(f"taken over by {claim.owner}")
        self.claim = claim


@dataclass(frozen=True)
class Claim:
    """What the object of a claim says. `files` has the digest of each file of the job.

    `done` says that these are the files of a job that is done, `touched` when the object was
    written, by the store's clock.
    """

    number: int
    owner: Owner
    token: str
    files: Mapping[str, str]
    done: bool = False
    released: bool = False
    touched: float = 0.0

    def encoded(self) -> bytes:
        """The object's content."""
        record = asdict(self)
        del record["number"], record["touched"]
        return json.dumps(record, indent=1, sort_keys=True).encode()


class Clock:
    """The clock by which a store says when objects were written."""

    def __init__(self, store: Store) -> None:
        """Create an object to read it.

        Raises Unreachable, also where that is not allowed or does not keep others from doing it.
        """
        name = f"clock/{uuid4().hex}"
        store.create(name, b"")
        try:
            if store.create(name, b""):
                raise Unreachable("two machines could create the same claim: no conditional writes")
            written = store.listing("clock")[name]
        except KeyError:
            raise Unreachable("an object that was written is not listed") from None
        finally:
            store.delete(name)
        self._ahead = written - time.monotonic()

    def now(self) -> float:
        """The time, in seconds."""
        return time.monotonic() + self._ahead


class MirroredJob:
    """The job of this `name` in the mirror, and in `folder` on this machine."""

    def __init__(self, store: Store, clock: Clock, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self._store, self._clock = store, clock
        self._claim: Claim | None = None
        self._lock = Lock()  # of the claim, which heartbeats and uploads write
        self._written = 0.0

    @property
    def held(self) -> bool:
        """Whether this process holds the job."""
        return self._claim is not None

    def latest(self) -> Claim | None:
        """The newest claim; None if there is none. Raises Unreachable."""
        while numbers := self._numbers():
            number = max(numbers)
            with suppress(FileNotFoundError):
                return self._decode(self._store.read(self._object(number)), number, numbers[number])
        return None

    def is_held(self, claim: Claim | None) -> bool:
        """Whether another process holds the job by this claim, and may still live."""
        if claim is None or claim.released or claim.owner == this_process():
            return False
        lives = claim.owner.lives()
        return lives or (lives is None and self._age(claim) < timing.EXPIRY)

    def acquire(self, *, certain: bool = False) -> Claim | None:
        """Claim the job, and return the claim before. Raises Busy and Unreachable.

        If `certain`, first waits until the holder shows that it lives, or until its claim expires.
        """
        seen: Claim | None = None
        while True:
            latest = self.latest()
            if self.is_held(latest):
                assert latest is not None
                beats = seen is not None and latest != seen
                if not certain or beats or latest.owner.lives():
                    raise Busy(latest)
                seen = seen or latest
                time.sleep(timing.POLL)
                continue
            number, files, done = 1, dict[str, str](), False
            if latest is not None:
                number, files, done = latest.number + 1, dict(latest.files), latest.done
            claim = Claim(number, this_process(), uuid4().hex, files, done)
            if self._store.create(self._object(number), claim.encoded()):
                self._claim, self._written = claim, time.monotonic()
                return latest

    def release(self) -> None:
        """End the claim. Raises Unreachable."""
        with suppress(Taken):
            self._write(released=True)
        self._claim = None

    def abandon(self) -> None:
        """Hold the job no longer, without a word: the claim expires."""
        self._claim = None

    def beat(self) -> None:
        """Show that the holder lives, if it has not lately. Raises Taken and Unreachable."""
        if self._claim is not None and time.monotonic() - self._written >= timing.HEARTBEAT / 2:
            self._write()

    def settle(self, before: Claim | None) -> None:
        """Let mirror and folder agree, after `acquire` returned `before`: the newer ones win.

        Those in the folder are newer if they agreed when this machine had the job last, or if it is
        done only there. Raises Taken and Unreachable.
        """
        if before is not None and self.is_newer(before):
            self.pull(before)
        self._mark({})
        self.push()

    def is_newer(self, claim: Claim) -> bool:
        """Whether the files of a claim are to replace those in the folder."""
        if not claim.files or self._marked() == claim.token:
            return False
        return claim.done or not is_done(self.folder)

    def agrees(self, claim: Claim | None) -> bool:
        """Whether the folder has not changed since it agreed with a claim; False if in doubt."""
        marker = read_json(self.folder / MARKER)
        same_claim = claim is not None and marker.get("token") == claim.token
        return same_claim and marker.get("files") == signature_of(self.folder)

    def pull(self, claim: Claim) -> None:
        """Fetch the files of a claim, those last that say what the others are.

        The log stays if there is one. Raises Unreachable, also if a file is not what it should be.
        """
        for name in sorted(claim.files, key=_when_to_pull):
            path = self.folder / _checked(name)
            if not (path.exists() and (_is_local(name) or _has(path, claim.files[name]))):
                self._fetch(path, claim.files[name])
        for name in signature_of(self.folder):
            if name not in claim.files and not _is_local(name):
                (self.folder / name).unlink(missing_ok=True)
        if claim.released:  # no one changes it any more
            self._mark(signature_of(self.folder), claim)

    def push(self) -> bool:
        """Upload what has changed; return whether anything had. Raises Taken and Unreachable."""
        claim = self._claim
        assert claim is not None, "the job is claimed"
        if self.agrees(claim):
            return False
        with open_snapshot(self.folder) as snapshot:
            digests = snapshot.digests()
            self._upload(snapshot, digests, {*claim.files.values()})
            self._write(files=digests, done=snapshot.done)
            self._mark(snapshot.signature)
        for digest in {*claim.files.values()} - {*digests.values()}:
            self._check()
            self._store.delete(self._content(digest))
        return True

    def _upload(self, snapshot: Snapshot, digests: dict[str, str], there: set[str]) -> None:
        files = {digests[name]: file for name, file in snapshot.files.items()}
        with ThreadPoolExecutor(UPLOADS) as pool:
            uploads = [
                pool.submit(self._upload_one, digest, file)
                for digest, file in files.items()
                if digest not in there
            ]
        for upload in uploads:
            upload.result()

    def _upload_one(self, digest: str, file: Any) -> None:
        try:
            self._store.upload(self._content(digest), file)
        except OSError as error:
            raise Unreachable(str(error)) from error

    def _fetch(self, path: Path, digest: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _aside(path) as aside:
            try:
                self._store.download(self._content(digest), aside)
            except FileNotFoundError:
                raise Unreachable(f"{self._content(digest)} is missing") from None
            if not _has(aside, digest):
                raise Unreachable(f"{self._content(digest)} is damaged")
            with open(aside, "rb") as file:
                os.fsync(file.fileno())
            aside.replace(path)

    def _write(self, **changes: Any) -> None:
        """Write this process's claim anew."""
        with self._lock:
            if self._claim is None:
                return
            self._check()
            self._claim = replace(self._claim, **changes)
            self._store.write(self._object(self._claim.number), self._claim.encoded())
            self._written = time.monotonic()

    def _check(self) -> None:
        """Raise Taken if there is a newer claim."""
        if self._claim is not None and max(self._numbers(), default=0) > self._claim.number:
            latest = self.latest()
            assert latest is not None
            raise Taken(latest)

    def _mark(self, files: dict[str, list[int]], claim: Claim | None = None) -> None:
        claim = claim or self._claim
        if claim is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / MARKER, {"token": claim.token, "files": files})

    def _marked(self) -> Any:
        return read_json(self.folder / MARKER).get("token")

    def _age(self, claim: Claim) -> float:
        return self._clock.now() - claim.touched

    def _numbers(self) -> dict[int, float]:
        """When the objects of the claims were written, by number."""
        found = {
            PurePosixPath(name).stem: at
            for name, at in self._store.listing(f"{self.name}/claims").items()
        }
        return {int(stem): at for stem, at in found.items() if stem.isdecimal()}

    def _decode(self, content: bytes, number: int, touched: float) -> Claim:
        try:
            record = json.loads(content)
            owner = Owner(**record.pop("owner"))
            return Claim(number, owner, touched=touched, **record)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise Unreachable(f"{self._object(number)} is not a claim of tvf") from None

    def _object(self, number: int) -> str:
        return f"{self.name}/claims/{number:06d}.json"

    def _content(self, digest: str) -> str:
        return f"{self.name}/files/{digest}"


def _is_local(name: str) -> bool:
    """Whether a file is of this machine's own making, if there is one."""
    return name == LOG or name.startswith(".hydra/")


def _when_to_pull(name: str) -> tuple[int, str]:
    """Weights before the checkpoint that relies on them, status.json at the end."""
    if name.endswith(".safetensors"):
        return 0, name
    last = {"summary.json": 2, "config.json": 3, "status.json": 4}
    return last.get(name, 1), name


def _checked(name: str) -> str:
    """A file's name, if it is one in a job's folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise Unreachable(f"{name} is not the name of a job's file")
    return name


def _has(path: Path, digest: str) -> bool:
    """Whether a file has this content."""
    with open(path, "rb") as file:
        return digest_of(file) == digest


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    aside = temporary_beside(path)
    try:
        yield aside
    finally:
        aside.unlink(missing_ok=True)
