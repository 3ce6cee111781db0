"""What a process knows of the networks of its jobs, so that a sweep finds it out once.

How a network's nodes behave, whether its prefix and suffix reproduce it, and how long the prefix
takes follow from its code, its weights and its mode.
"""

from dataclasses import dataclass, field
from typing import Any

from lightning_fabric import Fabric
from torch import Tensor, nn

from tvf.findings import recall, remember
from tvf.frontier.trace import NodeInfo
from tvf.models import FineTuneModel
from tvf.store import FingerprintError, fingerprint, fingerprint_layers, numeric_environment

KEPT = 32  # networks in one mode that a process remembers


@dataclass
class Known:
    """What is known of a network in one mode, for images of one size.

    `infos` belong to the nodes of its graph, in their order, and `digests` to the nodes with these
    places that do not depend on the head. `checked` are the fingerprints of cuts whose prefix and
    suffix reproduce the network, `seconds` what an image takes to get to a cut. `key` identifies
    the network, its mode and the images; without it, this is known to one trace alone.
    """

    key: str | None = None
    infos: list[NodeInfo] = field(default_factory=list)
    digests: dict[int, str] = field(default_factory=dict)
    checked: set[str] = field(default_factory=set)
    seconds: dict[str, float] = field(default_factory=dict)

    def keep(self) -> None:
        """Remember it for the next jobs."""
        if self.key is not None:
            remember("networks", self.key, self, KEPT)


def identify(fabric: Fabric, model: Any) -> str | None:
    """What identifies a network and what is frozen in it, apart from the weights of its head.

    `model` is in training mode. None if what is not known may decide what it computes, such as
    adapters or hooks.
    """
    if type(model) is not FineTuneModel:
        return None
    heads = [
        [name, f"{type(layer).__module__}.{type(layer).__qualname__}", str(layer), _shapes(layer)]
        for head in map(model.module.get_submodule, model.heads)
        for name, layer in head.named_modules()
    ]
    frozen = [not parameter.requires_grad for parameter in model.parameters()]
    modes = [layer.training for layer in model.modules()]
    own = [heads, frozen, modes, model.head_dropout, model.mean, model.std]
    try:
        layers = fingerprint_layers(model.module, without=model.heads)
        environment = numeric_environment(fabric, model.module.parameters())
        return fingerprint([layers, own, environment])
    except FingerprintError:
        return None


def _shapes(layer: nn.Module) -> list[Any]:
    return [[name, [*value.shape]] for name, value in layer.state_dict().items()]


def known_of(network: str | None, model: nn.Module, example: Tensor) -> Known:
    """What is known of the network that `network` identifies, in its mode, for such images."""
    if network is None:
        return Known()
    key = fingerprint([network, model.training, [*example.shape[1:]], example.dtype])
    return recall("networks", key) or Known(key)
