"""A sweep killed and resumed again and again until it is done, against an uninterrupted one.

Every kill is a SIGKILL to all processes of the sweep, at a random time. Exits with 0 if both
sweeps have the same epochs, scores and weights, apart from times. docs/reliability.md has the
figures of `python bench/kills.py --kills 50`.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SWEEP = (
    "-m",
    "model.pct_unfreeze=0,0.25,0.5,1.0",
    "data.image_size=64",
    "checkpoint.every_minutes=0.01",
    "tracker=none",
    "augment=crop_flip",
    "scheduler=cosine",
)
# These depend on time, on memory, and on what was already in the store.
NOT_COMPARED = (
    "images_per_second",
    "peak_memory_mb",
    "peak_device_memory_mb",
    "prefix_images",
    "continued_images",
)


@dataclass
class Tally:
    """How often the sweep was started, killed, and killed while a job ran; its total seconds."""

    starts: int = 0
    kills: int = 0
    kills_at_work: int = 0
    seconds: float = 0.0


def start_command(arguments: list[str], store: Path) -> subprocess.Popen[bytes]:
    """Start a tvf command in its own process group."""
    code = "import sys; from tvf.cli import main; sys.argv[0] = 'tvf'; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | {"TVF_STORE": str(store), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def is_at_work(sweep: Path, since: float) -> bool:
    """Whether a job that began after `since` is still running."""
    began = [path for path in sweep.glob("*/status.json") if path.stat().st_mtime > since]
    return any(json.loads(path.read_text())["state"] == "running" for path in began)


def read_results(sweep: Path) -> dict[str, Any]:
    """Per job: a digest of its weights, its summary and its epochs, without NOT_COMPARED."""
    results = {}
    for path in sorted(sweep.glob("*/summary.json")):
        job = path.parent
        rows = [json.loads(path.read_text())]
        rows += [json.loads(line) for line in (job / "metrics.jsonl").read_text().splitlines()]
        weights = (job / "checkpoints" / "best.safetensors").read_bytes()
        compared = [
            {k: v for k, v in row.items() if k not in NOT_COMPARED and not k.endswith("_seconds")}
            for row in rows
        ]
        results[job.name] = [hashlib.sha256(weights).hexdigest(), *compared]
    return results


def run_with_kills(sweep: list[str], folder: Path, store: Path, kills: int, seed: int) -> Tally:
    """Run a sweep in `folder`, killing it `kills` times at random times, until it is done."""
    rng, tally, began = random.Random(seed), Tally(), time.perf_counter()
    arguments = ["train", *sweep, f"hydra.sweep.dir={folder}"]
    while True:
        started, tally.starts = time.time(), tally.starts + 1
        process = start_command(arguments, store)
        try:
            if tally.kills >= kills:
                process.wait()
            elif rng.random() < 0.2:  # while it starts
                process.wait(timeout=rng.uniform(0, 6))
            else:
                while process.poll() is None and not is_at_work(folder, started):
                    time.sleep(0.01)
                process.wait(timeout=rng.uniform(0, 4))
        except subprocess.TimeoutExpired:
            tally.kills_at_work += is_at_work(folder, started)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            tally.kills += 1
        if process.returncode == 0:
            tally.seconds = time.perf_counter() - began
            return tally
        if process.returncode > 0:
            raise SystemExit(
                f"attempt {tally.starts} ended with {process.returncode} without being killed"
            )
        if (folder / "sweep.json").exists():
            arguments = ["resume", str(folder)]


def main() -> None:
    """Run both sweeps and compare them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--limit", type=int, default=167, help="images of each job")
    parser.add_argument("--seed", type=int, default=0, help="of the random times")
    options = parser.parse_args()
    sweep = [*SWEEP, f"epochs={options.epochs}", f"data.limit={options.limit}"]
    with tempfile.TemporaryDirectory(prefix="tvf-kills-") as name:
        work = Path(name)
        whole, killed = work / "whole", work / "killed"
        began = time.perf_counter()
        uninterrupted = start_command(
            ["train", *sweep, f"hydra.sweep.dir={whole}"], store=work / "store"
        )
        if uninterrupted.wait():
            raise SystemExit("the uninterrupted sweep failed")
        seconds = time.perf_counter() - began
        tally = run_with_kills(
            sweep,
            killed,
            store=work / "store of the killed",
            kills=options.kills,
            seed=options.seed,
        )
        expected, found = read_results(whole), read_results(killed)
    epochs = sum(len(rows) - 2 for rows in expected.values())
    print(
        f"{len(expected)} jobs, {epochs} epochs; uninterrupted {seconds:.0f} s; "
        f"{tally.kills} kills ({tally.kills_at_work} of them while jobs ran), "
        f"{tally.starts} starts, {tally.seconds:.0f} s"
    )
    if expected != found or len(expected) != 4:
        raise SystemExit("the two sweeps differ")
    print("the two sweeps are equal: every epoch, score and weight")


if __name__ == "__main__":
    main()
