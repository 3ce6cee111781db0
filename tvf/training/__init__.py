"""Training: recipes and their phases, the loop over epochs, single steps, and scores."""

from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

from tvf.training.ema import STEPS, ExponentialMovingAverage, no_average
from tvf.training.graphs import GRAPH_MODES, PassGraph
from tvf.training.loop import LoopOptions, TrainingLoop
from tvf.training.loss import CrossEntropyLoss, ImageMixing, balanced_weights, no_mixing
from tvf.training.optimizer import DiscriminativeOptimizer, StartingPoint, carry_optimizer_state
from tvf.training.phases import Direct, EarlyStopping, Gradual, LpFt, Phase, Phases, end_phases
from tvf.training.schedules import cosine, make_schedule, one_cycle, plateau
from tvf.training.scores import Scores, compute_scores, require_both_classes
from tvf.training.state import STATE_KEYS, EpochResult, PhaseSetup, best_epoch, holds_best
from tvf.training.step import StepOptions, predict

__all__ = [
    "CrossEntropyLoss",
    "Direct",
    "DiscriminativeOptimizer",
    "EarlyStopping",
    "EpochResult",
    "ExponentialMovingAverage",
    "GRAPH_MODES",
    "Gradual",
    "ImageMixing",
    "LoopOptions",
    "LpFt",
    "PassGraph",
    "Phase",
    "PhaseSetup",
    "Phases",
    "STATE_KEYS",
    "STEPS",
    "Scores",
    "StartingPoint",
    "StepOptions",
    "TrainingLoop",
    "balanced_weights",
    "best_epoch",
    "carry_optimizer_state",
    "compute_scores",
    "cosine",
    "end_phases",
    "holds_best",
    "make_schedule",
    "no_average",
    "no_mixing",
    "one_cycle",
    "plateau",
    "predict",
    "require_both_classes",
    "training_modules",
]


def training_modules() -> list[ModuleType]:
    """The modules of this room, whose code determines the result of training."""
    return [import_module(module.name) for module in iter_modules(__path__, f"{__name__}.")]
