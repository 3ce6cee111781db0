"""Functions that ranks run in tests/distributed/test_ranks.py; few imports, for fast ranks."""

import os
import signal
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import fx, nn
from torch.nn.functional import cross_entropy

from tvf.distributed.collectives import (
    RankStrategy,
    gather,
    global_batchnorm,
    reduce_gradients,
    share_of,
)


def build_fabric(precision: Any = "32-true") -> Fabric:
    fabric = Fabric(
        accelerator="cpu",
        devices=int(os.environ["WORLD_SIZE"]),
        strategy=RankStrategy(),
        precision=precision,
    )
    fabric.launch()
    return fabric


def write(out: str, results: Any) -> None:
    torch.save(results, Path(out) / f"rank{os.environ['LOCAL_RANK']}.pt")


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "lite0":
        import timm

        return timm.create_model("tf_efficientnet_lite0", num_classes=3)
    first: nn.Module = nn.Conv2d(3, 4, 3, stride=2)
    if name == "standardised":
        from timm.layers.std_conv import StdConv2d

        first = StdConv2d(3, 4, 3, stride=2)
    net = nn.Sequential(
        first,
        nn.BatchNorm2d(4, momentum=0.3),
        nn.ReLU(),
        nn.Conv2d(4, 8, 3, stride=2),
        nn.BatchNorm2d(8, momentum=None),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.BatchNorm2d(8, affine=False),
        nn.Flatten(2),
        nn.BatchNorm1d(8),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )
    net.get_parameter("4.weight").requires_grad_(False)
    return fx.symbolic_trace(net) if name == "traced" else net


def train_twice(
    fabric: Fabric | None, name: str, size: int, dtype: torch.dtype, autocast: bool
) -> dict[str, Any]:
    """Outputs, gradients and buffers after two global batches of `size`; None means one process.

    Logits are the second batch's, gradients the sum over both.
    """
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, size, 3, 64, 64, generator=generator).to(dtype)
    labels = torch.randint(0, 3, (2, size), generator=generator)
    net = network(name).to(dtype).to(memory_format=torch.channels_last).train()
    samples, logits = np.arange(size), torch.empty(0)
    if fabric:
        samples = share_of(samples, fabric.global_rank, fabric.world_size)
    for batch in range(2):
        with (
            global_batchnorm(fabric) if fabric else nullcontext(),
            torch.autocast("cpu", enabled=autocast),
        ):
            logits = net(images[batch, samples])
            loss = cross_entropy(logits, labels[batch, samples], reduction="sum") / size
        loss.backward()
    logits = logits.detach()
    if fabric:
        logits = gather(fabric, logits)
        reduce_gradients(fabric, net.parameters())
    gradients = {key: p.grad for key, p in net.named_parameters() if p.grad is not None}
    return {"logits": {"": logits}, "gradients": gradients, "buffers": dict(net.named_buffers())}


def compare(
    fabric: Fabric, name: str, size: int, dtype: torch.dtype, autocast: bool = False
) -> dict[str, float]:
    """The distance of ranks from one process by kind of output, relative to the largest value."""
    one = train_twice(None, name, size, dtype, autocast)
    several = train_twice(fabric, name, size, dtype, autocast)
    found = {}
    for kind, expected in one.items():
        assert expected.keys() == several[kind].keys()
        largest = max(float(tensor.abs().max()) for tensor in expected.values())
        distance = max(
            float((several[kind][key] - tensor).abs().max()) for key, tensor in expected.items()
        )
        found[kind] = distance / largest
    return found


def compare_all(out: str) -> None:
    """Compare ranks and one process over networks, batch sizes and precisions."""
    fabric = build_fabric()
    results = {
        f"{name} {size} {str(dtype).removeprefix('torch.')}": compare(fabric, name, size, dtype)
        for dtype in (torch.float64, torch.float32)
        for name, sizes in (("small", (7, 8, 1)), ("traced", (7,)), ("standardised", (7,)))
        for size in sizes
    }
    for size in (7, 1):
        results[f"lite0 {size} float64"] = compare(fabric, "lite0", size, torch.float64)
    results["small 7 bfloat16"] = compare(fabric, "small", 7, torch.float32, autocast=True)
    write(out, results)


def communicate(out: str) -> None:
    """Run all other collectives. At the end rank 1 is killed while rank 0 waits for it."""
    fabric = build_fabric()
    rank = fabric.global_rank
    results: dict[str, Any] = {"count": torch.get_num_threads()}
    results["gathered"] = [
        gather(fabric, torch.full((own, 2), float(rank)))[:, 0].tolist()
        for own in ((3, 1)[rank], (0, 2)[rank], (2, 0)[rank], 0)
    ]
    results["integers"] = gather(fabric, torch.arange(rank + 1)).tolist()
    results["sum"] = float(fabric.all_reduce(torch.tensor(float(rank + 1)), reduce_op="sum"))  # type: ignore[arg-type]
    results["broadcast"] = fabric.broadcast({"from": rank})
    fabric.barrier()

    torch.manual_seed(0)
    layers = [
        nn.Linear(2, 2, bias=False, dtype=dtype)
        for dtype in (torch.float32, torch.float32, torch.float64)
    ]
    net = nn.ModuleList(layers)
    unused = nn.Parameter(torch.ones(3))
    module, optimizer = fabric.setup(
        net, torch.optim.SGD([*net.parameters(), unused], lr=1.0, weight_decay=0.1)
    )
    results["wrapped"] = type(module.module).__name__
    inputs = torch.ones(1, 2)
    losses = layers[0](inputs).sum() + layers[2](inputs.double()).sum()
    if rank:
        losses = losses + layers[1](inputs).sum()  # on one rank only
    fabric.backward(losses)
    reduce_gradients(fabric, [*net.parameters(), unused])
    results["gradients"] = [float(p.grad[0, 0]) for p in net.parameters() if p.grad is not None]
    results["unused"] = unused.grad
    results["norm"] = float(fabric.clip_gradients(net, optimizer, max_norm=1.0))  # type: ignore[arg-type]
    optimizer.step()
    results["weights"] = gather(fabric, layers[0].weight.detach()[None])
    try:
        with global_batchnorm(fabric):
            nn.BatchNorm1d(2)(torch.ones(1 - rank, 2))
    except ValueError as error:
        results["single"] = str(error)
    write(out, results)
    if rank:
        os.kill(os.getpid(), signal.SIGKILL)
    fabric.barrier()


def sleep(out: str) -> None:
    """Write this process's id to a file, then sleep for two minutes."""
    path = Path(out) / "pid"
    path.with_suffix(".new").write_text(str(os.getpid()))
    path.with_suffix(".new").rename(path)
    time.sleep(120)
