"""A linear probe of all depths: the network stays frozen, and the head reads every group's output.

Head2Toe (Evci, Dumoulin, Larochelle and Mozer 2022) without its selection of features: what a
pretrained network knows about other images is often not in its last layer.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from tvf.errors import InputError
from tvf.models.backbones import Backbone, explain
from tvf.models.finetune import TransferModel
from tvf.models.groups import Group, is_below

SPREAD_FLOOR = 1e-3  # added to variances: features that hardly vary are mostly noise


class ProbeModel(TransferModel):
    """A frozen backbone with a linear head on the pooled outputs of all its groups, side by side.

    The deepest group's output is what the backbone's own head reads. Each depth counts the same,
    however wide. `image_size` is that of the images, in pixels per side; `frozen_bn` and
    `head_dropout` are as in `FineTuneModel`. Raises InputError for a network that torch.fx cannot
    trace, or of which no group has an output to pool.
    """

    def __init__(
        self,
        backbone: Backbone,
        image_size: int,
        frozen_bn: str = "eval",
        head_dropout: float = 0.0,
    ) -> None:
        super().__init__(_tap(backbone, image_size), frozen_bn, head_dropout)

    def train(self, mode: bool = True) -> "ProbeModel":
        """Like nn.Module.train, but the network itself is always in eval mode."""
        super().train(mode)
        self.probe.features.eval()
        return self

    @property
    def probe(self) -> "DepthProbe":
        """The network and its head."""
        assert isinstance(self.module, DepthProbe)
        return self.module


class DepthProbe(nn.Module):
    """Logits [N, classes] from the outputs of `features`, pooled over space or tokens.

    `depths` are by the names of those to read the dimensions to pool over, and the width.
    """

    def __init__(
        self, features: nn.Module, depths: Mapping[str, tuple[tuple[int, ...], int]], classes: int
    ) -> None:
        super().__init__()
        self.features = features
        self.depths = dict(depths)
        self.head = nn.Linear(sum(width for _, width in depths.values()), classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of normalised images [N, 3, H, W]."""
        outputs, pooled = self.features(images), []
        for name, (dimensions, width) in self.depths.items():
            output = outputs[name].float()
            pooled.append((output.mean(dimensions) if dimensions else output) / width**0.5)
        return self.head(torch.cat(pooled, 1))

    def standardise(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The mean of each column of the head's inputs [N, width], and the scale to divide it by.

        With it each depth has about the same variance, in float64.
        """
        of_columns = [width for _, width in self.depths.values() for _ in range(width)]
        widths = torch.tensor(of_columns, dtype=torch.float64)
        spread = (features.double().var(0, correction=0) * widths + SPREAD_FLOOR).sqrt()
        return features.double().mean(0), spread


def pooled_dimensions(output: object) -> tuple[int, ...] | None:
    """The dimensions of space or tokens in a layer's output; None if it is nothing to pool.

    Maps are [N, width, H, W], or [N, H, W, width] where H = W and width differs; tokens are
    [N, tokens, width], and vectors [N, width], of which there is nothing to take the mean.
    """
    if not isinstance(output, Tensor) or not output.is_floating_point():
        return None
    if output.ndim == 4:
        _, a, b, c = output.shape
        return (1, 2) if a == b != c else (2, 3)
    return {3: (1,), 2: ()}.get(output.ndim)


def output_layers(module: nn.Module, group: Group) -> list[str]:
    """The paths of the largest layers all of whose parameters are in `group`.

    The last to run has the group's output.
    """
    names, found = set(group.parameters), list[str]()
    for path, layer in module.named_modules():
        own = {name for name, _ in layer.named_parameters(prefix=path)}
        if own and own <= names and not is_below(path, found):
            found.append(path)
    return found


def _tap(backbone: Backbone, image_size: int) -> Backbone:
    """The backbone as a DepthProbe, with a new head; it shares the layers of the old one."""
    module, head = backbone.module, backbone.module.get_submodule(backbone.head)
    classes = int(next(reversed([*head.parameters()])).shape[0])
    module.set_submodule(backbone.head, nn.Identity())  # whose output is what the head reads
    modes = {layer: layer.training for layer in module.modules()}
    try:
        features, outputs = _extract(backbone, module.eval(), image_size)
    finally:
        module.set_submodule(backbone.head, head)
        for layer, mode in modes.items():
            layer.training = mode
    found = {name: pooled_dimensions(output) for name, output in outputs.items()}
    depths = {
        name: (dimensions, outputs[name].shape[1 if dimensions in ((), (2, 3)) else -1])
        for name, dimensions in found.items()
        if dimensions is not None
    }
    probe = DepthProbe(features, depths, classes)
    kept = {name for name, _ in features.named_parameters()}
    groups = (
        replace(each, parameters=tuple(f"features.{n}" for n in each.parameters if n in kept))
        for each in backbone.groups
    )
    left = tuple(group for group in groups if group.parameters)
    return replace(backbone, module=probe, head="head", groups=left, more_heads=())


def _extract(
    backbone: Backbone, module: nn.Module, image_size: int
) -> tuple[nn.Module, dict[str, Any]]:
    """A network that returns the groups' outputs by their names, and these for images of noise."""
    how = {"tracer_kwargs": _tracing(module), "suppress_diff_warning": True}
    example = torch.rand(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    try:
        _, nodes = get_graph_node_names(module, **how)
        extractor: Any = create_feature_extractor(module, _find_taps(backbone, nodes), **how)
        features = fx.GraphModule(extractor, extractor.eval_graph)
        with torch.no_grad():
            return features, features(example)
    except Exception as error:  # a network's code can do anything with symbolic values
        raise InputError(
            f"model=probe needs a network that torch.fx can trace, to read its groups' outputs; "
            f"{backbone.name} is not one: {explain(error)} Use model=transfer."
        ) from error


def _find_taps(backbone: Backbone, traced: Sequence[str]) -> dict[str, str]:
    """Where to read the outputs of the groups and of the network before its head: names by path.

    The shallowest comes first. Groups whose layers are not called as modules are left out.
    """

    def last(path: str) -> int:
        found = [i for i, node in enumerate(traced) if node == path or node.startswith(f"{path}.")]
        return found[-1] if found else -1

    taps = {}
    for group in reversed(backbone.groups[1:]):
        path = max(output_layers(backbone.module, group), key=last, default=None)
        if path is not None and last(path) >= 0:
            taps[path] = group.name
    return taps | {backbone.head: "head"}


def _tracing(module: nn.Module) -> dict[str, Any]:
    """How to trace: BatchNorm, and what timm marks, stay as they are."""
    timm: Any = sys.modules.get("timm.layers")
    marked = tuple(timm.get_notrace_modules()) if timm else ()
    functions = [f for f in timm.get_notrace_functions() if callable(f)] if timm else []
    whole = {type(layer) for layer in module.modules() if isinstance(layer, (_BatchNorm, *marked))}
    return {"leaf_modules": [*whole], "autowrap_functions": functions}
