"""What training spends its time on, by kind of operator, and how near that is to its roof.

Trains a job of each fraction for one epoch under torch's profiler, with one thread, on activations
that an earlier job has left in the store. The roof of an operator is the larger of two times: its
floating-point operations at the rate of a large matrix product, and its inputs and outputs, each
once, at the rate of copying a large tensor. Both rates are measured beside each job. Operators that
stay in the processor's caches can be faster than the second.

    python bench/roof.py                              # fractions 0.25, 0.5 and 1
    python bench/roof.py 0.5 -- data.image_size=64    # with other options
"""

import argparse
import contextlib
import math
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from tvf import cli

BYTES = 4  # of a float32
POINTWISE, DEPTHWISE, OTHER = "1 × 1", "depthwise", "other"
KINDS = {  # how often each tensor of the first input's size is read or written
    "aten::native_batch_norm": ("BatchNorm", 3),
    "aten::native_batch_norm_backward": ("BatchNorm, backward", 5),
    "aten::clamp": ("ReLU6", 2),
    "aten::hardtanh": ("ReLU6", 2),
    "aten::hardtanh_backward": ("ReLU6, backward", 3),
    "aten::mul": ("sums of products", 3),
    "aten::sum": ("sums of products", 1),
    "aten::copy_": ("copies", 2),
    "aten::fill_": ("copies", 1),
}
Shape = Sequence[int]


def main() -> None:
    """Print a table for each fraction."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("fractions", nargs="*", type=float, default=[0.25, 0.5, 1.0])
    separator = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    fractions = parser.parse_args(sys.argv[1:separator]).fractions
    overrides = sys.argv[separator + 1 :]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for fraction in fractions:
            common = [f"model.pct_unfreeze={fraction}", "epochs=1", "threads=1", "tracker=none"]
            common += [f"store.dir={folder}/store", *overrides]
            train([*common, f"hydra.run.dir={folder}/{fraction}/first"])
            rates = flops_rate(), copy_rate()
            with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
                train([*common, f"hydra.run.dir={folder}/{fraction}/profiled"])
            events = profiler.key_averages(group_by_input_shape=True)
            print(*table(fraction, events, *rates), sep="\n", flush=True)


def train(overrides: Sequence[str]) -> None:
    """Train one job in this process."""
    sys.argv = ["train.py", *overrides]
    with contextlib.suppress(SystemExit):
        cli.train()
    assert (Path(overrides[-1].partition("=")[2]) / "summary.json").exists()


def flops_rate() -> float:
    """Floating-point operations per second of a large matrix product."""
    one, other = torch.randn(768, 768), torch.randn(768, 768)
    return 2 * 768**3 / least_seconds(lambda: one @ other)


def copy_rate() -> float:
    """Bytes per second, read and written, of a large copy."""
    source, target = torch.randn(16_000_000), torch.empty(16_000_000)
    return 2 * BYTES * len(source) / least_seconds(lambda: target.copy_(source))


def least_seconds(work: Callable[[], Any]) -> float:
    """The least of some repetitions."""
    times = []
    for _ in range(9):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def table(fraction: float, events: Iterable[Any], flops: float, copied: float) -> Iterator[str]:
    """The lines of a fraction's table in Markdown."""
    seconds: dict[str, float] = defaultdict(float)
    roof: dict[str, float] = defaultdict(float)
    events = list(events)
    outputs = {  # of a convolution, by the shapes of its input and its weights
        (str(e.input_shapes[1]), str(e.input_shapes[2])): e.input_shapes[0]
        for e in events
        if e.key == "aten::convolution_backward"
    }
    for event in events:
        kind, operations, moved = _count(event, outputs)
        seconds[kind] += event.self_cpu_time_total / 1e6
        roof[kind] += event.count * max(operations / flops, BYTES * moved / copied)
    total = sum(seconds.values())
    yield f"\npct_unfreeze={fraction:g}: {flops / 1e9:.0f} GFLOP/s, {copied / 1e9:.1f} GB/s\n"
    yield "| operators | share of the time | of their roof |"
    yield "|---|---|---|"
    for kind in sorted(seconds, key=lambda kind: -seconds[kind]):
        reached = f"{roof[kind] / seconds[kind]:.0%}" if roof[kind] else ""
        yield f"| {kind} | {seconds[kind] / total:.0%} | {reached} |"


def _count(event: Any, outputs: dict[tuple[str, str], Shape]) -> tuple[str, float, float]:
    """The kind of an operator, and the operations and numbers of one call; 0 if not known."""
    shapes = event.input_shapes
    if event.key in KINDS:
        kind, times = KINDS[event.key]
        return kind, 0, times * math.prod(shapes[0] if shapes else [0])
    if event.key in ("aten::mm", "aten::addmm"):
        one, other = shapes[:2] if event.key == "aten::mm" else shapes[1:3]
        if len(one) == len(other) == 2:
            numbers = math.prod(one) + math.prod(other) + one[0] * other[1]
            return "matrix products", 2 * math.prod(one) * other[1], numbers
    if event.key == "aten::convolution_backward":
        gradient, images, weight = shapes[:3]
        kind = f"convolutions, backward, {_form(weight)}"
        numbers = 2 * math.prod(gradient) + 2 * math.prod(images) + 2 * math.prod(weight)
        return kind, 4 * math.prod(gradient) * math.prod(weight[1:]), numbers
    if event.key == "aten::mkldnn_convolution":
        images, weight = shapes[:2]
        if output := outputs.get((str(images), str(weight))):  # it is trained
            numbers = math.prod(images) + math.prod(weight) + math.prod(output)
            operations = 2 * math.prod(output) * math.prod(weight[1:])
            return f"convolutions, {_form(weight)}", operations, numbers
    return "everything else", 0, 0


def _form(weight: Shape) -> str:
    if weight[1] == 1:
        return DEPTHWISE
    return POINTWISE if weight[2:] == [1, 1] else OTHER


if __name__ == "__main__":
    main()
