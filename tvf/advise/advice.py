"""Which fractions are promising, for a few per cent of the price of the sweep that settles it.

Three kinds of evidence, each with its cost: what probes read at each depth, how hard the labels
pull at each group, and a short run of each fraction. Only the runs give probabilities; test images
take no part.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from tvf.advise.depths import HEAD_INPUT, Depth, collect_depths, read_depths
from tvf.advise.errors import errors_of, score_of_largest_class
from tvf.advise.gradients import relative_gradients, set_head
from tvf.advise.probes import classify_by_neighbours, join_depths
from tvf.advise.trials import Trial, run_trial, score_trials, take, within_margin
from tvf.config import Config, is_transfer, method_of
from tvf.data import DataSplits
from tvf.errors import InputError
from tvf.job import Job, JobContext, explain_memory, open_job
from tvf.metrics import METRICS, metric_of
from tvf.models import Backbone, fit_ridge
from tvf.records import Predictions, predictions_of
from tvf.training import compute_scores

FRACTIONS = (0.0, 0.25, 0.5, 1.0)
PROMISING = 0.1  # least probability of being within the margin
MOST_IMAGES = 4000  # of each split; more say little more
GRADIENT_IMAGES = 256
# A short run is this part of a job's training, and at most an epoch. The least keeps it from being
# nothing where a job has few images.
RUN_PART, LEAST_RUN = 1 / 8, 256


@dataclass(frozen=True)
class DepthScore:
    """How well validation images are classified from the pooled output at one depth.

    `error` is the standard error of the probe's score, `error_to_end` that of its difference from
    the probe at the end; both for other images (see `tvf.report.standard_errors`).
    """

    name: str
    width: int
    neighbours: float
    probe: float
    error: float = 0.0
    error_to_end: float = 0.0


@dataclass(frozen=True)
class Fraction:
    """What a short run says of a fraction.

    `score` is on the validation images, `error` its standard error for other images,
    `error_to_first` that of its difference from the first of the ranking. `probability` is that of
    being within the margin of the best fraction.
    """

    fraction: float
    groups: tuple[str, ...]
    score: float
    probability: float
    seconds: float
    error: float = 0.0
    error_to_first: float = 0.0


@dataclass(frozen=True)
class Advice:
    """All evidence, and what it cost: `seconds`, by signal; `forward` and `trained` images.

    `fractions` are ranked, the most probable first; of equally probable ones the smallest.
    `all_depths` is the score of a probe on all depths at once, `all_depths_error` the standard
    error of its difference from the best depth; None if there is only one. `baseline` is the score
    of always predicting the largest class.
    `gradients` are relative gradient norms by group, shallowest first. `splits` counts images.
    """

    metric: str
    margin: float
    baseline: float
    splits: Mapping[str, int]
    depths: Sequence[DepthScore]
    all_depths: float | None
    all_depths_error: float | None
    gradients: Mapping[str, float]
    fractions: Sequence[Fraction]
    seconds: Mapping[str, float]
    forward: int
    trained: int
    notes: Sequence[str]

    @property
    def promising(self) -> list[float]:
        """The fractions to compare properly, ascending: at least two."""
        likely = [each for each in self.fractions if each.probability >= PROMISING]
        chosen = likely if len(likely) > 1 else self.fractions[:2]
        return sorted(each.fraction for each in chosen)


def advise(config: Config, context: JobContext) -> Advice:
    """Collect the evidence for a job's config, whatever its fraction. Raises InputError."""
    check_config(config)
    costs = Costs()
    with explain_memory(config, context):
        with costs.timed("setup"):
            opened = ExitStack()
            job = opened.enter_context(open_job(_at(config, 1.0), context))
        with opened:
            whole = job.phases.data
            data = job.phases.data = _limited(whole)
            depths = _depths(job, config, context, costs)
            survey = _survey(job, depths, metric_of(config), costs)
        trials = _run_trials(config, context, whole, costs)
    metric, margin = metric_of(config), config["report"]["margin"]
    scores = score_trials(trials, metric)
    chances = within_margin(scores, margin)
    errors = errors_of([each.predictions for each in trials], metric)
    first = min(range(len(trials)), key=lambda place: (-chances[place], trials[place].fraction))
    tried = [
        Fraction(
            fraction=trial.fraction,
            groups=trial.groups,
            score=float(scores.means[place]),
            probability=chances[place],
            seconds=trial.seconds,
            error=float(errors[place, place]),
            error_to_first=0.0 if place == first else float(errors[place, first]),
        )
        for place, trial in enumerate(trials)
    ]
    return Advice(
        metric=metric,
        margin=margin,
        baseline=score_of_largest_class(data.val.labels, metric),
        splits={"train": len(whole.train), "val": len(whole.val), "judged": len(data.val)}
        | {"run": _run_images(config, data)},
        depths=survey.depths,
        all_depths=survey.all_depths,
        all_depths_error=survey.all_depths_error,
        gradients=survey.gradients,
        fractions=sorted(tried, key=lambda each: (-each.probability, each.fraction)),
        seconds=costs.seconds,
        forward=costs.forward,
        trained=costs.trained,
        notes=survey.notes,
    )


