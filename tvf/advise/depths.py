"""What a frozen backbone knows at each depth: the pooled outputs of its groups.

They are what the head of model=probe reads, from the store if it has them. Of a network that cannot
be traced, hooks read them in an ordinary pass.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from tvf.frontier import InputPipeline
from tvf.job import JobPhases, probe_inputs
from tvf.models import Backbone, ProbeModel, output_layers, pooled_dimensions

HEAD_INPUT = "input of the head"


@dataclass(frozen=True)
class Depth:
    """The pooled outputs of one group, float32 [N, width], of images to fit on and to judge on."""

    name: str
    train: Tensor
    val: Tensor


def read_depths(phases: JobPhases) -> list[Depth]:
    """The depths of a job whose model is a ProbeModel, shallowest first: see `collect_depths`."""
    assert isinstance(phases.model, ProbeModel)
    widths = {name: width for name, (_, width) in phases.model.probe.depths.items()}
    columns = []
    for split in ("train", "val"):
        rows = probe_inputs(phases, split, np.arange(len(phases.data.by_name[split])))
        columns.append(rows.split([*widths.values()], dim=1))
    *above, last = widths
    names = [*above, HEAD_INPUT if last == "head" else last]
    return [
        Depth(name, *(part * width**0.5 for part in parts))  # the probe has divided by it
        for name, width, *parts in zip(names, widths.values(), *columns, strict=True)
    ]


def collect_depths(pipeline: InputPipeline, backbone: Backbone, batch_size: int) -> list[Depth]:
    """Pass the training and validation images through the network, unaugmented, in eval mode.

    Returns a depth for each group, shallowest first, and one for what the head reads. Leaves out
    groups whose layers are not called as modules, or whose output is no map, tokens or vector, and
    those whose pooled output is what the head reads.
    """
    layer = backbone.module.get_submodule
    taps = [
        (group.name, [*map(layer, output_layers(backbone.module, group))])
        for group in backbone.groups[::-1]
    ]
    found = [_pass(pipeline, split, backbone, taps, batch_size) for split in ("train", "val")]
    train, val = found
    read = train.get(HEAD_INPUT)
    return [
        Depth(name, train[name], val[name])
        for name in train
        if name == HEAD_INPUT or read is None or not _is_same(train[name], read)
    ]


def pool(output: object) -> Tensor | None:
    """A layer's output, its mean over space or tokens, float32 [N, width]; None if it has none."""
    if isinstance(output, tuple | list) and output:
        output = output[0]
    dimensions = pooled_dimensions(output)
    if dimensions is None or not isinstance(output, Tensor):
        return None
    output = output.detach().float()
    return output.mean(dimensions) if dimensions else output


def _pass(
    pipeline: InputPipeline,
    split: str,
    backbone: Backbone,
    taps: Sequence[tuple[str, list[nn.Module]]],
    batch_size: int,
) -> dict[str, Tensor]:
    """The pooled outputs of the images of a split, by name, shallowest first."""
    inputs = pipeline.evaluate(split)
    samples = np.arange(len(pipeline.data.by_name[split]))
    batches = np.split(samples, range(batch_size, len(samples), batch_size))
    rows: dict[str, list[Tensor]] = {name: [] for name, _ in taps} | {HEAD_INPUT: []}
    with torch.no_grad(), _tapped(backbone, taps) as outputs:
        for tensors in inputs.batches(batches):
            outputs.clear()
            inputs.module(*tensors)
            for name, pooled in outputs.items():
                if pooled is not None:
                    rows[name].append(pooled.cpu())
    whole = {name: torch.cat(parts) for name, parts in rows.items() if len(parts) == len(batches)}
    return {name: rows for name, rows in whole.items() if len(rows) == len(samples)}


@contextmanager
def _tapped(
    backbone: Backbone, taps: Sequence[tuple[str, list[nn.Module]]]
) -> Iterator[dict[str, Tensor | None]]:
    """A context in which each pass leaves its pooled outputs in the dict that is yielded."""
    outputs: dict[str, Tensor | None] = {}

    def keep(name: str, output: object) -> None:
        outputs[name] = pool(output)

    head = backbone.module.get_submodule(backbone.head)
    hooks = [head.register_forward_pre_hook(lambda _, inputs: keep(HEAD_INPUT, inputs))]
    for name, layers in taps:
        for layer in layers:
            hooks.append(
                layer.register_forward_hook(lambda _, __, output, name=name: keep(name, output))
            )
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def _is_same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-4, atol=1e-5)
