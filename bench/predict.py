"""tvf predict against the bare network: images per second, side by side.

The bare network runs in a loop over decoded images, with all of torch's threads; `tvf predict`
reads the same images from their files and writes CSV. Each of the rounds starts a process of its
own for either, in turn. Prints a line for docs/inference.md.

    python bench/predict.py outputs/sweeps/demo
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import elpv_dataset
import numpy as np
import torch

import tvf
from tvf.cli.predict import PredictOptions, run_predict

BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description="tvf predict against the bare network.")
    parser.add_argument("model", help="the folder of a sweep or a job")
    parser.add_argument("--images", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["bare", "predict"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        print(*measure(given.model, given.images, given.only))
        return
    seconds: dict[str, list[float]] = {"bare": [], "predict": []}
    for _ in range(given.rounds):
        for how, values in seconds.items():
            command = [sys.executable, __file__, given.model, "--images", str(given.images)]
            done = subprocess.run(
                [*command, "--only", how], stdout=subprocess.PIPE, text=True, check=True
            )
            values += map(float, done.stdout.split())
    bare, predict = (median(values) for values in seconds.values())
    print(
        f"{given.images} images, medians of {len(seconds['bare'])}: bare network {bare:.2f} s, "
        f"tvf predict {predict:.2f} s, {bare / predict:.2f} of its rate "
        f"({torch.get_num_threads()} threads)"
    )


def measure(path: str, images: int, how: str, repetitions: int = 5) -> list[float]:
    """The seconds that each repetition takes, after one that is not counted."""
    files = sorted((Path(elpv_dataset.__file__).parent / "data" / "images").glob("*.png"))[:images]
    model = tvf.load(path)
    pixels = torch.from_numpy(np.stack([model.reading.read(str(file)) for file in files]))
    pixels = pixels.permute(0, 3, 1, 2).contiguous()

    @torch.inference_mode()
    def bare() -> None:
        for start in range(0, images, BATCH):
            model.module(pixels[start : start + BATCH])

    def predict() -> None:
        run_predict(
            path, [*map(str, files)], PredictOptions(output=Path("/dev/null"), file_format="csv")
        )

    run, seconds = {"bare": bare, "predict": predict}[how], []
    for _ in range(1 + repetitions):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


if __name__ == "__main__":
    main()
