"""The state of training: finished epochs, the current one, and everything needed to resume."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.optim import Optimizer

from tvf.errors import InputError
from tvf.frontier import InputPipeline
from tvf.metrics import METRICS
from tvf.models import FineTuneModel, is_below
from tvf.training.ema import WeightAverage
from tvf.training.generators import random_states, set_random_states
from tvf.training.graphs import PassGraph
from tvf.training.phases import Phase
from tvf.training.schedules import Schedule

# The keys that a state must have to resume from it.
STATE_KEYS = {
    "history",
    "losses",
    "hits",
    "phase",
    "model",
    "best",
    "average",
    "optimizer",
    "scheduler",
    "precision",
    "random",
}
OTHER_NETWORK = (
    "the job's checkpoint is from a different network, although the config is the same: delete its "
    "folder checkpoints/."
)


@dataclass(frozen=True)
class EpochResult:
    """One line of metrics.jsonl.

    `epoch` and `phase` count from 1; the learning rates are those of the epoch's last step. Scores
    are None if no image validates; of two such epochs the later one is better.
    """

    epoch: int
    train_loss: float
    train_acc: float
    val_loss: float | None
    val_acc: float | None
    lr_head: float
    lr_backbone: float | None
    epoch_seconds: float
    images_per_second: float
    val_macro_f1: float | None = None
    val_auroc: float | None = None
    phase: int = 1

    def score(self, metric: str) -> float | None:
        """The validation score for one of METRICS."""
        return getattr(self, f"val_{METRICS[metric]}")

    def better_than(self, other: "EpochResult | None", metric: str = "accuracy") -> bool:
        """Compare by validation metric, then by validation loss; on ties the earlier epoch wins."""
        own, others = self._rank(metric), other and other._rank(metric)
        return own is None or others is None or own > others

    def _rank(self, metric: str) -> tuple[float, float] | None:
        score = self.score(metric)
        return None if score is None or self.val_loss is None else (score, -self.val_loss)


@dataclass(frozen=True)
class PhaseSetup:
    """What a phase trains with. Assumes that the model is frozen as the phase requires.

    `graph` and `val_graph` decide how a GPU computes training steps and validation.
    """

    pipeline: InputPipeline
    optimizer: Optimizer
    schedule: Schedule
    graph: PassGraph | None = None
    val_graph: PassGraph | None = None


class PhaseBuilder(Protocol):
    """Knows a job's phases, and sets up each one when it starts."""

    phases: tuple[Phase, ...]

    def start(self, index: int, previous: Optimizer | None) -> PhaseSetup:
        """Freeze the model for phase `index`, and build what it trains with.

        `previous` is the optimizer of the previous phase, whose momenta and steps are kept.
        """
        ...


@dataclass
class TrainState:
    """The state of a job between two batches.

    `predicted` holds for each epoch in `history` the classes that it predicted for the validation
    images. `losses` and `hits` belong to the batches of the current epoch; `best_of_phase` holds
    the best weights of a phase that may stop early.
    """

    fabric: Fabric
    model: FineTuneModel
    average: WeightAverage | None
    setup: PhaseSetup
    phase: int = 0
    history: list[EpochResult] = field(default_factory=list)
    predicted: list[Tensor] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    hits: list[Tensor] = field(default_factory=list)
    best_of_phase: dict[str, Tensor] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to resume: tensors, numbers, strings, and containers of them."""
        return {
            "history": [asdict(epoch) for epoch in self.history],
            "predicted": torch.stack(self.predicted) if self.predicted else torch.empty(0),
            "losses": torch.stack(self.losses) if self.losses else torch.empty(0),
            "hits": torch.stack(self.hits) if self.hits else torch.empty(0),
            "phase": self.phase,
            "model": trained_weights(self.model),
            "best": self.best_of_phase,
            "average": self.average.state_dict() if self.average else None,
            "optimizer": self.setup.optimizer.state_dict(),
            "scheduler": self.setup.schedule.scheduler.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),  # float16's loss scale
            "random": random_states(),
            "device": self.fabric.device.type,
        }

    def load_progress(self, state: dict[str, Any]) -> None:
        """Restore the epochs, the phase and the weights; the phase can then be set up."""
        self.history = [EpochResult(**row) for row in state["history"]]
        self.predicted = [*state.get("predicted", ())]  # states of earlier versions lack them
        self.losses = [*self.fabric.to_device(state["losses"])]
        self.hits = [*self.fabric.to_device(state["hits"])]
        self.phase, self.best_of_phase = state["phase"], state["best"]
        load_trained_weights(self.model, state["model"])

    def load_setup(self, state: dict[str, Any]) -> None:
        """Restore the state of the optimizer, the schedule, the average and the generators."""
        self.setup.optimizer.load_state_dict(state["optimizer"])
        self.setup.schedule.scheduler.load_state_dict(state["scheduler"])
        if self.average:
            self.average.load_state_dict(state["average"])
        if state["precision"]:  # that of 16-mixed on a CPU has none, and a GPU's scaler starts anew
            self.fabric.strategy.precision.load_state_dict(state["precision"])
        set_random_states(state["random"])


def best_epoch(history: Iterable[EpochResult], metric: str = "accuracy") -> EpochResult | None:
    """The best epoch; None if there is none yet."""
    best = None
    for epoch in history:
        best = epoch if epoch.better_than(best, metric) else best
    return best


def holds_best(state: dict[str, Any], metric: str = "accuracy") -> bool:
    """Whether the weights in a state are the best so far, or no epoch has finished.

    Otherwise the best weights are in a separate file.
    """
    history = [EpochResult(**row) for row in state["history"]]
    return not history or (best_epoch(history, metric) is history[-1] and not len(state["losses"]))


def trained_weights(model: FineTuneModel) -> dict[str, Tensor]:
    """The weights that train in some phase, and every buffer. The rest follows from the config."""
    frozen = _always_frozen(model)
    return {name: value for name, value in model.state_dict().items() if name not in frozen}


def load_trained_weights(model: FineTuneModel, weights: dict[str, Tensor]) -> None:
    """Load `trained_weights` of an earlier run into `model`; InputError if they do not match."""
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:  # shapes differ
        raise InputError(OTHER_NETWORK) from error
    if unexpected or {*missing} - _always_frozen(model):
        raise InputError(OTHER_NETWORK)


def _always_frozen(model: FineTuneModel) -> set[str]:
    trained = model.trained_names()
    heads = [f"module.{head}" for head in model.heads]
    names = (name for name, _ in model.named_parameters())
    return {name for name in names if name not in trained and not is_below(name, heads)}
