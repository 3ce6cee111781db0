"""Runs the commands of bench/gpu.py one after another, and writes each row once it is known."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
LAUNCH = "import sys; from tvf.cli.launch import launch; launch(sys.argv[1:], compare=False)"


@dataclass(frozen=True)
class Sizes:
    """How much there is to do."""

    epochs: int = 8
    seeds: int = 3
    heads: tuple[int, int] = (8, 5)  # seeds and learning rates
    size: int = 128
    batches: tuple[int, ...] = (32, 128)
    limit: int | None = None
    large: tuple[int, int, int] = (224, 128, 4)  # ResNet50: pixels, batch, epochs
    compiled: float = 1.0  # the fraction of the compiled loop


QUICK = Sizes(
    compiled=0.0,
    epochs=2,
    seeds=1,
    heads=(1, 2),
    size=32,
    batches=(8, 16),
    limit=64,
    large=(32, 8, 1),
)


@dataclass
class Bench:
    """Runs commands until the time is up, and writes each row as soon as it is known."""

    device: str
    sizes: Sizes
    out: Path
    work: Path
    environment: dict[str, str]
    deadline: float
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def left(self) -> float:
        """The seconds that are left."""
        return self.deadline - time.monotonic()

    def measure(self, name: str, row: Callable[["Bench"], dict[str, Any]]) -> None:
        """Add a row, whatever happens in it."""
        start, found = time.monotonic(), dict[str, Any]()
        if self.left <= 0:
            found = {"skipped": "no time left"}
        else:
            try:
                found = row(self)
            except subprocess.TimeoutExpired:
                found = {"skipped": "the time was up"}
            except Exception as error:
                found = {"failed": f"{type(error).__name__}: {error}"[-2000:]}
        self.rows.append({"row": name, **found, "took": round(time.monotonic() - start, 1)})
        with self.out.with_suffix(".jsonl").open("a") as file:
            print(json.dumps(self.rows[-1]), file=file, flush=True)
        self.out.with_suffix(".md").write_text(render(self.rows, self.device))
        print(json.dumps(self.rows[-1]), flush=True)

    def call(self, *command: str, limit: float = 1e9, **environment: str) -> str:
        """Run a Python command and return what it printed; RuntimeError if it fails.

        It is killed after `limit` seconds, or when the time for all rows is up.
        """
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=self.work,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        seconds = max(1, min(limit, self.left))
        try:
            printed, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired as error:
            os.killpg(process.pid, signal.SIGKILL)
            printed, _ = process.communicate()
            raise subprocess.TimeoutExpired(error.cmd, seconds, printed) from None
        finally:
            with suppress(ProcessLookupError):  # its workers too, if the time was up
                os.killpg(process.pid, signal.SIGKILL)
        if process.returncode:
            raise RuntimeError(f"exit code {process.returncode}: {printed[-1500:]}")
        return printed

    def ask(self, script: str, *arguments: str, **options: Any) -> Any:
        """What a script beside this one prints as JSON."""
        options = {
            "device": self.device,
            "size": self.sizes.size,
            "limit": self.sizes.limit,
        } | options
        given = [
            f"--{key}={value}"
            for key, value in options.items()
            if value is not None and value is not False
        ]
        given = [text.removesuffix("=True") for text in given]
        printed = self.call(str(ROOT / "bench" / script), *arguments, *given)
        return json.loads(printed.splitlines()[-1])

    def tvf(self, name: str, *overrides: str, store: str | None = None) -> dict[str, Any]:
        """Run a sweep; its seconds, and the summaries of its jobs with their epochs."""
        folder = self.work / name
        common = [
            f"data.image_size={self.sizes.size}",
            f"data.limit={self.sizes.limit or 'null'}",
            "data.split_by=cell",
            "tracker=none",
            f"fabric={'gpu' if self.device == 'cuda' else 'cpu'}",
            f"epochs={self.sizes.epochs}",
            f"hydra.sweep.dir={folder}",
        ]
        with gpu_use() as use:
            start = time.perf_counter()
            kept = str(self.work / (store or f"{name}-store"))
            self.call("-c", LAUNCH, "-m", *common, *overrides, TVF_STORE=kept)
            seconds = time.perf_counter() - start
        jobs = []
        for path in sorted(folder.glob("*/summary.json")):
            epochs = (path.parent / "metrics.jsonl").read_text().splitlines()
            jobs.append(json.loads(path.read_text()) | {"rows": [*map(json.loads, epochs)]})
        return {"seconds": seconds, "jobs": jobs, "use": use}


@contextmanager
def gpu_use() -> Any:
    """The GPU's utilisation during the context, in percent; empty if it is not known."""
    use: list[float] = []
    query = [
        "nvidia-smi",
        "--query-gpu=utilization.gpu",
        "--format=csv,noheader,nounits",
        "-lms",
        "250",
    ]
    try:
        sampler = subprocess.Popen(query, stdout=subprocess.PIPE, text=True)
    except OSError:
        yield use
        return
    try:
        yield use
    finally:
        sampler.terminate()
        for line in (sampler.communicate()[0] or "").splitlines():
            with suppress(ValueError):
                use.append(float(line))


def render(rows: list[dict[str, Any]], device: str) -> str:
    """The rows as Markdown; those of a CPU are no results."""
    where = "on a GPU" if device == "cuda" else "on a CPU: a trial of the script, no result"
    lines = [f"# tvf {where}", "", "Written by `python bench/gpu.py`, row by row.", ""]
    for row in rows:
        lines += [f"## {row['row']}", "", "| | |", "|---|---|"]
        for key, value in row.items():
            text = value if isinstance(value, str) else json.dumps(value)
            lines += [f"| {key} | {text.replace('|', '/').replace(chr(10), ' ')} |"] * (
                key != "row"
            )
        lines.append("")
    return "\n".join(lines)
