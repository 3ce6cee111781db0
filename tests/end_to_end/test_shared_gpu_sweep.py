"""A sweep whose jobs share a GPU, on a machine without: the CPU and a fake nvidia-smi stand in."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers import IMPORTABLE, forks
from helpers.smi import FakeSmi

# Imported in each job's process, before it claims a GPU.
ONE_GPU = """
import os, tempfile, time
from types import SimpleNamespace
import lightning_fabric.accelerators.cuda
import torch
from helpers import small_backbone
from tvf.distributed import sharing

tempfile.tempdir = os.environ["TMPDIR"]  # a fork knows another one
torch.cuda.device_count = lambda: 1
torch.cuda.get_device_properties = lambda index: SimpleNamespace(uuid="u0")
lightning_fabric.accelerators.cuda.num_cuda_devices = lambda: 0
sharing.SAMPLES, sharing.SAMPLE_SECONDS = 1, 0.05

def make(num_classes):
    backbone = small_backbone(num_classes)

    def linger(module, inputs):
        if module.training and len(inputs[0]) > 2:
            time.sleep(0.05)

    backbone.module.register_forward_pre_hook(linger)
    return backbone
"""
QUICK = ("data.limit=68", "data.image_size=32", "data.batch_size=8", "tracker=none", "epochs=60")


@pytest.mark.slow
@pytest.mark.parametrize("stop", ["SIGTERM to the command", "Ctrl-C"])
def test_a_sweep_that_is_stopped_ends_the_jobs_that_wait_for_a_gpu(
    stop: str, tmp_path: Path
) -> None:
    (tmp_path / "one_gpu.py").write_text(ONE_GPU)
    smi, sweep = FakeSmi(tmp_path), tmp_path / "sweep"
    smi.says(97)
    process = forks.train(
        *("-m", *QUICK, "model.pct_unfreeze=0.5,1.0", f"hydra.sweep.dir={sweep}"),
        *("backbone._target_=one_gpu.make", "fabric.jobs_per_gpu=auto", "hydra.launcher.n_jobs=2"),
        cwd=tmp_path,
        TVF_STORE=str(tmp_path / "store"),
        PYTHONPATH=os.pathsep.join([IMPORTABLE, str(tmp_path)]),
        TMPDIR=str(tmp_path),  # of the locks
        PATH=f"{smi.folder}{os.pathsep}{os.environ['PATH']}",
    )

    def waiting() -> list[Path]:
        return [log for log in sweep.glob("*/job.log") if " waits: GPU 0 is 97" in log.read_text()]

    _wait_for(lambda: waiting() and [*sweep.glob("*/metrics.jsonl")])
    (log,), begun = waiting(), time.monotonic()
    assert not (log.parent / "status.json").exists()
    if stop == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert time.monotonic() - begun < 10
    assert process.returncode == 1 and "Traceback" not in output, output
    assert "begins on" not in log.read_text()
    assert log.read_text().splitlines()[-1].endswith(" interrupted")
    assert f"never started: {log.parent.name.rpartition('-')[0]}" in output
    assert [path.parent == log.parent for path in sweep.glob("*/status.json")] == [False]


def _wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
