"""Recipes: how a job trains its fraction, in one phase or several.

A recipe is called with the job's epochs, the number of groups that the job trains, and its early
stopping, and returns phases. A phase has its own groups, epochs, learning rates and patience.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tvf.errors import InputError, require_count, require_number, unknown_key

PHASE_KEYS = ("epochs", "share", "fraction", "lr", "backbone_lr", "patience", "min_delta")


@dataclass(frozen=True)
class EarlyStopping:
    """Ends a phase after `patience` epochs in a row without an improvement over its best epoch.

    An improvement is more than `min_delta`. The phase's best weights are then restored. With a
    patience of None, phases never end early.
    """

    patience: int | None = None
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        _check_stopping("early_stopping", self.patience, self.min_delta)

    def ends(self, scores: Sequence[float | None]) -> bool:
        """Whether a phase with these validation scores, one per epoch, is over."""
        if self.patience is None:
            return False
        best, waited = -math.inf, 0
        for score in scores:
            assert score is not None, "a phase that may end early has scores"
            better = score > best + self.min_delta
            best, waited = (score, 0) if better else (best, waited + 1)
            if waited >= self.patience:
                return True
        return False


@dataclass(frozen=True)
class Phase:
    """A stretch of training with one set of trainable groups and one set of learning rates.

    `groups` counts the job's groups that train besides the head. A learning rate of None is the
    optimizer's. The phase ends after `length` of its epochs, over all of which its schedule spans;
    by default after all.
    """

    epochs: int
    groups: int
    lr: float | None = None
    backbone_lr: float | None = None
    stopping: EarlyStopping = field(default_factory=EarlyStopping)
    length: int | None = None

    def ends(self, scores: Sequence[float | None]) -> bool:
        """Whether the phase is over with these validation scores, one per epoch."""
        return len(scores) == (self.length or self.epochs) or self.stopping.ends(scores)


def end_phases(phases: Sequence[Phase], lengths: Sequence[int]) -> tuple[Phase, ...]:
    """The first phases, each of the given length whatever its scores.

    Raises InputError if there are more lengths than phases, or longer ones.
    """
    most = [phase.epochs for phase in phases]
    given = zip(lengths, most, strict=False)
    if len(lengths) > len(phases) or any(length > epochs for length, epochs in given):
        raise InputError(
            f"refit_epochs={[*lengths]} must have at most the epochs of each phase: {most}."
        )
    return tuple(
        replace(phase, stopping=EarlyStopping(), length=length)
        for phase, length in zip(phases, lengths, strict=False)
    )


@dataclass(frozen=True)
class Direct:
    """One phase: head and groups train together from the first step."""

    def __call__(self, epochs: int, groups: int, stopping: EarlyStopping) -> tuple[Phase, ...]:
        """The one phase."""
        return (Phase(epochs, groups, stopping=stopping),)


@dataclass(frozen=True)
class LpFt:
    """Linear probing, then fine-tuning (LP-FT).

    First the head trains alone for `head_epochs` or, if that is None, until `head_patience` epochs
    in a row show no improvement, for at most half of the epochs. Then head and groups train at
    `lr` and `backbone_lr`. With `head_epochs` 0, or if the job trains only the head, it is the same
    as `Direct`.

    Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform
    Out-of-Distribution".
    """

    head_epochs: int | None = None
    head_patience: int = 2
    lr: float | None = None
    backbone_lr: float | None = None

    def __post_init__(self) -> None:
        if self.head_epochs is not None:
            require_count("recipe.head_epochs", self.head_epochs, 0)
        require_count("recipe.head_patience", self.head_patience, 1)
        _check_learning_rates("recipe", self.lr, self.backbone_lr)

    def __call__(self, epochs: int, groups: int, stopping: EarlyStopping) -> tuple[Phase, ...]:
        """One or two phases. Raises InputError if either of two would get no epoch."""
        if self.head_epochs == 0 or not groups:
            return Direct()(epochs, groups, stopping)
        if self.head_epochs is None:
            head_epochs = epochs // 2
            head_stopping = EarlyStopping(self.head_patience, stopping.min_delta)
        else:
            head_epochs, head_stopping = self.head_epochs, stopping
        if not head_epochs:
            raise InputError(
                f"epochs={epochs} must be at least 2 for the two phases of recipe=lp_ft. "
                "Raise epochs."
            )
        if head_epochs >= epochs:
            raise InputError(
                f"recipe.head_epochs={head_epochs} must be below epochs={epochs}, to leave an "
                "epoch for the second phase. Raise epochs or lower recipe.head_epochs."
            )
        return (
            Phase(head_epochs, 0, stopping=head_stopping),
            Phase(epochs - head_epochs, groups, self.lr, self.backbone_lr, stopping),
        )


@dataclass(frozen=True)
class Gradual:
    """Gradual unfreezing.

    The head trains alone first; then one more group joins every `epochs_each` epochs, deepest
    first, until all of the job's groups train for the rest of the epochs. If there are too few
    epochs for that, several groups join at once.

    Howard & Ruder 2018, "Universal Language Model Fine-tuning for Text Classification".
    """

    epochs_each: int = 1

    def __post_init__(self) -> None:
        require_count("recipe.epochs_each", self.epochs_each, 1)

    def __call__(self, epochs: int, groups: int, stopping: EarlyStopping) -> tuple[Phase, ...]:
        """The phases. Raises InputError if there are epochs for only one."""
        steps = min(groups, (epochs - 1) // self.epochs_each)
        if groups and not steps:
            raise InputError(
                f"recipe.epochs_each={self.epochs_each} must be below epochs={epochs}, to leave an "
                "epoch for a second phase. Raise epochs or lower recipe.epochs_each."
            )
        joined = [round(step * groups / steps) for step in range(steps)] if steps else []
        first = [Phase(self.epochs_each, count, stopping=stopping) for count in joined]
        return (*first, Phase(epochs - steps * self.epochs_each, groups, stopping=stopping))


@dataclass(frozen=True)
class Phases:
    """Phases as listed, each a mapping with `epochs` or a `share` of the job's epochs.

    A phase may also set `fraction` (of the job's groups, in [0, 1]; 1 by default), `lr` and
    `backbone_lr` (by default the optimizer's), `patience` and `min_delta` (by default the job's).
    """

    phases: Sequence[Mapping[str, Any]]

    def __post_init__(self) -> None:
        if isinstance(self.phases, str) or not isinstance(self.phases, Sequence) or not self.phases:
            raise InputError(
                f"recipe.phases={self.phases!r} must be a list of one or more mappings, such as "
                "[{epochs: 2, fraction: 0}, {epochs: 4}]."
            )
        for number, phase in enumerate(self.phases):
            _check_phase(f"recipe.phases[{number}]", phase)
        shares = [phase["share"] for phase in self.phases if "share" in phase]
        if len(shares) == len(self.phases) and not math.isclose(sum(shares), 1, abs_tol=1e-6):
            raise InputError(
                f"recipe.phases must have shares that add up to 1, but they add up to "
                f"{sum(shares):g}. Change one of them."
            )
        # A job's record states that its whole fraction trained.
        if max(phase.get("fraction", 1) for phase in self.phases) < 1:
            raise InputError(
                "recipe.phases must train all of the job's groups in at least one phase "
                "(fraction: 1). To train fewer groups, lower model.pct_unfreeze."
            )

    def __call__(self, epochs: int, groups: int, stopping: EarlyStopping) -> tuple[Phase, ...]:
        """The phases. Raises InputError if their epochs do not add up to the job's."""
        return tuple(
            Phase(
                epochs=length,
                groups=round(phase.get("fraction", 1) * groups),
                lr=phase.get("lr"),
                backbone_lr=phase.get("backbone_lr"),
                stopping=EarlyStopping(
                    patience=phase.get("patience", stopping.patience),
                    min_delta=phase.get("min_delta", stopping.min_delta),
                ),
            )
            for length, phase in zip(self._lengths(epochs), self.phases, strict=True)
        )

    def _lengths(self, epochs: int) -> list[int]:
        """The epochs of each phase; shares are rounded so that they add up."""
        lengths, shared = [], 0.0
        for phase in self.phases:
            before, shared = shared, shared + phase.get("share", 0.0)
            lengths.append(phase.get("epochs") or round(shared * epochs) - round(before * epochs))
        if sum(lengths) != epochs or 0 in lengths:
            raise InputError(
                f"recipe.phases have {', '.join(map(str, lengths))} epochs, which must all be "
                f"above 0 and add up to epochs={epochs}. Change recipe.phases or epochs."
            )
        return lengths


def _check_phase(name: str, phase: object) -> None:
    if not isinstance(phase, Mapping):
        raise InputError(f"{name}={phase!r} must be a mapping, such as {{epochs: 2, fraction: 0}}.")
    for key in phase:
        if key not in PHASE_KEYS:
            raise unknown_key(f"{name}.{key}", PHASE_KEYS, f"{name}.")
    if ("epochs" in phase) == ("share" in phase):
        raise InputError(f"{name} must have either epochs or share, but not both. Set one of them.")
    if "epochs" in phase:
        require_count(f"{name}.epochs", phase["epochs"], 1)
    else:
        require_number(f"{name}.share", phase["share"], 0, 1, above=True)
    require_number(f"{name}.fraction", phase.get("fraction", 1), 0, 1)
    _check_learning_rates(name, phase.get("lr"), phase.get("backbone_lr"))
    _check_stopping(name, phase.get("patience"), phase.get("min_delta", 0.0))


def _check_stopping(name: str, patience: object, min_delta: object) -> None:
    if patience is not None:
        require_count(f"{name}.patience", patience, 1)
    require_number(f"{name}.min_delta", min_delta, 0)


def _check_learning_rates(name: str, lr: object, backbone_lr: object) -> None:
    for key, value in (("lr", lr), ("backbone_lr", backbone_lr)):
        if value is not None:
            require_number(f"{name}.{key}", value, 0, above=True)
