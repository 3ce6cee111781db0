"""What bench/gpu.py asks besides times: a card's own limits, and which results are equal.

Prints one line of JSON.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_loops import Work, add_work, read_work, set_switches
from reference import STAGES, TRAINED
from torch import Tensor, nn

from tvf.models import efficientnet_lite0


def convolution_limits(work: Work, fractions: list[float]) -> dict[str, float]:
    """Images a second if each trained convolution ran alone, forward and backward, as a graph."""
    set_switches("tuned")
    network: Any = efficientnet_lite0(2).module.to(work.device)
    network = network.to(memory_format=torch.channels_last)
    shapes: dict[str, Tensor] = {}
    kinds = (nn.Conv2d, nn.Linear)
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, kinds)}
    for name, layer in layers.items():
        layer.register_forward_hook(
            lambda _, inputs, out, name=name: shapes.update({name: inputs[0].detach()})
        )
    images = torch.rand(work.batch, 3, work.size, work.size, device=work.device)
    with torch.no_grad(), work.precision():
        network.eval()(images.contiguous(memory_format=torch.channels_last))
    seconds = {name: _seconds_of(layer, shapes[name], work) for name, layer in layers.items()}
    limits = {}
    for fraction in fractions:
        trained = [name for stage in STAGES[len(STAGES) - TRAINED[fraction] :] for name in stage]
        names = [n for n in layers if n.startswith((*(f"{t}." for t in trained), "classifier"))]
        names += [name for name in layers if name in trained]
        limits[f"{fraction:g}"] = work.batch / sum(seconds[name] for name in {*names})
    return limits


def _seconds_of(layer: nn.Module, example: Tensor, work: Work) -> float:
    """Seconds of a layer's forward and backward pass, without the launching of its kernels."""
    inputs = example.clone().requires_grad_()
    wanted = [inputs, *layer.parameters()]

    def step() -> None:
        with work.precision():
            result = layer(inputs)
        torch.autograd.grad(result, wanted, torch.ones_like(result))

    replay = _as_graph(step) if work.device.type == "cuda" else step
    times = []
    for _ in range(5):
        work.wait()
        start = time.perf_counter()
        for _ in range(10):
            replay()
        work.wait()
        times.append((time.perf_counter() - start) / 10)
    return min(times)


def _as_graph(step: Callable[[], None]) -> Callable[[], Any]:
    """`step` as a CUDA graph; itself if it cannot be captured."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            step()
    except RuntimeError:
        return step
    return graph.replay


def equal_bits(work: Work, kind: str, *more: str) -> dict[str, str]:
    """Which repetitions of a small tvf job have the same epochs, and how far the others differ.

    All with the overrides `more`, which `kind` names.
    """
    from tvf.cli.launch import compose  # registers what conf/ calls
    from tvf.config import validate_config
    from tvf.job import JobContext, run_job

    folder = Path(tempfile.mkdtemp())
    os.environ["TVF_STORE"] = str(folder / "store")

    def losses(name: str, *overrides: str) -> list[float]:
        common = [
            "tracker=none",
            "epochs=2",
            f"data.limit={work.limit or 400}",
            "data.split_by=cell",
            "fabric.compile=off",
        ]
        common += [f"data.image_size={work.size}", f"data.batch_size={work.batch}", "name=job"]
        accelerator = "gpu" if work.device.type == "cuda" else "cpu"
        config = validate_config(compose([*common, f"fabric={accelerator}", *overrides]))
        where = folder / name
        where.mkdir()
        choices = {"model": "finetune", "backbone": "efficientnet_lite0", "data": "elpv"}
        run_job(config, JobContext(where, None, parallel=True, choices=choices))
        lines = (where / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)[key] for line in lines for key in ("train_loss", "val_loss")]

    found = {}
    half, off = "model.pct_unfreeze=0.5", "store.mode=off"
    whole = losses("whole", half, off, *more)
    others = {
        "again": [off],
        "store on": ["store.mode=on"],
        "resident=off": [off, "fabric.resident=off"],
        "compile=on": [off, "fabric.compile=on"],
    }
    for name, options in others.items():
        found[f"{name}{kind}"] = _difference(whole, losses(name, half, *options, *more))
    if work.device.type == "cuda":
        found[f"CPU{kind}"] = _difference(whole, losses("cpu", half, off, "fabric=cpu"))
    return found


def _difference(one: list[float], other: list[float]) -> str:
    if one == other:
        return "equal bit for bit"
    return f"{max(abs(a / b - 1) for a, b in zip(one, other, strict=True)):.1e} relative"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("question", choices=["limits", "bits", "deterministic-bits"])
    add_work(parser)
    arguments = parser.parse_args()
    work = read_work(arguments)
    if arguments.question == "bits":
        print(json.dumps(equal_bits(work, "")))
    elif arguments.question == "deterministic-bits":
        print(json.dumps(equal_bits(work, ", deterministic", "deterministic=true")))
    else:
        print(json.dumps(convolution_limits(work, arguments.fractions)))
