"""Jobs that share a GPU while it has time for them: fabric.jobs_per_gpu=auto.

Without MPS, processes take turns on a GPU: another job gains only where the GPU is idle between the
kernels of those that are there. nvidia-smi's utilization.gpu says how often that is, the share of
time in which some kernel ran. So a job takes a second place on a GPU, or a third, only after the
jobs there have trained for some seconds and left it idle.
"""

import logging
import subprocess
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from tvf.distributed.devices import claim, claimed, gpu_names, lock_path, places_on, release, take

log = logging.getLogger(__name__)

BUSY = 85.0  # per cent of the time; from here on, another job would only take turns
SAMPLES = 5  # of a GPU's utilisation, which are averaged
SAMPLE_SECONDS = 1.0  # between two of them
PAUSE_SECONDS = 10.0  # until the next samples of GPUs that are busy
POLL_SECONDS = 0.2  # between two looks for a GPU without a job
LOCK_SECONDS = 1.0  # others hold a lock for a moment to see whether it is free

_begins: FileLock | None = None  # held from the claim of a place until the job trains


class _Unknown(Exception):
    """It cannot be found out how busy the GPUs are."""


def claim_shared_gpu(sharing: int, job: str, among: list[int] | None = None) -> list[int]:
    """Claim a place on a GPU for this process until it ends; return the GPU's index in a list.

    Like `claim_gpus`, but waits while all GPUs, or those `among` which it is to be, are busy: see
    `claim_place`.
    """
    names = gpu_names()
    indices = among or [*range(len(names))]
    return [indices[claim_place([names[index] for index in indices], sharing, job)]]


def claim_place(gpus: Sequence[str], sharing: int, job: str, folder: Path | None = None) -> int:
    """Claim one of the `sharing` places on each of `gpus`, UUIDs; return the GPU's index.

    The first place on a GPU is taken at once, a later one only if the GPU is not busy: until then,
    or until a first place is free, it waits, and logs so under the name `job`. A process keeps its
    place, so a second call returns at once. If nobody can say how busy the GPUs are, this does not
    wait, and the process may share a place, as with `claim`. `folder` holds the lock files.
    """
    places = places_on(gpus, sharing)
    if not claimed():
        try:
            candidate = _Candidate(gpus, places, job, folder)
            while (gpu := candidate.enter()) is None:
                time.sleep(POLL_SECONDS)
            return gpu
        except _Unknown as reason:
            log.warning("%s does not wait for its share of a GPU: %s.", job, reason)
    return claim(places, 1, folder)[0] % len(gpus)


def training_begins() -> None:
    """Let jobs that wait to share this process's GPU measure how busy it is from now on."""
    global _begins
    if _begins is not None:
        _begins.release()
        _begins = None


