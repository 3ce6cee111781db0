"""Which images a job takes from the store, and at which cuts: decided before its first epoch."""

import logging
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from tvf.data import Augmentation, DataSplits, FlipsAndCrops, Split, ViewRows
from tvf.frontier.inputs import (
    ActivationReader,
    CachedPipeline,
    InputPipeline,
    array_spec,
    view_name,
)
from tvf.frontier.split import Cut, TensorLayout, TracedModel
from tvf.frontier.trace import TraceError, preserve_state
from tvf.models import FineTuneModel, preserve_freezing
from tvf.store import (
    MORE_ROOM,
    Entry,
    FingerprintError,
    Store,
    StoreError,
    fingerprint,
    format_bytes,
    numeric_environment,
)

log = logging.getLogger(__name__)

# Bytes a second, of disks that are nothing special: what `auto` reckons with.
WRITE_RATE, READ_RATE = 300e6, 1.5e9


@dataclass(frozen=True)
class SiblingJobs:
    """Jobs that pass through the same frozen layers and freeze alike: a way to freeze the model so, and how many.

    `freeze` sets `requires_grad` and the training mode.
    """

    freeze: Callable[[], None]
    jobs: int


def open_pipeline(
    fabric: Fabric,
    module: FineTuneModel,
    data: DataSplits,
    augment: Augmentation,
    *,
    epochs: range,
    store: Store | None,
    sharing: Sequence[SiblingJobs] = (),
    mixed: bool = False,
    show: bool = False,
    tag: str = "",
) -> InputPipeline:
    """The feed of a phase: through the store where that can be done and, if the store must pay, where it does.

    The model must be set up, on its device, in its final memory format and freezing. The store keeps activations as its
    `dtype` says, or by default as they are computed, float32 ones under mixed precision as float16. Says in a line,
    which begins with `tag`, what was decided. Without a store frozen layers are cut off all the same, so that last
    digits do not depend on it. Training images that are `mixed`, which makes new ones of them, pass the whole network.
    """
    feed = InputPipeline(fabric, module, data, augment)
    precision = fabric.strategy.precision.precision
    feed.approximations = (
        [f"precision {precision}"] if precision not in ("32-true", "64-true") else []
    )
    dtype = store.dtype if store else None
    if dtype is None and "mixed" in precision:
        dtype = torch.float16
    try:
        plans = _cache_plans(fabric, module, data, augment, sharing, dtype)
    except (TraceError, FingerprintError) as error:
        log.warning(
            "%s frozen layers are not cut off, every image passes the whole network: %s.",
            tag,
            error,
        )
        return feed
    said: dict[str, list[str]] = {}  # of each verdict the parts that it is about
    if mixed and plans.pop("train", None):
        said["not kept, since mixed images are new ones in each epoch"] = ["train"]
    if not plans:
        log.info(
            "%s store: no layers are frozen before the first one that trains: nothing to keep.", tag
        )
        return feed
    parts, narrowed, failed = {}, set(), False
    for name, plan in plans.items():
        entries, verdict = None, "not used (store.mode=off, or it cannot be written)"
        if store is not None:
            try:
                plan, entries, verdict = plan.decided(
                    fabric, store, range(1, 2) if name == "test" else epochs
                )
            except (FingerprintError, StoreError) as error:
                verdict, failed = f"not kept: {error}", True
        said.setdefault(verdict, []).append(name)
        if entries and plan.narrowed:
            narrowed.add(plan.narrowed)
        parts[name] = ActivationReader(
            *(
                fabric,
                plan.trace,
                [step.cut for step in plan.cuts],
                [step.jobs > 0 for step in plan.cuts],
                entries,
            ),
            *(plan.part, plan.augment, plan.dtype, show),
        )
    verdicts = "; ".join(f"{', '.join(names)} {verdict}" for verdict, names in said.items())
    what = next(iter(plans.values())).price
    log.log(logging.WARNING if failed else logging.INFO, "%s store: %s (%s)", tag, verdicts, what)
    cut_feed = CachedPipeline(fabric, module, data, augment, parts)
    cut_feed.approximations = [*feed.approximations, *sorted(narrowed)]
    return cut_feed


@dataclass(frozen=True)
class CachePoint:
    """A cut, how many jobs of the sweep train on it, and the seconds that an image takes to it from pixels."""

    cut: Cut
    jobs: int
    seconds: float


