"""The options of hydra/launcher=slurm, checked, and as sbatch takes them."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tvf.errors import InputError, require_bool, require_choice, require_count
from tvf.sweep.remote import NODE

ONE_NODE = ("--nodes", "--ntasks", "--ntasks-per-node", "--array")
DAY = 24 * 60  # minutes
ONE_NODE_LETTERS = ("-N", "-n", "-a")  # of the same options; their value may follow at once


@dataclass(frozen=True, kw_only=True)
class SlurmOptions:
    """The options of conf/hydra/launcher/slurm.yaml, which says when to choose them."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: str | int | None = None
    memory: str | int | None = None
    constraint: str | None = None
    cpus: int = 1
    gpus: str | int | None = None
    max_running: int | None = None
    stop_seconds: int = 60
    setup: Sequence[str] = ()
    sbatch: Sequence[str] = ()
    detach: bool = False
    store: str = "node"

    def __post_init__(self) -> None:
        require_count(f"{NODE}.cpus", self.cpus, 1)
        require_count(f"{NODE}.stop_seconds", self.stop_seconds, 1, 65535)
        if isinstance(self.time, int) and self.time >= DAY:
            written = f"'{self.time // DAY}-{self.time // 60 % 24:02}:{self.time % 60:02}:00'"
            raise InputError(
                f"{NODE}.time={self.time} (minutes) must be written with its days, as {written}, "
                "if it is a day or more: YAML reads 1:00:00 without quotes as 3600."
            )
        time = str(self.time)
        minutes = int(time) if time.isdecimal() else 0  # SLURM's 0 is no limit
        if minutes and 60 * minutes <= self.stop_seconds:
            raise InputError(
                f"{NODE}.time={minutes} (minutes) must be longer than {NODE}.stop_seconds="
                f"{self.stop_seconds}, or each job would be told to stop as it begins. Raise time."
            )
        if self.max_running is not None:
            require_count(f"{NODE}.max_running", self.max_running, 1)
        require_bool(f"{NODE}.detach", self.detach)
        require_choice(f"{NODE}.store", self.store, ("node", "shared"))
        for name in ("setup", "sbatch"):
            if not _is_lines(getattr(self, name)):
                raise InputError(f"{NODE}.{name} must be a list of lines, as in ['{name} line'].")
        for line in self.sbatch:
            option = re.split(r"[=\s]", line.strip(), maxsplit=1)[0]
            # sbatch takes the beginning of an option's name, too.
            long = len(option) > 3 and any(name.startswith(option) for name in ONE_NODE)
            if long or option.startswith(ONE_NODE_LETTERS):
                raise InputError(
                    f"{NODE}.sbatch has {line}, which tvf sets itself: each job is a task of an "
                    "array, and all its devices are on one node. Leave it out."
                )
        if self.gpus is not None and self.gpu_count is None:
            raise InputError(
                f"{NODE}.gpus={self.gpus} must be a number of GPUs, or one with a type, as a100:1."
            )

    @property
    def gpu_count(self) -> int | None:
        """How many GPUs a task has; None if that cannot be read."""
        count = str(self.gpus or 0).rpartition(":")[2]
        return int(count) if count.isdecimal() else None

    @property
    def checkpoint_seconds(self) -> int:
        """How long a job that is told to stop may take; the rest is for its end and the requeue."""
        return max(3, self.stop_seconds - 10)

    @property
    def directives(self) -> Iterator[str]:
        """The options of sbatch."""
        asked = {
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "time": self.time,
            "mem": self.memory,
            "constraint": self.constraint,
            "gres": f"gpu:{self.gpus}" if self.gpus else None,
        }
        yield from (f"--{name}={value}" for name, value in asked.items() if value is not None)
        yield from ("--nodes=1", "--ntasks=1", f"--cpus-per-task={self.cpus}", "--requeue")
        yield from (f"--signal=B:USR1@{self.stop_seconds}", "--open-mode=append")
        yield from self.sbatch


def _is_lines(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(line, str) for line in value)