class _Candidate:
    """A job without a place, and what it has seen of the GPUs."""

    def __init__(
        self, gpus: Sequence[str], places: Sequence[str], job: str, folder: Path | None
    ) -> None:
        self._gpus, self._places, self._job, self._folder = gpus, places, job, folder
        self._samples = [deque[float](maxlen=SAMPLES) for _ in gpus]
        self._labels: dict[int, str] = {}
        self._due = 0.0
        self._says_busy = True

    def enter(self) -> int | None:
        """Take a place now if that is possible, and return its GPU. Raises _Unknown."""
        try:
            for gpu in range(len(self._gpus)):
                if self._take(gpu):
                    self._says("begins on %s, where a job has ended.", gpu)
                    return gpu
            if time.monotonic() < self._due:
                return None
            self._measure()
            return self._enter_idle()
        except OSError as error:  # of a lock
            raise _Unknown(f"{error.filename}: {error.strerror}") from error

    def _measure(self) -> None:
        """Add a sample of each GPU on which no job is about to train."""
        begin = [self._others_begin(gpu) for gpu in range(len(self._gpus))]
        usage = gpu_usage()
        if missing := [gpu for gpu in self._gpus if _bare(gpu) not in usage]:
            raise _Unknown(f"nvidia-smi does not say how busy GPU {missing[0]} is")
        if not self._labels:
            where = "its" if len(self._gpus) == 1 else "a"
            message = "%s waits until %s GPU is less than %.0f %% busy, or one of its jobs ends."
            log.info(message, self._job, where, BUSY)
        for gpu, uuid in enumerate(self._gpus):
            number, percent = usage[_bare(uuid)]
            self._labels[gpu] = f"GPU {number}"
            if begin[gpu]:
                self._samples[gpu].clear()
            else:
                self._samples[gpu].append(percent)
        self._due = time.monotonic() + SAMPLE_SECONDS

    def _enter_idle(self) -> int | None:
        """Take a place on the GPU that is the least busy, if that is not too busy."""
        known = [gpu for gpu, seen in enumerate(self._samples) if len(seen) == SAMPLES]
        for gpu in sorted(known, key=self._percent):
            percent = self._percent(gpu)
            if percent >= BUSY:
                break
            for place in range(gpu + len(self._gpus), len(self._places), len(self._gpus)):
                if self._take(place):
                    if not self._others_begin(gpu):
                        self._says(f"begins on %s, which is {percent:.0f} %% busy.", gpu)
                        return gpu
                    training_begins()  # another one was as fast: which of them goes first is open
                    release(place)
                    break
        if len(known) == len(self._gpus):
            if self._says_busy and all(self._percent(gpu) >= BUSY for gpu in known):
                busy = (f"{self._labels[gpu]} is {self._percent(gpu):.0f} % busy" for gpu in known)
                log.info("%s waits: %s.", self._job, ", ".join(busy))
                self._says_busy = False
            self._due = time.monotonic() + PAUSE_SECONDS
            for seen in self._samples:
                seen.clear()
        return None

    def _percent(self, gpu: int) -> float:
        return sum(self._samples[gpu]) / len(self._samples[gpu])

    def _take(self, place: int) -> bool:
        """Claim a place, and note that a job is about to train there."""
        global _begins
        if not take(self._places, place, self._folder):
            return False
        _begins = self._begins_on(place)
        try:
            _begins.acquire(timeout=LOCK_SECONDS)
        except Timeout:
            _begins = None
        return True

    def _others_begin(self, gpu: int) -> bool:
        """Whether another process has a place on this GPU and does not train yet."""
        for place in range(gpu, len(self._places), len(self._gpus)):
            if place not in claimed():
                lock = self._begins_on(place)
                try:
                    lock.acquire(timeout=0)
                except Timeout:
                    return True
                lock.release()
        return False

    def _begins_on(self, place: int) -> FileLock:
        return FileLock(lock_path(f"{self._places[place]}-begins", self._folder))

    def _says(self, message: str, gpu: int) -> None:
        """Say how the wait ends, if it was said that the job waits."""
        if gpu in self._labels:
            log.info(f"%s {message}", self._job, self._labels[gpu])


def gpu_usage() -> dict[str, tuple[str, float]]:
    """The number of each GPU, and the per cent of the time that it was busy, by its bare UUID.

    Lacks GPUs of which nvidia-smi does not know it, such as partitioned ones. Raises _Unknown.
    """
    command = ["nvidia-smi", "--query-gpu=index,uuid,utilization.gpu"]
    command += ["--format=csv,noheader,nounits"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except OSError as error:
        raise _Unknown(f"nvidia-smi cannot be run ({error.strerror})") from error
    except subprocess.SubprocessError as error:
        raise _Unknown(f"nvidia-smi failed ({error})") from error
    rows = (line.split(", ") for line in ran.stdout.splitlines())
    return {_bare(row[1]): (row[0], float(row[2])) for row in rows if row[-1].strip().isdecimal()}


def _bare(uuid: str) -> str:
    """A GPU's UUID as torch writes it: nvidia-smi puts GPU- in front."""
    return uuid.removeprefix("GPU-").lower()
