import getpass
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tvf import devices


def test_processes_claim_different_names_and_keep_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def elsewhere() -> str:
        code = "import pathlib, sys, tvf.devices; print(tvf.devices.claim('ab', pathlib.Path(sys.argv[1])))"
        command = [sys.executable, "-c", code, str(tmp_path)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    monkeypatch.setattr(devices, "_claimed", {})
    assert devices.claim("ab", tmp_path) == devices.claim("ab", tmp_path) == 0
    assert elsewhere() == "1\n"
    assert elsewhere() == "1\n"  # the first of the two gave it back when it ended


def test_names_that_are_all_taken_are_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"tvf-{getpass.getuser()}-a.lock").mkdir()  # a lock that cannot be had, as another user's cannot
    monkeypatch.setattr(devices, "_claimed", {})
    assert devices.claim("a", tmp_path) == 0
    assert devices.claim("ab", tmp_path) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak cannot be reset")
def test_peak_memory_counts_from_the_reset() -> None:
    cpu = torch.device("cpu")
    devices.keep_freed_memory()
    block = np.ones(2**25)  # 256 MiB
    high = devices.peak_memory_mb(cpu)
    del block
    devices.reset_peak_memory(cpu)
    before = devices.peak_memory_mb(cpu)
    assert high - before > 200
    block = np.ones(2**24)  # 128 MiB
    assert 100 < devices.peak_memory_mb(cpu) - before < 160
    del block
