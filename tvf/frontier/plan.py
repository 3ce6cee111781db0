"""Which splits a phase reads from the store, and at which cuts: decided before its first epoch.

`open_pipeline` turns the pipeline of the full network into one that starts at the frontier. It
traces the model, finds its cut and those of the sibling jobs, and logs the decision.
"""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tvf.data import Augmentation, FlipsAndCrops
from tvf.frontier.activations import ActivationReader
from tvf.frontier.cache_plan import CachePlan, CachePoint
from tvf.frontier.inputs import CachedPipeline, InputPipeline
from tvf.frontier.known import identify
from tvf.frontier.split import Cut, TracedModel
from tvf.frontier.trace import TraceError, preserve_state
from tvf.models import preserve_freezing
from tvf.store import FingerprintError, Store, StoreError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SiblingJobs:
    """Jobs of the sweep that share all or some of this job's frozen layers.

    `freeze` sets `requires_grad` and the training mode of the model as in these jobs; `jobs` is
    their number.
    """

    freeze: Callable[[], None]
    jobs: int


@dataclass(frozen=True)
class CacheOptions:
    """What a phase may cache: its epochs (from 1), the store, and other jobs that use the store.

    `mixed`: the training images are mixed (mixup, cutmix), so they differ in every epoch.
    """

    epochs: range
    store: Store | None
    siblings: Sequence[SiblingJobs] = ()
    mixed: bool = False
    show_progress: bool = False


def open_pipeline(pipeline: InputPipeline, options: CacheOptions, tag: str = "") -> InputPipeline:
    """Return the input pipeline of a phase: through the store if possible and worthwhile.

    `pipeline` is the uncached one; its model must be set up, on its device, in its final memory
    format and freezing. Activations are stored as `store.dtype` says; by default as computed, but
    float32 ones as float16 under mixed precision. Without a store the frozen layers are still
    split off, so that a store does not change the last digits. Mixed training images pass
    through the full network. Logs the decision in one line that begins with `tag`, and in another
    which data live on the device, if it has memory of its own.
    """
    opened = _split_off(pipeline, options, tag)
    opened.settle(options.epochs, tag)
    return opened


def _split_off(pipeline: InputPipeline, options: CacheOptions, tag: str) -> InputPipeline:
    """The pipeline that starts at the frontier; `pipeline` itself if there is nothing before it."""
    try:
        plans = _plan_splits(pipeline, options)
    except (TraceError, FingerprintError) as error:
        message = "%s cannot split off the frozen layers; running the full network: %s."
        log.warning(message, tag, error)
        return pipeline
    verdicts: dict[str, list[str]] = {}  # the splits with each verdict
    if options.mixed and plans.pop("train", None):
        verdicts["not cached: mixup/cutmix images change every epoch"] = ["train"]
    if not plans:
        log.info("%s store: no frozen layers before the first trained one: nothing to cache.", tag)
        return pipeline
    readers, rounding, failed = {}, set(), False
    for name, plan in plans.items():
        entries, verdict = None, "not cached: store.mode=off or the store is not writable"
        if options.store is not None:
            views = _views_of(name, pipeline.augment, options.epochs)
            try:
                plan, entries, verdict = plan.decide(pipeline.fabric, options.store, views)
            except (FingerprintError, StoreError) as error:
                verdict, failed = f"not cached: {error}", True
        verdicts.setdefault(verdict, []).append(name)
        if entries and plan.rounding:
            rounding.add(plan.rounding)
        readers[name] = ActivationReader(
            pipeline.fabric, plan, entries, pipeline.residency, options.show_progress
        )
    decisions = "; ".join(f"{', '.join(names)} {verdict}" for verdict, names in verdicts.items())
    cost = next(iter(plans.values())).cost
    log.log(logging.WARNING if failed else logging.INFO, "%s store: %s (%s)", tag, decisions, cost)
    cached = CachedPipeline(pipeline, readers)
    cached.approximations += sorted(rounding)
    return cached


def _views_of(split: str, augment: Augmentation, epochs: range) -> list[int]:
    """The view in each pass over a split; validation and test images are not augmented."""
    if split == "train":
        return [augment.view_of(epoch) for epoch in epochs]
    return [0] * (len(epochs) if split == "val" else 1)


def _plan_splits(pipeline: InputPipeline, options: CacheOptions) -> dict[str, CachePlan]:
    """Trace the model in both modes and find the cuts; leaves out splits without a prefix."""
    model: Any = pipeline.module.module
    data, fabric = pipeline.data, pipeline.fabric
    dtype = options.store.dtype if options.store else None
    if dtype is None and "mixed" in fabric.strategy.precision.precision:
        dtype = torch.float16
    example = fabric.to_device(data.train.pixels(np.arange(3) % len(data.train)))
    network = identify(fabric, model.train())
    plans: dict[str, CachePlan] = {}
    for training, names in ((True, ("train",)), (False, ("val", "test"))):
        with fabric.autocast():
            trace = TracedModel(model.train(training), example, network)
            model.train()
            points = _find_cache_points(trace, options.siblings, example)
        for name in names if points else ():
            augment = pipeline.augment if training else FlipsAndCrops()
            plans[name] = CachePlan(trace, points, getattr(data, name), augment, dtype)
    return plans


def _find_cache_points(
    trace: TracedModel, siblings: Sequence[SiblingJobs], example: Tensor
) -> list[CachePoint]:
    """Return the siblings' cuts before the model's own, then its own; none without a prefix."""
    own = trace.find_cut()
    if not own.weights:
        return []
    trace.check(own, example)
    cuts, jobs = {own.fingerprint: own}, {own.fingerprint: 0}
    with preserve_freezing(trace.model):
        for sibling in siblings:
            sibling.freeze()
            with suppress(TraceError, FingerprintError):  # the sibling reports its own errors
                cut = trace.find_cut()
                cuts[cut.fingerprint] = cut
                jobs[cut.fingerprint] = jobs.get(cut.fingerprint, 0) + sibling.jobs
    shallower = [cut for cut in cuts.values() if cut.weights and trace.continues(cut, own)]
    return [
        CachePoint(cut, max(jobs[cut.fingerprint], 1), time_prefix(trace, cut, example))
        for cut in (*shallower, own)
    ]


def time_prefix(trace: TracedModel, cut: Cut, example: Tensor) -> float:
    """Return the seconds that one image spends in the prefix.

    Changes neither the model nor torch's random state.
    """
    if cut.fingerprint in trace.known.seconds:
        return trace.known.seconds[cut.fingerprint]
    prefix, images = trace.extract(None, cut), example[torch.arange(8) % len(example)]
    assert prefix is not None

    def run() -> float:
        start = time.perf_counter()
        prefix(images)
        if images.device.type == "cuda":
            torch.cuda.synchronize(images.device)
        return (time.perf_counter() - start) / len(images)

    with preserve_state(trace.model), torch.no_grad():
        trace.model.train(trace.training)
        seconds = min(run() for _ in range(3))
    trace.known.seconds[cut.fingerprint] = seconds
    trace.known.keep()
    return seconds
