"""Machines that share nothing but a mirror: what one leaves, another resumes.

Each command runs as if on a machine of its own, in a folder that no other sees.
"""

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from helpers import IMPORTABLE, forks, mirrors
from helpers.jobs import epochs_done, records, statuses

EXPIRY = 3.0
QUICK = ("data.limit=68", "data.image_size=32", "data.batch_size=4", "tracker=none")
GATED = ("backbone._target_=gated.make", "+backbone.pct=${model.pct_unfreeze}")
FRACTIONS = "model.pct_unfreeze=1.0,0"
SWEEP = ("train", "-m", *QUICK, *GATED, "hydra/launcher=basic", "epochs=20", FRACTIONS)
# A backbone that trains 100 batches, and the rest when the file `open` exists, if all of it trains.
BACKBONE = """
import os, time
from helpers import small_backbone

def make(num_classes, pct):
    backbone, batches = small_backbone(num_classes), 0

    def wait(head, inputs):
        nonlocal batches
        batches += head.training
        while batches > 100 and pct == 1.0 and not os.path.exists("open"):
            time.sleep(0.02)

    backbone.module.head.register_forward_pre_hook(wait)
    return backbone
"""


@dataclass(frozen=True)
class Machines:
    """A mirror, and machines with folders below `root` that can reach it."""

    url: str
    root: Path
    environment: dict[str, str]

    def folder(self, name: str) -> Path:
        """A machine's folder."""
        folder = self.root / name
        folder.mkdir(exist_ok=True)
        (folder / "gated.py").write_text(BACKBONE)
        return folder

    def start(self, name: str, *arguments: str) -> forks.Process:
        """Start `tvf ARGUMENTS` on a machine."""
        code, folder = mirrors.tvf_on_machine(EXPIRY), self.folder(name)
        surroundings = self.environment | {"PYTHONPATH": IMPORTABLE, "TVF_STORE": f"{folder}/store"}
        return forks.python(code, name, *arguments, cwd=folder, **surroundings)

    def sweep(self, name: str, *arguments: str) -> forks.Process:
        """Start the sweep there, with the mirror."""
        return self.start(name, *SWEEP, f"mirror={self.url}", "hydra.sweep.dir=sweep", *arguments)


@pytest.fixture(params=["folder", "s3"])
def machines(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machines]:
    if request.param == "folder":
        yield Machines(f"file://{tmp_path}/mirror/demo", tmp_path, {})
    elif not os.environ.get(mirrors.PACKAGES):
        pytest.skip(mirrors.MISSING)
    else:
        with mirrors.s3_server() as environment:
            yield Machines(f"s3://{mirrors.BUCKET}/demo", tmp_path, environment)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sweep, trained without a mirror."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "gated.py").write_text(BACKBONE)
    (folder / "open").touch()
    process = forks.tvf(
        *SWEEP,
        "hydra.sweep.dir=sweep",
        cwd=folder,
        PYTHONPATH=IMPORTABLE,
        TVF_STORE=f"{folder}/store",
    )
    output = process.communicate(120)[0]
    assert process.returncode == 0, output
    return folder / "sweep"


def _wait(until: Callable[[], object], process: forks.Process) -> None:
    deadline = time.monotonic() + 60
    while not until():
        if process.poll() is not None or time.monotonic() > deadline:
            process.send_signal(9)
            raise AssertionError(process.communicate(30)[0])
        time.sleep(0.02)


def _destroy(process: forks.Process, folder: Path) -> None:
    """Take a machine away: all its processes at once, then its disk."""
    for each in [
        *psutil.Process(process.pid).children(recursive=True),
        psutil.Process(process.pid),
    ]:
        each.kill()
    process.communicate(10)
    shutil.rmtree(folder)


