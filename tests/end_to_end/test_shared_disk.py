"""Two machines on one disk: two mounts of a folder, between which file locks do not work.

Each side runs as if on a machine of its own, where no process of the other side can be seen.
"""

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from helpers import IMPORTABLE, SMALL, forks
from tvf.files import read_json
from tvf.report import print_status

EXPIRY = 3.0
# What makes a process one of machine N, and a minute pass in three seconds.
MACHINE = f"""
import sys
import tvf.lease, tvf.owners
name = sys.argv.pop(1)
tvf.lease.HEARTBEAT, tvf.lease.EXPIRY = {EXPIRY / 6}, {EXPIRY}
tvf.owners._machine = lambda: name.rjust(16, "0")
tvf.owners.socket.gethostname = lambda: name
"""
TRAIN = MACHINE + "from tvf import cli; cli.train()"
QUICK = ("data.limit=68", "data.image_size=32", "data.batch_size=4", "tracker=none", SMALL)
SWEEP = ("-m", *QUICK, "hydra/launcher=basic", "hydra.sweep.dir=sweep")

Mounts = tuple[Path, Path]


@pytest.fixture
def mounts(tmp_path: Path) -> Iterator[Mounts]:
    """Two mounts of one folder. A lock that is held in one can be taken in the other."""
    if not shutil.which("bindfs"):
        pytest.skip("bindfs is not installed")
    disk, sides = tmp_path / "disk", (tmp_path / "a", tmp_path / "b")
    mounted: list[Path] = []
    try:
        for folder in (disk, *sides):
            folder.mkdir()
        for side in sides:
            done = subprocess.run(["bindfs", disk, side], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"no FUSE: {done.stderr.strip()}")
            mounted.append(side)
        yield sides
    finally:
        for side in mounted:
            program = shutil.which("fusermount3") or "fusermount"
            subprocess.run([program, "-uz", side], check=True)


def _start(machine: str, code: str, *arguments: str, cwd: Path) -> forks.Process:
    store = str(cwd / "store")
    return forks.python(code, machine, *arguments, cwd=cwd, PYTHONPATH=IMPORTABLE, TVF_STORE=store)


def _wait(until: Callable[[], object], *processes: forks.Process) -> None:
    deadline = time.monotonic() + 60
    while not until():
        for process in processes:
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.02)


def _statuses(folder: Path) -> list[tuple[str, int, str]]:
    found = [read_json(path) for path in folder.glob("sweep/*/status.json")]
    # A mount may show neither the old nor the new file for a moment.
    return [(each["state"], each["attempt"], each["host"]) for each in found if each]


# A backbone whose head does not train before the file `open` exists.
GATED = """
import os, time
from helpers import small_backbone

def make(num_classes):
    backbone = small_backbone(num_classes)

    def wait(head, inputs):
        checked = len(inputs[0]) == 2  # by the check of the network
        while head.training and not checked and not os.path.exists("open"):
            time.sleep(0.02)

    backbone.module.head.register_forward_pre_hook(wait)
    return backbone
"""


@pytest.mark.slow
def test_two_machines_train_each_job_and_each_head_phase_once(
    mounts: Mounts, capsys: pytest.CaptureFixture[str]
) -> None:
    (mounts[0] / "gated.py").write_text(GATED)
    command = [*SWEEP, "recipe=lp_ft", "epochs=4", "store.mode=on", "model.pct_unfreeze=0.5,1.0"]
    command[command.index(SMALL)] = "backbone._target_=gated.make"
    processes = [_start(f"n{n}", TRAIN, *command, cwd=mounts[n - 1]) for n in (1, 2)]
    logs = mounts[0] / "sweep"
    _wait(lambda: "waits for" in "".join(p.read_text() for p in logs.glob("*/job.log")), *processes)
    print_status(mounts[0] / "sweep")
    status = capsys.readouterr().out
    (mounts[0] / "open").touch()
    outputs = [process.communicate(120)[0] for process in processes]
    said = "\n".join(outputs)
    assert 0 in [process.returncode for process in processes] and "Traceback" not in said, said
    assert {*re.findall(r"process \d+ on (n\d)", status.partition("running: ")[2])} == {"n1", "n2"}
    assert re.search(r"another process is training this job: process \d+ on n[12]", said), said
    assert sorted(_statuses(mounts[0])) == [("done", 1, "n1"), ("done", 1, "n2")]
    assert re.search(r"waits for another job to finish the head phase: process \d+ on n[12]", said)
    assert said.count("takes epochs 1 to 2 from another job") == 1
    assert said.count("(weights of epoch") == 2


@pytest.mark.slow
def test_a_machine_that_dies_is_succeeded_after_the_expiry(mounts: Mounts) -> None:
    command = (*SWEEP, "epochs=30", "model.pct_unfreeze=1.0", "store.mode=off")
    first = _start("n1", TRAIN, *command, cwd=mounts[0])
    _wait(lambda: list(mounts[1].glob("sweep/*/checkpoints/last.pt")), first)
    first.send_signal(9)  # which also ends its jobs
    died = time.monotonic()
    first.communicate(10)
    second = _start("n2", TRAIN, *command, cwd=mounts[1])
    _wait(lambda: ("running", 2, "n2") in _statuses(mounts[1]), second)
    seconds = time.monotonic() - died
    output = second.communicate(120)[0]
    assert second.returncode == 0 and "Traceback" not in output, output
    assert _statuses(mounts[0]) == [("done", 2, "n2")]
    assert re.search(r"resumes after epoch \d", output) and EXPIRY / 2 < seconds < EXPIRY + 30


# A table of the store, of which a process computes the rows slowly and says which.
TABLE = (
    MACHINE
    + """
import time
from pathlib import Path
import numpy as np, torch
from tvf.store import ArraySpec, Store

def fill(rows, wait):
    print("rows", *rows.tolist(), flush=True)
    time.sleep(float(sys.argv[1]))
    return [torch.from_numpy(rows).float()]

store = Store(Path("store"), 10**9)
table = store.entry("kind", ["key"], {}).table("t", 512, [ArraySpec((), torch.float32)], fill)
begun = time.monotonic()
assert torch.equal(table.tensors()[0], torch.arange(512).float())
print(f"all after {time.monotonic() - begun}")
store.close()
"""
)


@pytest.mark.slow
def test_two_machines_divide_a_table_and_finish_what_a_dead_one_left(mounts: Mounts) -> None:
    dead = _start("n1", TABLE, "60", cwd=mounts[0])
    assert dead.read_line().startswith("rows 0 1 2")
    others = [_start(f"n{n}", TABLE, "0.2", cwd=mounts[n - 2]) for n in (2, 3)]
    time.sleep(0.5)
    dead.send_signal(9)
    dead.communicate(10)
    outputs = [process.communicate(60)[0] for process in others]
    assert [process.returncode for process in others] == [0, 0], outputs
    computed = [
        int(row)
        for row in re.findall(
            r"\b\d+\b",
            " ".join(line for line in "\n".join(outputs).splitlines() if line.startswith("rows")),
        )
    ]
    assert sorted(computed) == list(range(512))  # each row once
    (stored,) = mounts[0].glob("store/kind/key/t.leases")
    assert list(stored.iterdir()) == []
