"""What the frozen network knows at each depth, and where the labels pull: one pass, no training."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from tvf.advise.depths import HEAD_INPUT, Depth, collect_depths, read_depths
from tvf.advise.errors import errors_of
from tvf.advise.gradients import relative_gradients, set_head
from tvf.advise.probes import classify_by_neighbours, join_depths
from tvf.advise.trials import take
from tvf.config import Config
from tvf.errors import InputError
from tvf.job import Job, JobContext, open_job
from tvf.metrics import METRICS, metric_of
from tvf.models import Backbone, fit_ridge
from tvf.records import Predictions, predictions_of
from tvf.training import compute_scores

GRADIENT_IMAGES = 256
UNSTORED = "The groups' outputs were read while the network ran, and are not kept in the store"


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
class Survey:
    """What one frozen network told."""

    depths: list[DepthScore]
    all_depths: float | None
    all_depths_error: float | None
    gradients: dict[str, float]
    notes: list[str]


def config_at(config: Config, fraction: float) -> dict[str, Any]:
    """The config of a single-device job at a fraction."""
    return {
        **config,
        "model": {**config["model"], "pct_unfreeze": fraction},
        "fabric": {**config["fabric"], "devices": 1},
        "epochs": 1,
        "recipe": {"_target_": "tvf.training.Direct"},
    }


def survey_network(job: Job, config: Config, context: JobContext, costs: Costs) -> Survey:
    """Read the frozen network of `job`, and where the labels pull at its groups.

    Leaves `job` with the images that gave gradients.
    """
    metric = metric_of(config)
    depths, where = _depths(job, config, context, costs)
    data, backbone, size = job.phases.data, job.backbone, job.steps.batch_size
    labels, classes = data.train.labels, len(data.classes)

    def score(logits: Tensor) -> float:
        return _score(logits, data.val.labels, metric)

    found: list[DepthScore] = []
    predicted: list[Predictions] = []
    probe, notes = None, [*where, *_missing(backbone, depths)]
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
    return Survey(found, all_depths, all_depths_error, pulls, notes)


def _depths(
    job: Job, config: Config, context: JobContext, costs: Costs
) -> tuple[list[Depth], list[str]]:
    """The outputs of the network's groups for the images of `job`, and where they are from.

    The store has them if a probe of the same network has seen these images.
    """
    data, notes = job.phases.data, []
    images = len(data.train) + len(data.val)
    if config["model"].get("init_from") is not None:
        notes.append(f"{UNSTORED}: model.init_from has other weights than the backbone's own.")
    else:
        try:
            with ExitStack() as opened:
                with costs.timed("setup"):
                    probe = opened.enter_context(open_job(_as_probe(config), context, data))
                with costs.timed("pass"):
                    depths = read_depths(probe.phases)
                    passed = int(probe.phases.prefix_costs()["prefix_images"])
            costs.forward += passed
            if passed < images:
                notes.append(f"The store had the groups' outputs of {images - passed:,} images.")
            return depths, notes
        except InputError as error:  # it cannot be traced
            notes.append(f"{UNSTORED}: {error}")
    with costs.timed("pass"):
        costs.forward += images
        depths = collect_depths(job.phases.pixels(), job.backbone, job.steps.batch_size)
        return depths, notes


def _as_probe(config: Config) -> dict[str, Any]:
    """The config of a probe of the same network."""
    frozen_bn = config["model"].get("frozen_bn")
    model = {
        "_target_": "tvf.models.ProbeModel",
        "frozen_bn": "recalibrate" if frozen_bn == "recalibrate" else "eval",
    }
    return config_at(config, 0.0) | {"model": model}


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
