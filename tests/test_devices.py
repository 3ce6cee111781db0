import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tvf import devices


def test_processes_claim_different_devices_and_keep_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_claimed", {})
    first = devices.claim_device(2, tmp_path)
    assert first == devices.claim_device(2, tmp_path) == 0
    code = "import pathlib, sys, tvf.devices; print(tvf.devices.claim_device(2, pathlib.Path(sys.argv[1])))"
    other = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True, text=True)
    assert other.stdout == "1\n"


def test_peak_memory_counts_from_the_reset() -> None:
    cpu = torch.device("cpu")
    block = np.ones(2**25)  # 256 MiB
    del block
    assert devices.peak_memory_mb(cpu) > 256
    devices.reset_peak_memory()
    before = devices.peak_memory_mb(cpu)
    block = np.ones(2**24)  # 128 MiB
    assert 100 < devices.peak_memory_mb(cpu) - before < 160
    del block