@dataclass(frozen=True)
class CachePlan:
    """How one part of the data would go through the store, by cuts from shallow to the job's own."""

    name: str
    trace: TracedModel
    cuts: list[CachePoint]
    part: Split
    augment: Augmentation
    dtype: torch.dtype | None

    @property
    def price(self) -> str:
        """What keeping an image takes, and computing it, for people."""
        own = self.cuts[-1]
        return f"{format_bytes(self.row_bytes(own))} and {1e3 * own.seconds:.1f} ms of frozen layers an image"

    def decided(
        self, fabric: Fabric, store: Store, epochs: range
    ) -> "tuple[CachePlan, list[Callable[[], Entry]] | None, str]":
        """The plan with its steps in this store, ways to open its entries if it is to be kept, and the verdict.

        Raises Unkeyable or StoreUnusable if it cannot be.
        """
        source = self.source(fabric)
        plan = self.on_the_way(store, source, epochs)
        reason = plan.why_not(plan.cuts[-1], store, source, epochs) if store.must_pay else None
        return (
            (plan, None, f"not kept, {reason}")
            if reason
            else (plan, plan.entries(store, source), "kept")
        )

    @property
    def narrowed(self) -> str | None:
        """What the store rounds, for the list of approximations."""
        kept = [
            (layout.dtype, array_spec(layout, self.dtype).dtype)
            for step in self.cuts
            for layout in step.cut.layouts
        ]
        return next(
            (f"{str(to).removeprefix('torch.')} store" for of, to in kept if of != to), None
        )

    def source(self, fabric: Fabric) -> str:
        """A digest of what the activations depend on besides the cut. Raises Unkeyable."""
        views = copy(self.augment)
        object.__setattr__(views, "views", "epochs")  # how many there are changes none of them
        images = [self.part.key or self.part.images, views]
        # What the store makes of float32: tables of other dtypes lie apart.
        kept = array_spec(TensorLayout((), torch.float32, False), self.dtype).dtype
        return fingerprint(
            [self.trace.training, images, kept, numeric_environment(fabric, self.trace.model)]
        )

    def on_the_way(self, store: Store, source: str, epochs: range) -> "CachePlan":
        """This plan with what the store has from earlier on, and only those steps that are worth it."""
        own, siblings = self.cuts[-1], store.siblings("activations", [source])
        found = {step.cut.key: step for step in self.cuts[:-1]}
        if store.must_pay:
            found = {
                key: step
                for key, step in found.items()
                if not self.why_not(step, store, source, epochs)
            }
        for key, noted in siblings.items():
            digests = noted.get("cut")
            if key not in found and isinstance(digests, list):
                cut = self.trace.locate(digests, own.cut)
                if cut is not None and cut.weights:
                    found[key] = CachePoint(cut, 0, 0)
        steps: list[CachePoint] = []
        for step in sorted(found.values(), key=lambda step: step.cut.depth):
            if self.trace.continues(step.cut, own.cut) and (
                not steps or self.trace.continues(steps[-1].cut, step.cut)
            ):
                steps.append(step)
        return replace(self, cuts=[*steps, own])

    def why_not(self, step: CachePoint, store: Store, source: str, epochs: range) -> str | None:
        """Why a cut's activations should not be kept for `epochs` epochs of its jobs; None if they should.

        One more job is counted than is known.
        """
        rows = ViewRows(self.augment, len(self.part))
        views = {table for epoch in epochs for table in rows.tables(self.augment.view_of(epoch))}
        folder = store.folder.joinpath("activations", source, step.cut.key)
        missing = sum(
            len(rows.new(view))
            for view in views
            if not (folder / f"{view_name(view)}.bin").exists()
        )
        size, read = self.row_bytes(step) * missing, len(epochs) * len(self.part) * (step.jobs + 1)
        if size > store.max_bytes:
            return f"{format_bytes(size)} are more than store.max_gb={store.max_bytes / 1e9:g}: raise it"
        if size > (free := shutil.disk_usage(store.folder).free):
            return f"{format_bytes(size)} are more than the {format_bytes(free)} that are free on its disk: {MORE_ROOM}"
        saved = step.seconds * (read - missing)
        pays = saved > size / WRITE_RATE + self.row_bytes(step) * read / READ_RATE
        return None if pays else "it would not pay"

    def row_bytes(self, step: CachePoint) -> int:
        """Bytes that one image takes at a cut."""
        return sum(array_spec(layout, self.dtype).row_bytes for layout in step.cut.layouts)

    def entries(self, store: Store, source: str) -> list[Callable[[], Entry]]:
        """Ways to open the store's entries for the cuts; the job's own is opened at once. Raises StoreUnusable."""

        def opening(step: CachePoint) -> Callable[[], Entry]:
            about = f"{self.name} images, after {', '.join(node.name for node in step.cut.nodes)}"
            noted = {"about": about, "cut": step.cut.digests}
            return partial(store.entry, "activations", [source, step.cut.key], noted)

        ways = [opening(step) for step in self.cuts]
        ways[-1]()
        return ways


def _cache_plans(
    fabric: Fabric,
    module: FineTuneModel,
    data: DataSplits,
    augment: Augmentation,
    sharing: Sequence[SiblingJobs],
    dtype: torch.dtype | None,
) -> dict[str, CachePlan]:
    """Trace the model for training and for evaluation and find the cuts; nothing for parts that have none."""
    model: Any = module.module
    example = fabric.to_device(data.train.images[torch.arange(3) % len(data.train)])
    plans: dict[str, CachePlan] = {}
    for training, names in ((True, ("train",)), (False, ("val", "test"))):
        with fabric.autocast():
            trace = TracedModel(model.train(training), example)
            model.train()
            own = trace.find_cut()
            if not own.weights:
                continue
            trace.check(own, example)
            jobs, cuts = {own.key: 0}, {own.key: own}
            with preserve_freezing(model):
                for each in sharing:
                    each.freeze()
                    with suppress(TraceError, FingerprintError):  # the other job's matter
                        cut = trace.find_cut()
                        cuts[cut.key] = cut
                        jobs[cut.key] = jobs.get(cut.key, 0) + each.jobs
            shallower = [cut for cut in cuts.values() if cut.weights and trace.continues(cut, own)]
            steps = [
                CachePoint(cut, max(jobs[cut.key], 1), time_prefix(trace, cut, example))
                for cut in (*shallower, own)
            ]
        for name in names:
            plans[name] = CachePlan(
                name,
                trace,
                steps,
                getattr(data, name),
                augment if training else FlipsAndCrops(),
                dtype,
            )
    return plans


def time_prefix(trace: TracedModel, cut: Cut, example: Tensor) -> float:
    """Seconds that one image spends in the prefix. Nothing of the model or of torch's random state changes."""
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
        return min(run() for _ in range(3))
