"""How fast images are read, and whether a job's memory grows with their number.

`rate` reads the same JPEG files with torchvision's ImageFolder and a DataLoader of two workers, and
with tvf: decoded anew, and from the store. `memory` trains a head for one epoch on more and more
images, which the store has no room for, and polls the memory that belongs to the job alone
(RssAnon). docs/performance.md has figures. Files are in the system's cache, since they have just
been written, or, for the column "cold", out of it. Nothing is left behind.
"""

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
import psutil
import torch
from PIL import Image

ROOT = Path(__file__).parent.parent
SIZE = 224
CLASSES = ("one", "two")


def write_jpegs(folder: Path, number: int, width: int, height: int) -> None:
    """`number` JPEG files in two classes: smooth noise, each with other bytes at its end."""
    rng = np.random.default_rng(0)
    encoded = []
    for _ in range(64):
        small = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(small).resize((width, height)).save(file, "JPEG", quality=90)
        encoded.append(file.getvalue())
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
    for index in range(number):
        path = folder / CLASSES[index % 2] / f"{index}.jpg"
        path.write_bytes(encoded[index % len(encoded)] + index.to_bytes(4, "little"))


def measure_rate(number: int, repetitions: int) -> Iterator[str]:
    """Images a second of each reader, medians over `repetitions`, in turn; two threads each."""
    from torchvision import datasets, transforms

    from tvf.data.images import read_images
    from tvf.store import Store

    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_jpegs(folder / "images", number, 500, 375)
        paths = sorted((folder / "images").rglob("*.jpg"))
        steps = [transforms.Resize(SIZE), transforms.CenterCrop(SIZE), transforms.PILToTensor()]
        dataset = datasets.ImageFolder(str(folder / "images"), transforms.Compose(steps))
        loader = torch.utils.data.DataLoader(dataset, batch_size=32, num_workers=2)
        store = Store(folder / "store", 10**10)
        filled = read_images(paths, SIZE, store=store).images

        def from_loader() -> int:
            return sum(len(images) for images, _ in loader)

        def anew() -> int:
            return len(read_images(paths, SIZE).images)

        def from_store() -> int:
            pixels = read_images(paths, SIZE, store=store).images
            return sum(len(pixels[rows]) for rows in torch.arange(len(pixels)).split(32))

        assert len(filled) == number
        readers: dict[str, Callable[[], int]] = {
            "ImageFolder + DataLoader, 2 workers": from_loader,
            "tvf, decoded": anew,
            "tvf, from the store": from_store,
        }
        cold: dict[str, list[float]] = {name: [] for name in readers}
        warm: dict[str, list[float]] = {name: [] for name in readers}
        for _ in range(repetitions):
            for name, read in readers.items():
                for seconds in (cold, warm):
                    if seconds is cold:
                        forget_files(folder)
                    start = time.perf_counter()
                    assert read() == number
                    seconds[name].append(time.perf_counter() - start)
    yield f"{number:,} JPEG files of 500×375 pixels, read at {SIZE}; medians of {repetitions}"
    yield ""
    yield "| reader | images/s | cold |"
    yield "|---|---|---|"
    for name in warm:
        rates = [f"{number / median(seconds[name]):,.0f}" for seconds in (warm, cold)]
        yield f"| {name} | {' | '.join(rates)} |"


def forget_files(folder: Path) -> None:
    """Take the files in a folder out of the system's cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure_memory(numbers: list[int], side: int) -> Iterator[str]:
    """Peak memory of a job that decodes its images in each epoch, for these numbers of images.

    They are read at `side` pixels.
    """
    yield f"| images of {side}×{side} | their pixels, GB | seconds | peak memory, MB |"
    yield "|---|---|---|---|"
    for number in numbers:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            write_jpegs(folder / "images", number, side // 2, side // 2)
            (folder / "backbone").mkdir()
            (folder / "backbone" / "small.yaml").write_text("_target_: small_network.make\n")
            (folder / "small_network.py").write_text(NETWORK)
            start = time.perf_counter()
            peak = peak_memory(
                [sys.executable, str(ROOT / "train.py"), "--config-dir", str(folder), *COMMAND]
                + [f"data.root={folder / 'images'}", f"store.dir={folder / 'store'}"]
                + [f"hydra.run.dir={folder / 'job'}", f"data.image_size={side}"]
            )
            seconds = time.perf_counter() - start
            assert (folder / "job" / "summary.json").is_file(), "the job has failed"
        size = number * 3 * side**2 / 1e9
        yield f"| {number:,} | {size:.2f} | {seconds:.0f} | {peak / 2**20:,.0f} |"


# Its layers take little time beside the reading of an image.
NETWORK = """
from torch import nn
from tvf import Backbone, group_by_modules

def make(num_classes):
    first = nn.Conv2d(3, 8, 16, stride=16)
    rest = [nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, num_classes)]
    net = nn.Sequential(first, *rest)
    return Backbone("small", net, head="4", groups=group_by_modules(net, [["0"]]))
"""
COMMAND = (
    "data=image_folder",
    "data.layout=flat",
    "data.duplicates=warn",
    "backbone=small",
    "model=transfer",
    "store.max_gb=0.05",
    "epochs=1",
    "tracker=none",
)


def peak_memory(command: list[str]) -> int:
    """The largest sum, in bytes, of the memory that a command and its children have for themselves.

    Pages of mapped files are not counted: the system takes them back when it needs them. What is
    there in one poll alone does not count either: a process that starts another shares its memory
    with it for a moment, and both would count.
    """
    process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = before = 0
    while process.poll() is None:
        family = [process.pid, *(child.pid for child in process.children(recursive=True))]
        now = sum(map(_own_bytes, family))
        peak, before = max(peak, min(before, now)), now
        time.sleep(0.05)
    return peak


def _own_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it has just ended
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("rate", "memory"))
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--pixels", type=int, default=SIZE, help="per side, for memory")
    parser.add_argument("--repetitions", type=int, default=5)
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if given.what == "rate":
        lines = measure_rate(given.images[0], given.repetitions)
    else:
        lines = measure_memory(given.images, given.pixels)
    for line in lines:
        print(line, flush=True)


if __name__ == "__main__":
    main()
