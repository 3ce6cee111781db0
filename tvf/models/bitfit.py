"""Models that train only the smallest parameters of the deepest groups: biases, or normalisation.

Statistics of BatchNorm layers are not parameters: they stay frozen, as `frozen_bn` says, also where
the layer's weight or bias trains. So these models differ from others in what trains alone.
"""

from collections.abc import Callable, Sequence

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from tvf.errors import InputError
from tvf.models.backbones import Backbone
from tvf.models.finetune import FineTuneModel
from tvf.models.groups import Group, keep_parameters

NORMALISATION = (_BatchNorm, _InstanceNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


class _PartialModel(FineTuneModel):
    """Trains the head and, in the selected groups, the parameters that `choose` names."""

    choose: Callable[[nn.Module], set[str]]
    what: str

    def __init__(
        self,
        backbone: Backbone,
        pct_unfreeze: float | None,
        *,
        unit: str | None = "groups",
        direction: str = "top",
        groups: Sequence[str] | None = None,
        frozen_bn: str = "eval",
        head_dropout: float = 0.0,
    ) -> None:
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
        self.trained_groups = keep_parameters(selected, self.choose(self.module))
        if selected and not self.trained_groups:
            where, remedy = "this network", ""
            if keep_parameters(backbone.groups, self.choose(self.module)):
                where = f"the groups {', '.join(group.name for group in selected)}"
                remedy = "raise model.pct_unfreeze, or "
            raise InputError(
                f"there are no {self.what} to train in {where}: {remedy}choose model=lora or "
                "model=finetune."
            )
        self.unfreeze()

    @property
    def statistics_train_in(self) -> tuple[str, ...] | None:
        """The head: outside it all statistics are frozen, also of layers that train in part."""
        return tuple(self.heads)

    @classmethod
    def trained_sizes(cls, module: nn.Module, groups: Sequence[Group]) -> dict[str, int]:
        """How many values such a model would train in `groups`, by their names."""
        return super().trained_sizes(module, keep_parameters(groups, cls.choose(module)))

    def what_trains(self) -> str:
        """What of its groups trains."""
        return f"the {self.what} of " if self.trained_groups else ""


class BitFitModel(_PartialModel):
    """A backbone of which the head trains, and the biases of some groups (Ben Zaken et al. 2022).

    Those of normalisation layers are among them; options as in `FineTuneModel`. Raises InputError
    if the groups have no biases.
    """

    what = "biases"

    @staticmethod
    def choose(module: nn.Module) -> set[str]:
        """The names of all biases: those that end in bias, such as q_bias in some transformers."""
        return {name for name, _ in module.named_parameters() if name.endswith("bias")}


class NormModel(_PartialModel):
    """A backbone of which the head trains, and the normalisation layers of some groups.

    Their weights and biases, not their statistics (Frankle et al. 2021, Mudrakarta et al. 2019);
    options as in `FineTuneModel`. Raises InputError if the groups have no such layers.
    """

    what = "normalisation layers"

    @staticmethod
    def choose(module: nn.Module) -> set[str]:
        """The names of the parameters of torch's normalisation layers, and of those named so."""
        return {
            f"{path}.{name}"
            for path, layer in module.named_modules()
            if isinstance(layer, NORMALISATION) or "norm" in type(layer).__name__.lower()
            for name, _ in layer.named_parameters(recurse=False)
        }