@pytest.mark.slow
def test_a_machine_that_is_taken_away_is_succeeded_by_a_fresh_one(
    machines: Machines, undisturbed: Path
) -> None:
    first = machines.sweep("n1")
    _wait_for_gate(machines, first)
    time.sleep(1)  # for the upload
    _destroy(first, machines.folder("n1"))
    (machines.folder("n2") / "open").touch()
    second = machines.start("n2", "resume", machines.url, "hydra.sweep.dir=here")
    output = second.communicate(120)[0]
    assert second.returncode == 0 and "Traceback" not in output, output
    assert "resumes after epoch 8." in output and output.count("epoch 1/20") == 1, output
    here = machines.folder("n2") / "here"
    assert records(here) == records(undisturbed)
    assert {pct: status["attempt"] for pct, status in statuses(here).items()} == {0: 1, 1: 2}
    # A third one finds all of it.
    third = machines.start("n3", "resume", machines.url)
    output = third.communicate(60)[0]
    assert third.returncode == 0 and "epoch 1/" not in output, output
    found = machines.folder("n3") / "outputs/sweeps/demo"
    assert records(found) == records(undisturbed) and (found / "report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "machines", ["s3" if os.environ.get(mirrors.PACKAGES) else "folder"], indirect=True
)
def test_two_machines_train_each_job_once(machines: Machines, undisturbed: Path) -> None:
    first = machines.sweep("n1")
    _wait_for_gate(machines, first)
    second = machines.sweep("n2")
    outputs = [second.communicate(120)[0]]
    (machines.folder("n1") / "open").touch()
    outputs.append(first.communicate(120)[0])
    said = "\n".join(outputs)
    assert "Traceback" not in said and said.count("(weights of epoch") == 2, said
    assert (second.returncode, first.returncode) == (1, 0), said
    assert re.search(r"another process is training this job: process \d+ on n1", outputs[0]), said
    assert re.search(r"trained on other machines: \S+ \(process \d+ on n1\)", outputs[0]), said
    last = machines.start("n3", "resume", machines.url, "hydra.sweep.dir=sweep")
    output = last.communicate(60)[0]
    assert last.returncode == 0 and "epoch 1/" not in output, output
    found = machines.folder("n3") / "sweep"
    assert records(found) == records(undisturbed)
    assert {status["attempt"] for status in statuses(found).values()} == {1}


def _wait_for_gate(machines: Machines, process: forks.Process) -> None:
    """Wait until the first job on the first machine has trained 8 of its 20 epochs."""
    epochs = (machines.folder("n1") / "sweep").glob
    _wait(
        lambda: [8] == [*map(epochs_done, {p.parent for p in epochs("*/metrics.jsonl")})], process
    )


@pytest.mark.slow
def test_training_survives_a_mirror_that_goes_away_and_a_resume_sends_the_rest(
    tmp_path: Path, undisturbed: Path
) -> None:
    machines = Machines(f"file://{tmp_path}/mirror/demo", tmp_path, {})
    first = machines.sweep("n1")
    _wait_for_gate(machines, first)
    (tmp_path / "mirror").rename(tmp_path / "away")
    (tmp_path / "mirror").touch()  # in which nothing can be created
    (machines.folder("n1") / "open").touch()
    output = first.communicate(120)[0]
    assert first.returncode == 0 and "Traceback" not in output, output
    assert output.count("Training continues; uploads are retried.") == 1, output
    assert len(re.findall(r"not mirrored: fine-tuning-\S+, fine-tuning-\S+ \(", output)) == 1
    assert records(machines.folder("n1") / "sweep") == records(undisturbed)
    (tmp_path / "mirror").unlink()
    (tmp_path / "away").rename(tmp_path / "mirror")
    output = machines.start("n1", "resume", "sweep").communicate(60)[0]
    assert "not mirrored" not in output and "epoch 1/" not in output, output
    output = machines.sweep("n1", "epochs=3", "hydra.sweep.dir=new").communicate(60)[0]
    assert f"error: mirror={machines.url} holds another sweep: tvf train -m" in output, output
    output = machines.start("n2", "resume", machines.url).communicate(60)[0]
    assert "fetched 2 of 2 jobs" in output and "epoch 1/" not in output, output
    assert records(machines.folder("n2") / "outputs/sweeps/demo") == records(undisturbed)


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get(mirrors.PACKAGES), reason=mirrors.MISSING)
def test_a_bucket_that_cannot_be_used_ends_the_command_before_it_trains(tmp_path: Path) -> None:
    with mirrors.s3_server() as environment:
        here = Machines(f"s3://{mirrors.BUCKET}/demo", tmp_path, environment)
        elsewhere = Machines("s3://missing/demo", tmp_path, environment)
        unknown = {"AWS_EC2_METADATA_DISABLED": "true", "HOME": str(tmp_path)}
        unknown["AWS_ENDPOINT_URL"] = environment["AWS_ENDPOINT_URL"]
        denied = Machines(here.url, tmp_path, unknown)
        for machines, reason in (
            (elsewhere, "bucket does not exist"),
            (denied, "[Cc]redentials"),
        ):
            output = machines.sweep("n1").communicate(60)[0]
            expected = rf"^error: mirror={machines.url} cannot be used: .*{reason}"
            assert re.search(expected, output, re.MULTILINE) and "epoch" not in output, output
        output = here.start("n1", "resume", here.url).communicate(60)[0]
        assert f"error: {here.url} holds no sweep: it has no sweep.json." in output, output
    output = here.start("n2", "resume", here.url).communicate(60)[0]
    assert f"error: mirror={here.url} cannot be used: " in output, output
