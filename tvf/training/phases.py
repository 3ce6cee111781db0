"""How a job's fraction is trained: as one phase, or as several, each with its groups, epochs, rates and patience.

A recipe is called with the job's epochs, the number of groups that it trains and its early stopping, and lists phases.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tvf.errors import InputError, require_count, require_number, unknown_key


@dataclass(frozen=True)
class EarlyStopping:
    """End a phase when `patience` epochs in a row were not better than its best by more than `min_delta`.

    Its best weights are then put back. `patience` null: never.
    """

    patience: int | None = None
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        _check_stopping("early_stopping", self.patience, self.min_delta)

    def ends(self, scores: Sequence[float]) -> bool:
        """Whether a phase with these validation scores, one an epoch, is over."""
        if self.patience is None:
            return False
        best, waited = -math.inf, 0
        for score in scores:
            better = score > best + self.min_delta
            best, waited = (score, 0) if better else (best, waited + 1)
            if waited >= self.patience:
                return True
        return False


@dataclass(frozen=True)
class Phase:
    """A stretch of training: its epochs, how many of the job's groups train besides the head, and at what rates.

    A rate of None is the optimizer's.
    """

    epochs: int
    groups: int
    lr: float | None = None
    backbone_lr: float | None = None
    stopping: EarlyStopping = field(default_factory=EarlyStopping)


@dataclass(frozen=True)
class Direct:
    """One phase: head and groups together from the first step."""

    def __call__(self, epochs: int, groups: int, stopping: EarlyStopping) -> tuple[Phase, ...]:
        """The one phase."""
        return (Phase(epochs, groups, stopping=stopping),)


@dataclass(frozen=True)
class LpFt:
    """Linear probing, then fine-tuning.

    The head alone for `head_epochs`, or, if that is null, until `head_patience` epochs brought nothing, at most for
    half of the epochs; then head and groups at `lr` and `backbone_lr`. Without a head phase, and for a job that trains
    nothing but the head, it is `Direct`.

    Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution".
    """

    head_epochs: int | None = None
    head_patience: int = 2
    lr: float | None = None
    backbone_lr: float | None = None

    def __post_init__(self) -> None:
        if self.head_epochs is not None:
            require_count("recipe.head_epochs", self.head_epochs, 0)
        require_count("recipe.head_patience", self.head_patience, 1)
        _check_rates("recipe", self.lr, self.backbone_lr)

    def __call__(self, epochs: int, groups: int, stopping: EarlyStopping) -> tuple[Phase, ...]:
        """One or two phases; InputError if no epoch is left for the second."""
        if self.head_epochs == 0 or not groups:
            return Direct()(epochs, groups, stopping)
        head = epochs // 2 if self.head_epochs is None else self.head_epochs
        if not 0 < head < epochs:
            asked = (
                "" if self.head_epochs is None else f"recipe.head_epochs={self.head_epochs} and "
            )
            raise InputError(
                f"{asked}epochs={epochs} cannot be divided between the two phases of recipe=lp_ft, which need one each "
                "at least: raise epochs or lower recipe.head_epochs."
            )
        converged = stopping
        if self.head_epochs is None:
            converged = EarlyStopping(self.head_patience, stopping.min_delta)
        second = Phase(epochs - head, groups, self.lr, self.backbone_lr, stopping)
        return (Phase(head, 0, stopping=converged), second)


@dataclass(frozen=True)
class Gradual:
    """Gradual unfreezing (Howard & Ruder 2018, "Universal Language Model Fine-tuning for Text Classification").

    The head alone, then one group more every `epochs_each` epochs, deepest first, until all of the job's groups train
    for what is left of the epochs. Where these are too few for that, several groups join at once.
    """

    epochs_each: int = 1

    def __post_init__(self) -> None:
        require_count("recipe.epochs_each", self.epochs_each, 1)

    def __call__(self, epochs: int, groups: int, stopping: EarlyStopping) -> tuple[Phase, ...]:
        """The phases; InputError if not even one comes before the last."""
        steps = min(groups, (epochs - 1) // self.epochs_each)
        if groups and not steps:
            raise InputError(
                f"recipe.epochs_each={self.epochs_each} leaves nothing of epochs={epochs} to a second phase: raise "
                "epochs or lower recipe.epochs_each."
            )
        joined = [round(step * groups / steps) for step in range(steps)] if steps else []
        first = [Phase(self.epochs_each, count, stopping=stopping) for count in joined]
        return (*first, Phase(epochs - steps * self.epochs_each, groups, stopping=stopping))


@dataclass(frozen=True)
class Phases:
    """Phases as they are listed, each a mapping with `epochs`, or a `share` of the job's, and, where it is not as the
    job has it, `fraction` (of the job's groups, in [0, 1]), `lr`, `backbone_lr`, `patience` and `min_delta`.
    """

    phases: Sequence[Mapping[str, Any]]

    def __post_init__(self) -> None:
        if isinstance(self.phases, str) or not isinstance(self.phases, Sequence) or not self.phases:
            raise InputError(
                f"recipe.phases={self.phases!r} is refused: list one phase at least, each a mapping."
            )
        known = ("epochs", "share", "fraction", "lr", "backbone_lr", "patience", "min_delta")
        for number, phase in enumerate(self.phases):
            name = f"recipe.phases[{number}]"
            if not isinstance(phase, Mapping):
                raise InputError(
                    f"{name}={phase!r} is refused: a phase is a mapping, such as {{epochs: 2, fraction: 0}}."
                )
            for key in phase:
                if key not in known:
                    raise unknown_key(f"{name}.{key}", known, f"{name}.")
            if ("epochs" in phase) == ("share" in phase):
                raise InputError(f"{name} needs epochs or a share of them, and not both.")
            if "epochs" in phase:
                require_count(f"{name}.epochs", phase["epochs"], 1)
            else:
                require_number(f"{name}.share", phase["share"], 0, 1, above=True)
            require_number(f"{name}.fraction", phase.get("fraction", 1), 0, 1)
            _check_rates(name, phase.get("lr"), phase.get("backbone_lr"))
            _check_stopping(name, phase.get("patience"), phase.get("min_delta", 0.0))
        shares = [phase["share"] for phase in self.phases if "share" in phase]
        if len(shares) == len(self.phases) and not math.isclose(sum(shares), 1, abs_tol=1e-6):
            raise InputError(
                f"recipe.phases have shares that add up to {sum(shares):g}: they must add up to 1."
            )
        if max(phase.get("fraction", 1) for phase in self.phases) < 1:
            raise InputError(
                "recipe.phases never train all of the job's groups, which its record would then be wrong about: lower "
                "model.pct_unfreeze, and give one phase fraction: 1."
            )

    def __call__(self, epochs: int, groups: int, stopping: EarlyStopping) -> tuple[Phase, ...]:
        """The phases; InputError if their epochs do not add up to the job's."""
        lengths, shared = [], 0.0
        for phase in self.phases:
            before, shared = shared, shared + phase.get("share", 0.0)
            lengths.append(phase.get("epochs") or round(shared * epochs) - round(before * epochs))
        if sum(lengths) != epochs or 0 in lengths:
            raise InputError(
                f"recipe.phases have {', '.join(map(str, lengths))} epochs, which must be above 0 each and add up to "
                f"epochs={epochs}: change one or the other."
            )
        return tuple(
            Phase(
                *(
                    length,
                    round(phase.get("fraction", 1) * groups),
                    phase.get("lr"),
                    phase.get("backbone_lr"),
                ),
                EarlyStopping(
                    phase.get("patience", stopping.patience),
                    phase.get("min_delta", stopping.min_delta),
                ),
            )
            for length, phase in zip(lengths, self.phases, strict=True)
        )


def _check_stopping(name: str, patience: object, min_delta: object) -> None:
    if patience is not None:
        require_count(f"{name}.patience", patience, 1)
    require_number(f"{name}.min_delta", min_delta, 0)


def _check_rates(name: str, lr: object, backbone_lr: object) -> None:
    for key, rate in (("lr", lr), ("backbone_lr", backbone_lr)):
        if rate is not None:
            require_number(f"{name}.{key}", rate, 0, above=True)
