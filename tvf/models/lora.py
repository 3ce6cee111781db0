"""LoRA: in the deepest groups every layer gets a low-rank adapter, and only these train.

The network itself stays an ordinary one: what is saved has the adapters in its weights, and weights
that are loaded replace both. See `tvf.models.adapters`.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tvf.errors import InputError, require_count, require_number
from tvf.models.adapters import Adapter, adapter_size, attach, detach, is_adaptable
from tvf.models.backbones import Backbone, run_black_images
from tvf.models.finetune import FineTuneModel, check_dropout
from tvf.models.groups import Group, keep_parameters

KINDS: dict[str, type[nn.Module]] = {"linear": nn.Linear, "conv": nn.Conv2d}


class LoraModel(FineTuneModel):
    """A backbone of which the head trains, and low-rank adapters of layers in some groups.

    `pct_unfreeze`, `unit`, `direction` and `groups` select the groups as in `FineTuneModel`; their
    own weights stay frozen. In them, `layers` chooses what is adapted: "linear", "conv", a regular
    expression for names of layers, or a list of these. The two words stand for layers of which an
    adapter of rank 1 is smaller than the weight; None stands for both. A layer's output changes by
    `alpha` / `rank` times that of its adapter, of whose inputs training drops a share of `dropout`.
    BatchNorm is frozen everywhere. Without `adapt` the network is left as it is, and the weights of
    the layers stand for their adapters. torch's random state does not change. Raises InputError if
    there is nothing to adapt.
    """

    def __init__(
        self,
        backbone: Backbone,
        pct_unfreeze: float | None,
        *,
        rank: int = 8,
        alpha: float = 16.0,
        dropout: float = 0.0,
        layers: str | Sequence[str] | None = None,
        unit: str | None = "groups",
        direction: str = "top",
        groups: Sequence[str] | None = None,
        frozen_bn: str = "eval",
        head_dropout: float = 0.0,
        adapt: bool = True,
    ) -> None:
        check_lora(rank, alpha, dropout, layers)
        super().__init__(
            backbone,
            pct_unfreeze,
            unit=unit,
            direction=direction,
            groups=groups,
            frozen_bn=frozen_bn,
            head_dropout=head_dropout,
        )
        selected = self.trained_groups
        self.rank = rank
        self.trained_groups = _narrow(self.module, selected, layers)
        _check_found(self.module, selected, self.trained_groups, layers)
        self.left_out = _weights_without(self.module, selected, self.trained_groups)
        if adapt:
            self.adapters = nn.ModuleDict()
            with torch.random.fork_rng(devices=[]):
                for path in self._paths():
                    layer: Any = self.module.get_submodule(path)
                    self.adapters[_key(path)] = Adapter(layer, rank, alpha, dropout)
        self.unfreeze()

    def unfreeze(self, count: int | None = None) -> None:
        """Train exactly the head and the adapters in the first `count` of the trained groups."""
        super().unfreeze(count)
        if "adapters" not in self._modules:  # not yet, or never
            return
        training = {name for group in self.unfrozen_groups for name in group.parameters}
        for path in self._paths():
            layer, adapter = self.module.get_submodule(path), self._adapter(path)
            layer.weight.requires_grad_(False)
            trains = f"{path}.weight" in training
            adapter.requires_grad_(trains)
            # A frozen layer whose adapter adds nothing is an ordinary one, for the store as well.
            if trains or not adapter.is_zero:
                attach(layer, adapter)
            else:
                detach(layer)

    def parameters_of(self, group: Group) -> list[nn.Parameter]:
        """The parameters of the adapters in one of the trained groups."""
        paths = map(_layer_of, group.parameters)
        return [parameter for path in paths for parameter in self._adapter(path).parameters()]

    @classmethod
    def trained_sizes(
        cls,
        module: nn.Module,
        groups: Sequence[Group],
        rank: int = 8,
        layers: str | Sequence[str] | None = None,
        **others: Any,
    ) -> dict[str, int]:
        """How many values such a model would train in `groups`, by their names.

        At most: those that `leave_out_unused` would leave out count as well.
        """

        def size(name: str) -> int:
            layer: Any = module.get_submodule(_layer_of(name))
            return adapter_size(layer, rank)

        check_lora(rank, 1, 0, layers)
        narrowed = _narrow(module, groups, layers)
        return {group.name: sum(map(size, group.parameters)) for group in narrowed}

    def trained_names(self) -> set[str]:
        """The names of the adapters' parameters in `state_dict`."""
        return {f"adapters.{name}" for name, _ in self.adapters.named_parameters()}

    def plain_state_dict(self) -> dict[str, Tensor]:
        """The state of the ordinary network with the adapters in its weights; loads anywhere."""
        state = super().plain_state_dict()
        plain = {name: value for name, value in state.items() if not name.startswith("adapters.")}
        for path in self._paths():
            if not (adapter := self._adapter(path)).is_zero:
                name = f"module.{path}.weight"
                weight = plain[name]
                plain[name] = (weight.double() + adapter.change()).to(weight.dtype)
        return plain

    def load_plain_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load the state of an ordinary network; the adapters add nothing to it."""
        for path in self._paths():
            self._adapter(path).reset()
        own = self.state_dict()
        self.load_state_dict(state | {k: v for k, v in own.items() if k.startswith("adapters.")})

    @contextmanager
    def without_adapters(self) -> Iterator[None]:
        """Make all layers ordinary ones inside the context."""
        for path in self._paths():
            detach(self.module.get_submodule(path))
        try:
            yield
        finally:
            self.unfreeze(len(self.unfrozen_groups))

    def leave_out_unused(self, backbone: Backbone, image_size: int) -> None:
        """Adapt no layer that the network does not call, but uses the weight of.

        Raises InputError if none is left.
        """
        called: set[str] = set()
        note: Callable[[str], Any] = lambda path: lambda *_: called.add(path)  # noqa: E731
        paths = self._paths()
        handles = [self.module.get_submodule(p).register_forward_hook(note(p)) for p in paths]
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            run_black_images(backbone, image_size, 1)
        for handle in handles:
            handle.remove()
        for path in paths:
            if path not in called:
                detach(self.module.get_submodule(path))
                del self.adapters[_key(path)]
                self.left_out = [*self.left_out, path]
        weights = {f"{path}.weight" for path in called}
        kept = keep_parameters(self.trained_groups, weights)
        if self.trained_groups and not kept:
            raise InputError(
                "model=lora: the network calls none of the layers to adapt, but only uses their "
                "weights. Choose others with model.layers, or train weights with model=finetune."
            )
        self.trained_groups = kept
        self.unfreeze()

    def what_trains(self) -> str:
        """What of its groups trains."""
        if not self.trained_groups:
            return ""
        ranks = [self._adapter(path).rank for path in self._paths()]
        lower = f" (down to {min(ranks)} in small layers)" if min(ranks) < self.rank else ""
        layers = f"{len(ranks)} layer{'s' * (len(ranks) > 1)}"
        return f"adapters of rank {self.rank}{lower} beside {layers} in "

    def _paths(self) -> list[str]:
        return [_layer_of(name) for group in self.trained_groups for name in group.parameters]

    def _adapter(self, path: str) -> Adapter:
        adapter: Any = self.adapters[_key(path)]
        return adapter


def check_lora(rank: object, alpha: object, dropout: object, layers: object) -> None:
    """Raise InputError if one of LoRA's options is out of range."""
    require_count("model.rank", rank, 1)
    require_number("model.alpha", alpha, 0, above=True)
    check_dropout(dropout, "dropout", "inputs of the adapters")
    if layers is None:
        return
    patterns: list[Any] = [*layers] if isinstance(layers, list | tuple) else [layers]
    for pattern in patterns or [layers]:
        try:
            if not isinstance(pattern, str) or not pattern:
                raise re.error("not text")
            re.compile(pattern)
        except re.error as error:
            raise InputError(
                f"model.layers={pattern!r} ({error}) must be linear, conv, or a regular expression "
                "for names of layers, such as 'conv_pw', or a list of them."
            ) from error


