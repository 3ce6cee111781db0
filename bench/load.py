"""A sweep of many small jobs: seconds per job, and whether the launching processes grow.

Then the same command again: seconds to detect that a job is already done. docs/reliability.md has
the figures of `python bench/load.py --jobs 200`. Exits with 0 if all jobs are done and no process
has grown by more than a tenth.
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
    "data.limit=54",
    "data.image_size=32",
    "data.batch_size=16",
    "tracker=none",
)


def memory_mb(process: psutil.Process) -> tuple[float, float]:
    """Resident memory in MiB of the launching process, and of its largest worker.

    Jobs are children of the workers and are not included.
    """
    workers = []
    for child in process.children():
        with suppress(psutil.Error):  # it may have just ended
            if "loky" in " ".join(child.cmdline()):
                workers.append(child.memory_info().rss)
    return process.memory_info().rss / 2**20, max(workers, default=0) / 2**20


def run_sweep(
    arguments: list[str], folder: Path, jobs: int
) -> tuple[float, list[tuple[float, float]]]:
    """Run the sweep; return its seconds, and memory samples between its first tenth and its end.

    Processes that have no more jobs to run are not measured: the launching process then builds the
    report, and the workers exit.
    """
    began, samples = time.perf_counter(), []
    with (folder / "output.txt").open("w") as output:
        process = psutil.Popen(
            [sys.executable, str(ROOT / "train.py"), *arguments],
            env=os.environ | {"TVF_STORE": str(folder / "store")},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        while process.poll() is None:
            if jobs / 10 <= len(list(folder.glob("sweep/*/summary.json"))) < jobs - 1:
                with suppress(psutil.Error):
                    samples.append(memory_mb(process))
            time.sleep(0.5)
    if process.returncode:
        raise SystemExit((folder / "output.txt").read_text())
    return time.perf_counter() - began, samples


def has_grown(role: str, sizes: tuple[float, ...]) -> bool:
    """Print the early and late memory of a process; return whether it grew by over a tenth."""
    early, late = max(sizes[: len(sizes) // 5 + 1]), max(sizes[-len(sizes) // 5 :])
    print(
        f"{role}: {early:.0f} MiB after the first tenth of the jobs, {late:.0f} MiB after the last"
    )
    return late > 1.1 * early


def main() -> None:
    """Run the sweep twice and print the seconds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=200)
    jobs = parser.parse_args().jobs
    with tempfile.TemporaryDirectory(prefix="tvf-load-") as name:
        folder = Path(name)
        sweep = [*SMALL, f"hydra.sweep.dir={folder / 'sweep'}"]
        arguments = ["-m", f"seed=range({jobs})", *sweep]
        seconds, samples = run_sweep(arguments, folder, jobs)
        done = len(list(folder.glob("sweep/*/summary.json")))
        again, _ = run_sweep(arguments, folder, jobs)
        single, _ = run_sweep(["-m", "seed=0", *sweep], folder, 1)
    print(f"{done} jobs in {seconds:.0f} s: {1000 * seconds / jobs:.0f} ms per job")
    further = 1000 * (again - single) / (jobs - 1)
    print(f"all already done: {again:.1f} s, of which {further:.0f} ms for each further job")
    launcher, worker = zip(*samples, strict=True)
    grown = [has_grown("launching process", launcher), has_grown("largest worker", worker)]
    if done != jobs or any(grown):
        raise SystemExit("jobs are missing, or a process has grown")


if __name__ == "__main__":
    main()
