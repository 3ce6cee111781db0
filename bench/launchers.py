"""What each launcher adds to a sweep of 20 short jobs: seconds of the whole command.

SLURM is a cluster of two nodes of one core on loopback, as in the tests; Ray is started by the
command. docs/clusters.md has the figures. Each job fine-tunes a quarter of the default network on
200 images for one epoch, and finds its frozen layers in the store. Needs slurm-wlm, munge, root,
the extra ray, and hydra-submitit-launcher. Run it with PYTHONPATH=.:tests.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from helpers.slurm import slurm_cluster

JOBS = 20
RATES = ",".join(f"{rate / 1000}" for rate in range(1, JOBS + 1))
SWEEP = (
    *("model.pct_unfreeze=0.25", "epochs=1", "tracker=none", f"optimizer.lr={RATES}"),
    *("data.limit=200", "data.image_size=32", "store.mode=on"),
)
LAUNCHERS = {
    "basic": (),
    "local": (),
    "joblib": ("hydra.launcher.n_jobs=2",),
    "ray": ("hydra.launcher.store=shared",),
    "slurm": ("hydra.launcher.store=shared",),
    # It would start all jobs at once.
    "submitit_local": ("hydra.sweeper.max_batch_size=2",),
    "submitit_slurm": ("hydra.launcher.cpus_per_task=1",),
}


def measure(launcher: str, folder: Path) -> float:
    """Seconds of the sweep under a launcher, all of whose jobs have to be done."""
    options = (f"hydra/launcher={launcher}", *LAUNCHERS[launcher], f"hydra.sweep.dir={folder}")
    command = [sys.executable, "-m", "tvf", "train", "-m", *SWEEP, *options]
    begun = time.perf_counter()
    with folder.with_suffix(".log").open("w") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode
    seconds = time.perf_counter() - begun
    done = len([*folder.glob("*/summary.json")])
    if code or done < JOBS:
        raise SystemExit(f"{launcher}: exit code {code}, {done} jobs done: {log.name}")
    return seconds


def main() -> None:
    """Run the sweep under all launchers in turn, several times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--launchers", default=",".join(LAUNCHERS))
    options = parser.parse_args()
    names = options.launchers.split(",")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    work = Path(tempfile.mkdtemp(prefix="tvf-launchers-"))
    with slurm_cluster() as cluster:
        os.environ |= cluster.environment | {"TVF_STORE": str(work / "store")}
        measure("basic", work / "warm")
        for turn in range(options.rounds):
            for name in names:
                seconds[name].append(measure(name, work / f"{name}-{turn}"))
                load = os.getloadavg()[0]
                print(f"{name}: {seconds[name][-1]:.1f} s, load {load:.1f}", flush=True)
    base = statistics.median(seconds.get("local", [0.0]))
    for name, found in seconds.items():
        middle = statistics.median(found)
        each = ", ".join(f"{second:.0f}" for second in found)
        print(f"{name:15} {middle:6.1f} s ({each}), {(middle - base) / JOBS:+.2f} s per job")


if __name__ == "__main__":
    main()