def check_config(config: Config) -> None:
    """Raise InputError for a job of which fractions cannot be judged on validation images."""
    model, data = config["model"], config["data"]
    if is_transfer(model):
        raise InputError(
            f"model={method_of(model).choice} trains none of the groups, so there is no fraction "
            "to advise on: leave model out."
        )
    for option in ("groups", "train"):
        if model.get(option) is not None:
            raise InputError(
                f"model.{option}={model[option]} names what trains, so there is no fraction to "
                "advise on: leave it out, or compare names in a sweep."
            )
    if "pct_unfreeze" not in model:
        raise InputError(
            f"model._target_={model['_target_']!r} has no fraction, model.pct_unfreeze, to advise "
            "on."
        )
    if config["refit_epochs"] is not None:
        raise InputError("refit_epochs must be null: it leaves no validation images to judge on.")
    if data.get("validate_on") == "test":
        raise InputError(
            "data.validate_on=test must be data.validate_on=split: advice is judged on validation "
            "images, and the test images must have no part in a choice."
        )


@dataclass
class Costs:
    """Seconds by signal, and images: forward without gradients, and with a backward pass."""

    seconds: dict[str, float] = field(default_factory=dict)
    forward: int = 0
    trained: int = 0

    @contextmanager
    def timed(self, signal: str) -> Iterator[None]:
        """Add the time in this context to a signal's."""
        start = time.perf_counter()
        yield
        passed = time.perf_counter() - start
        self.seconds[signal] = self.seconds.get(signal, 0.0) + passed


@dataclass(frozen=True)
class _Survey:
    """What one frozen network told."""

    depths: list[DepthScore]
    all_depths: float | None
    all_depths_error: float | None
    gradients: dict[str, float]
    notes: list[str]


def _depths(job: Job, config: Config, context: JobContext, costs: Costs) -> list[Depth]:
    """The outputs of the network's groups for the images of `job`.

    The store has them if a probe of the same network has seen these images.
    """
    data = job.phases.data
    if config["model"].get("init_from") is None:
        with ExitStack() as opened, suppress(InputError):  # it cannot be traced
            with costs.timed("setup"):
                probe = opened.enter_context(open_job(_as_probe(config), context, data))
            with costs.timed("pass"):
                depths = read_depths(probe.phases)
                costs.forward += int(probe.phases.prefix_costs()["prefix_images"])
                return depths
    with costs.timed("pass"):
        costs.forward += len(data.train) + len(data.val)
        return collect_depths(job.phases.pixels(), job.backbone, job.steps.batch_size)


def _as_probe(config: Config) -> dict[str, Any]:
    """The config of a probe of the same network."""
    frozen_bn = config["model"].get("frozen_bn")
    model = {
        "_target_": "tvf.models.ProbeModel",
        "frozen_bn": "recalibrate" if frozen_bn == "recalibrate" else "eval",
    }
    return _at(config, 0.0) | {"model": model}


