"""A sweep of many small jobs: how long each takes, and whether the processes that launch them grow.

Then the same command again: how long it takes to see that a job is done. docs/reliability.md has the figures of
`python bench/load.py --jobs 200`. Exits with 0 if all jobs are done and nothing has grown by more than a tenth.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent
SMALL = (
    "model=transfer",
    "epochs=1",
    "data.limit=32",
    "data.image_size=32",
    "data.batch_size=16",
    "tracker=none",
)


def memory_mb(process: psutil.Process) -> tuple[float, float]:
    """Resident memory of the launching process, and of its largest worker, in MiB. Jobs are children of workers."""
    workers = []
    for each in process.children():
        with suppress(psutil.Error):  # of one that has just ended
            if "loky" in " ".join(each.cmdline()):
                workers.append(each.memory_info().rss)
    return process.memory_info().rss / 2**20, max(workers, default=0) / 2**20


def sweep(arguments: list[str], folder: Path, jobs: int) -> tuple[float, list[tuple[float, float]]]:
    """Run it; the seconds that it took and the memory at each number of finished jobs from the tenth part on."""
    begun, seen = time.perf_counter(), []
    with (folder / "output.txt").open("w") as output:
        process = psutil.Popen(
            [sys.executable, str(ROOT / "train.py"), *arguments],
            env=os.environ | {"TVF_STORE": str(folder / "store")},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        while process.poll() is None:
            if len(list(folder.glob("sweep/*/summary.json"))) >= jobs / 10:
                with suppress(psutil.Error):
                    seen.append(memory_mb(process))
            time.sleep(0.5)
    if process.returncode:
        raise SystemExit((folder / "output.txt").read_text())
    return time.perf_counter() - begun, seen


def main() -> None:
    """Run the sweep twice and print what it took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=200)
    jobs = parser.parse_args().jobs
    with tempfile.TemporaryDirectory(prefix="tvf-load-") as name:
        folder = Path(name)
        arguments = ["-m", f"seed=range({jobs})", *SMALL, f"hydra.sweep.dir={folder / 'sweep'}"]
        seconds, seen = sweep(arguments, folder, jobs)
        done = len(list(folder.glob("sweep/*/summary.json")))
        again, _ = sweep(arguments, folder, jobs)
        one = ["-m", "seed=0", *SMALL, f"hydra.sweep.dir={folder / 'sweep'}"]
        alone, _ = sweep(one, folder, 1)
    print(f"{done} jobs in {seconds:.0f} s: {1000 * seconds / jobs:.0f} ms a job")
    print(
        f"all done already: {again:.1f} s, of which {1000 * (again - alone) / (jobs - 1):.0f} ms for each further job"
    )
    grown = []
    for role, sizes in zip(
        ("launching process", "largest worker"), zip(*seen, strict=True), strict=True
    ):
        early, late = max(sizes[: len(sizes) // 5 + 1]), max(sizes[-len(sizes) // 5 :])
        print(
            f"{role}: {early:.0f} MiB after the first tenth of the jobs, {late:.0f} MiB at the end"
        )
        grown.append(late > 1.1 * early)
    if done != jobs or any(grown):
        raise SystemExit("jobs are missing, or a process has grown")


if __name__ == "__main__":
    main()