def _narrow(
    module: nn.Module, groups: Sequence[Group], layers: str | Sequence[str] | None
) -> tuple[Group, ...]:
    """`groups` reduced to the weights of the layers that `layers` chooses, see `LoraModel`.

    Weights that several layers share are none of them: what one layer learnt would change all.
    """
    uses = Counter(id(value) for _, value in module.named_parameters(remove_duplicate=False))
    chosen = {
        f"{path}.weight"
        for path, layer in module.named_modules()
        if _is_chosen(path, layer, layers) and uses[id(layer.weight)] == 1
    }
    return keep_parameters(groups, chosen)


def _check_found(
    module: nn.Module,
    groups: Sequence[Group],
    kept: Sequence[Group],
    layers: str | Sequence[str] | None,
) -> None:
    """Raise InputError if nothing in `groups` is adapted, or an entry of `layers` adds nothing."""
    entries = [] if layers is None else _listed(layers)
    found = [_layer_of(name) for group in kept for name in group.parameters]
    missed = [
        entry
        for entry in entries
        if not any(_matches(path, module.get_submodule(path), entry) for path in found)
    ]
    if groups and (missed or not kept):
        names = ", ".join(group.name for group in groups)
        shown = f"model.layers={missed[0] if missed else layers!r}" if layers else "model=lora"
        remedy = "Raise model.pct_unfreeze, or choose other layers; model.layers=null adapts all."
        if layers is None:
            remedy = (
                "Depthwise convolutions and layers that share or standardise their weight get "
                "none. Raise model.pct_unfreeze, or train the layers themselves: model=finetune."
            )
        raise InputError(
            f"{shown}: the groups {names} have no such linear layer or convolution to adapt. "
            f"{remedy}"
        )


def _is_chosen(path: str, layer: Any, layers: str | Sequence[str] | None) -> bool:
    entries = [*KINDS] if layers is None else _listed(layers)
    return is_adaptable(layer) and any(_matches(path, layer, entry) for entry in entries)


def _matches(path: str, layer: Any, entry: str) -> bool:
    """Whether `entry`, a kind or a regular expression, chooses this adaptable layer."""
    if entry not in KINDS:
        return bool(re.search(entry, path))
    kind: Any = KINDS[entry]
    return isinstance(layer, kind) and adapter_size(layer, 1) < layer.weight.numel()


def _listed(layers: str | Sequence[str]) -> list[str]:
    return [layers] if isinstance(layers, str) else [*layers]


def _weights_without(
    module: nn.Module, groups: Sequence[Group], adapted: Sequence[Group]
) -> list[str]:
    """The layers in `groups` with a weight matrix or kernel that is not adapted.

    And other such parameters, such as the position embedding of a transformer.
    """
    own = {name for group in adapted for name in group.parameters}
    names = [name for group in groups for name in group.parameters if name not in own]
    return [name.removesuffix(".weight") for name in names if module.get_parameter(name).ndim > 1]


def _layer_of(name: str) -> str:
    """The path of the layer that has the parameter."""
    return name.rpartition(".")[0]


def _key(path: str) -> str:
    return path.replace(".", "/")  # which ModuleDict does not allow
