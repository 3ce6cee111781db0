"""No process that forks jobs initialises CUDA, whatever it imports and does: seen from outside.

CUDA's runtime opens the driver's library when it is first used, and the dynamic linker says which
process opened it, on a machine without a GPU too.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import IMPORTABLE, ROOT

SMALL = (
    "tracker=none",
    "data.limit=60",
    "data.image_size=32",
    "data.batch_size=8",
    "epochs=1",
)
OPENS_DRIVER = re.compile(r"^\s*(\d+):\s+file=libcuda\.so\S* .*dynamically loaded by .*cudart")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only glibc's linker says what it opens")
@pytest.mark.parametrize(
    "sweep",
    [
        pytest.param(["model=transfer", "seed=1,2,3", "hydra/launcher=basic"], id="heads"),
        pytest.param(["model.pct_unfreeze=0.25,0.5", "hydra/launcher=local"], id="local"),
    ],
)
def test_only_jobs_initialise_cuda(sweep: list[str], tmp_path: Path) -> None:
    log = tmp_path / "linker"
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", "-m", *SMALL, *sweep, f"hydra.sweep.dir={tmp_path}/s"],
        cwd=tmp_path,
        env=os.environ
        | {"PYTHONPATH": IMPORTABLE, "LD_DEBUG": "files", "LD_DEBUG_OUTPUT": str(log)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    # A process that was not forked, such as the sweep's and joblib's workers, has a file of its
    # own, in which its forks write too.
    openers = {
        (int(path.suffix[1:]), int(found[1]))
        for path in tmp_path.glob("linker.*")
        for line in path.read_text().splitlines()
        if (found := OPENS_DRIVER.match(line))
    }
    assert openers, "the jobs train, and a backward pass counts GPUs"
    assert not {(started, opener) for started, opener in openers if started == opener}
