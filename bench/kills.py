"""A sweep that is killed again and again and resumed until it is done, against one that never was.

Every kill is a SIGKILL to all processes of the sweep, at a random moment. Exits with 0 if both sweeps left the same
epochs, scores and weights, times aside. docs/reliability.md has the figures of `python bench/kills.py --kills 50`.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SWEEP = (
    "-m",
    "model.pct_unfreeze=0,0.25,0.5,1.0",
    "data.image_size=64",
    "checkpoint.every_minutes=0.01",
)
SWEEP += ("tracker=none", "augment=crop_flip", "scheduler=cosine")
# What depends on time, on memory, and on what the store held already.
LOOSE = ("images_per_second", "peak_memory_mb", "prefix_images", "continued_images")


def start(arguments: list[str], store: Path) -> subprocess.Popen[bytes]:
    """A tvf command in a process group of its own."""
    code = "import sys; from tvf.cli import main; sys.argv[0] = 'tvf'; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | {"TVF_STORE": str(store), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def works(sweep: Path, since: float) -> bool:
    """Whether a job that began after `since` has not ended yet."""
    begun = [path for path in sweep.glob("*/status.json") if path.stat().st_mtime > since]
    return any(json.loads(path.read_text())["state"] == "running" for path in begun)


def results(sweep: Path) -> dict[str, Any]:
    """Of each job its summary, its epochs and a digest of its weights, without what is loose."""
    found = {}
    for path in sorted(sweep.glob("*/summary.json")):
        rows = [json.loads(path.read_text())]
        rows += [
            json.loads(line) for line in (path.parent / "metrics.jsonl").read_text().splitlines()
        ]
        weights = hashlib.sha256(
            (path.parent / "checkpoints" / "best.safetensors").read_bytes()
        ).hexdigest()
        kept = [
            {k: v for k, v in row.items() if k not in LOOSE and not k.endswith("_seconds")}
            for row in rows
        ]
        found[path.parent.name] = [weights, *kept]
    return found


def main() -> None:
    """Run both sweeps and compare them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--limit", type=int, default=100, help="images of each part")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    draw, killed, at_work, attempts = random.Random(options.seed), 0, 0, 0
    with tempfile.TemporaryDirectory(prefix="tvf-kills-") as folder:
        work = Path(folder)
        sweep = [*SWEEP, f"epochs={options.epochs}", f"data.limit={options.limit}"]
        begun = time.perf_counter()
        whole = start(["train", *sweep, f"hydra.sweep.dir={work / 'whole'}"], work / "store")
        if whole.wait():
            raise SystemExit("the sweep that nobody kills failed")
        alone = time.perf_counter() - begun
        arguments = ["train", *sweep, f"hydra.sweep.dir={work / 'killed'}"]
        begun = time.perf_counter()
        while True:
            started, attempts = time.time(), attempts + 1
            process = start(arguments, work / "store of the killed")
            try:
                if killed >= options.kills:
                    process.wait()
                elif draw.random() < 0.2:  # while it starts
                    process.wait(timeout=draw.uniform(0, 6))
                else:
                    while process.poll() is None and not works(work / "killed", started):
                        time.sleep(0.01)
                    process.wait(timeout=draw.uniform(0, 4))
            except subprocess.TimeoutExpired:
                at_work += works(work / "killed", started)
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                killed += 1
            if process.returncode == 0:
                break
            if process.returncode > 0:
                raise SystemExit(
                    f"attempt {attempts} ended with {process.returncode} without having been killed"
                )
            if (work / "killed" / "sweep.json").exists():
                arguments = ["resume", str(work / "killed")]
        took, one, other = (
            time.perf_counter() - begun,
            results(work / "whole"),
            results(work / "killed"),
        )
        epochs = sum(len(rows) - 2 for rows in one.values())
        print(
            f"{len(one)} jobs, {epochs} epochs; unkilled {alone:.0f} s; {killed} kills ({at_work} of them while jobs "
            f"ran), {attempts} starts, {took:.0f} s"
        )
        if one != other or len(one) != 4:
            raise SystemExit("the two sweeps differ")
        print("the two sweeps are equal: every epoch, score and weight")


if __name__ == "__main__":
    main()