def _survey(job: Job, depths: Sequence[Depth], metric: str, costs: Costs) -> _Survey:
    data, backbone, size = job.phases.data, job.backbone, job.steps.batch_size
    labels, classes = data.train.labels, len(data.classes)

    def score(logits: Tensor) -> float:
        return _score(logits, data.val.labels, metric)

    found: list[DepthScore] = []
    predicted: list[Predictions] = []
    probe, notes = None, _missing(backbone, depths)
    for depth in depths:
        with costs.timed("neighbours"):
            near = score(classify_by_neighbours(depth.train, labels, depth.val, classes))
        with costs.timed("probe"):
            ridge = fit_ridge(depth.train, labels, classes)
            logits = ridge(depth.val)
            linear = score(logits)
        predicted.append(predictions_of(data.val, logits.numpy()))
        found.append(DepthScore(depth.name, depth.train.shape[1], near, linear))
        probe = ridge if depth.name == HEAD_INPUT else probe
    with costs.timed("all depths"):
        all_depths = None
        if len(depths) > 1:
            logits = _probe_all(depths, labels, classes)
            all_depths = score(logits)
            predicted.append(predictions_of(data.val, logits.numpy()))
    found, all_depths_error = _with_errors(found, predicted, metric)
    if probe is None or not set_head(backbone, probe, labels):
        notes.append(
            "The head is no linear layer on a vector, so gradients were taken under a random head: "
            "trust them less."
        )
    with costs.timed("gradients"):
        few = take(data.train, GRADIENT_IMAGES)
        job.phases.data = replace(data, train=few)
        inputs = job.phases.pixels().evaluate("train")
        gradients = relative_gradients(job.phases.model, inputs, few.labels, size)
        costs.trained += len(few)
    pulls = dict(reversed(gradients.items()))
    return _Survey(found, all_depths, all_depths_error, pulls, notes)


def _with_errors(
    found: list[DepthScore], predicted: Sequence[Predictions], metric: str
) -> tuple[list[DepthScore], float | None]:
    """The depths with their standard errors, and that of all of them minus the best.

    `predicted` are the probes' predictions, in order, and those of all depths at once, if any.
    """
    if not found:
        return found, None
    errors, end = errors_of(predicted, metric), len(found) - 1
    best = max(range(len(found)), key=lambda place: found[place].probe)
    with_errors = [
        replace(
            each,
            error=float(errors[place, place]),
            error_to_end=0.0 if place == end else float(errors[place, end]),
        )
        for place, each in enumerate(found)
    ]
    return with_errors, float(errors[-1, best]) if len(predicted) > len(found) else None


def _probe_all(depths: Sequence[Depth], labels: Tensor, classes: int) -> Tensor:
    """Validation logits of a probe that reads all depths at once."""
    train = [depth.train for depth in depths]
    ridge = fit_ridge(join_depths(train, train), labels, classes, standardise=False)
    return ridge(join_depths([depth.val for depth in depths], train))


def _run_trials(
    config: Config, context: JobContext, whole: DataSplits, costs: Costs
) -> list[Trial]:
    """A short run of each fraction; fractions that train the same groups run once."""
    data, trials = _limited(whole), []
    images = _run_images(config, data)
    for fraction in FRACTIONS:
        with costs.timed("setup"):
            opened = ExitStack()
            job = opened.enter_context(open_job(_at(config, fraction), context, whole))
        with opened, costs.timed("runs"):
            trained = tuple(group.name for group in job.phases.model.trained_groups)
            if trained in [trial.groups for trial in trials]:
                continue
            trials.append(run_trial(job, fraction, data, images))
            costs.trained += images
            costs.forward += len(data.val)
    return trials


def _run_images(config: Config, data: DataSplits) -> int:
    """The training images of a short run."""
    part = round(RUN_PART * config["epochs"] * len(data.train))
    return min(len(data.train), max(part, LEAST_RUN))


def _at(config: Config, fraction: float) -> dict[str, Any]:
    """The config of a single-device job at a fraction."""
    return {
        **config,
        "model": {**config["model"], "pct_unfreeze": fraction},
        "fabric": {**config["fabric"], "devices": 1},
        "epochs": 1,
        "recipe": {"_target_": "tvf.training.Direct"},
    }


def _limited(data: DataSplits) -> DataSplits:
    """At most MOST_IMAGES of each split; InputError without validation images."""
    if not len(data.val):
        raise InputError(
            "there are no validation images to judge on: give the val split images, or set "
            "data.val_fraction."
        )
    train, val = take(data.train, MOST_IMAGES), take(data.val, MOST_IMAGES)
    return replace(data, train=train, val=val)


def _score(logits: Tensor, labels: Tensor, metric: str) -> float:
    accuracy = float((logits.argmax(1) == labels).double().mean())
    scores = compute_scores(logits, labels, 0.0, accuracy)
    return float(getattr(scores, METRICS[metric]))


def _missing(backbone: Backbone, depths: Sequence[Depth]) -> list[str]:
    """Which groups gave no features, in a sentence."""
    read = {depth.name for depth in depths}
    deepest = backbone.groups[0].name if HEAD_INPUT in read else None  # may equal the head's input
    missing = [g.name for g in backbone.groups if g.name not in read and g.name != deepest]
    if not missing:
        return []
    return [f"No features of {', '.join(missing)}: no output of a layer of its own to pool."]
