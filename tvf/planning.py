"""Which images a job takes from the store, and at which cuts: decided before its first epoch."""

import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from tvf.content import Unkeyable, circumstances, describe
from tvf.data import Dataset, Labelled
from tvf.data.views import Augment, Rows, Views
from tvf.feed import CutFeed, CutPart, Feed, column
from tvf.frontier import Cut, Trace, Untraceable
from tvf.models import FineTuneModel
from tvf.store import Entry, Store, StoreUnusable, gigabytes

log = logging.getLogger(__name__)

# Bytes a second, of disks that are nothing special: what `auto` reckons with.
WRITE_RATE, READ_RATE = 300e6, 1.5e9


@dataclass(frozen=True)
class Sharing:
    """The jobs that pass through the same frozen layers: how many, and a way to freeze the model as each kind does.

    `freezings` each set `requires_grad` and the training mode as one kind of these jobs does.
    """

    jobs: int = 1
    freezings: Sequence[Callable[[], None]] = ()


ALONE = Sharing()


def open_feed(
    fabric: Fabric,
    module: FineTuneModel,
    data: Dataset,
    augment: Views,
    *,
    epochs: int,
    store: Store | None,
    mode: str = "auto",
    dtype: torch.dtype | None = None,
    precision: str = "32-true",
    channels_last: bool = False,
    sharing: Sharing = ALONE,
    show: bool = False,
) -> Feed:
    """The feed of a job: through the store where that can be done and, unless `mode` is "on", where it pays.

    The model must be set up, on its device, in its final memory format and freezing. `dtype` None follows the
    precision: as computed under 32 bits, float16 under mixed precision. Says in a line what was decided. Without a
    store frozen layers are cut off all the same, so that last digits do not depend on it.
    """
    feed = Feed(fabric, module, data, augment)
    mixed = precision != "32-true"
    approximations = [f"precision {precision}"] if mixed else []
    if isinstance(augment.views, int) and augment.views < epochs:
        approximations.append(f"{augment.views} views for {epochs} epochs")
    feed.approximations = approximations
    try:
        dtype = dtype or (torch.float16 if mixed else None)
        plans = _plan(fabric, module, data, augment, store, sharing, dtype, [precision, channels_last])
    except (Untraceable, Unkeyable) as error:
        log.warning("store: not used, every image passes the whole network: %s.", error)
        return feed
    if not plans:
        log.info("store: not used: no layers are frozen before the first one that trains.")
        return feed
    kept: dict[str, Plan] = {}
    if store is not None:
        reads = {"train": epochs, "val": epochs, "test": 1}
        kept = {n: plan for n, plan in plans.items() if mode == "on" or _pays(plan, reads[n], sharing.jobs, store)}
        log.info("store: %s", tell(plans, kept))
    parts = {}
    for name, plan in plans.items():
        try:
            entries = plan.entries(store) if store is not None and name in kept else None
        except StoreUnusable as error:
            log.warning("store: %s images are not kept: %s.", name, error)
            entries = None
        parts[name] = CutPart(
            *(fabric, plan.trace, plan.cuts, plan.planned, entries),
            *(plan.part, plan.augment, plan.dtype, show),
        )
    cut_feed = CutFeed(fabric, module, data, augment, parts)
    cut_feed.approximations = approximations + sorted({plan.narrowed for plan in kept.values() if plan.narrowed})
    return cut_feed


@dataclass(frozen=True)
class Plan:
    """How one part of the data would go through the store: `epochs` views of it, read once an epoch."""

    trace: Trace
    cuts: list[Cut]
    planned: list[bool]
    part: Labelled
    augment: Views
    source: str
    about: str
    dtype: torch.dtype | None
    seconds: float

    @property
    def row_bytes(self) -> int:
        """Bytes that one image takes at the job's own cut."""
        return sum(column(layout, self.dtype).row_bytes for layout in self.cuts[-1].layouts)

    @property
    def narrowed(self) -> str | None:
        """What the store rounds, for the list of approximations."""
        kept = [(layout.dtype, column(layout, self.dtype).dtype) for layout in self.cuts[-1].layouts]
        return next((f"{str(to).removeprefix('torch.')} store" for of, to in kept if of != to), None)

    def distinct(self, epochs: int) -> int:
        """How many different images `epochs` epochs see."""
        rows = Rows(self.augment, len(self.part))
        return sum(len(rows.new(view)) for view in {self.augment.view_of(epoch) for epoch in range(1, epochs + 1)})

    def entries(self, store: Store) -> list[Entry]:
        """The store's entries for the cuts."""
        return [
            store.entry(
                "activations",
                [self.source, cut.key],
                {"about": f"{self.about}, after {', '.join(n.name for n in cut.nodes)}", "cut": cut.digests},
            )
            for cut in self.cuts
        ]


def _plan(
    fabric: Fabric,
    module: FineTuneModel,
    data: Dataset,
    augment: Views,
    store: Store | None,
    sharing: Sharing,
    dtype: torch.dtype | None,
    settings: list[Any],
) -> dict[str, Plan]:
    """Trace the model for training and for evaluation and find the cuts; nothing for parts that have none."""
    model: Any = module.module
    example = fabric.to_device(data.train.images[torch.arange(3) % len(data.train)])
    plain = Augment()
    plans: dict[str, Plan] = {}
    for mode, names in (("train", ("train",)), ("eval", ("val", "test"))):
        with fabric.autocast():
            model.train(mode == "train")
            trace = Trace(model, example)
            chain = []
            for freeze in sharing.freezings:
                freeze()
                chain.append(trace.find_cut())
            model.unfreeze()
            model.train()
            own = trace.find_cut()
            if not own.weights:
                continue
            trace.check(own, example)
            seconds = _time_prefix(trace, own, example)
        for name in names:
            part, views = getattr(data, name), augment if mode == "train" else plain
            source, siblings = "", {}
            if store is not None:
                images = [part.key or part.images, replace(views, views="epochs")]
                source = describe([mode, *images, str(dtype), settings, circumstances(fabric.device)])
                siblings = store.siblings("activations", [source])
            cuts, planned = _order(trace, own, chain, siblings)
            plans[name] = Plan(trace, cuts, planned, part, views, source, f"{name} images", dtype, seconds)
    return plans


def _order(
    trace: Trace, own: Cut, chain: Sequence[Cut], siblings: dict[str, dict[str, Any]]
) -> tuple[list[Cut], list[bool]]:
    """The cuts on the way to `own`, shallow ones first, each computable from the one before it; which are planned."""
    found = {cut.key: (cut, True) for cut in chain if cut.weights}
    for key, noted in siblings.items():
        digests = noted.get("cut")
        if key not in found and isinstance(digests, list) and (cut := trace.locate(digests, own)) and cut.weights:
            found[key] = (cut, False)
    way = sorted((pair for pair in found.values() if trace.continues(pair[0], own)), key=lambda pair: pair[0].depth)
    kept: list[tuple[Cut, bool]] = []
    for pair in way:
        if not kept or trace.continues(kept[-1][0], pair[0]):
            kept.append(pair)
    kept.append((own, True))
    return [cut for cut, _ in kept], [planned for _, planned in kept]


def _time_prefix(trace: Trace, cut: Cut, example: Tensor) -> float:
    """Seconds that one image spends in the prefix."""
    prefix, images = trace.extract(None, cut), example[torch.arange(8) % len(example)]
    assert prefix is not None
    with torch.no_grad():
        prefix(images)
        start = time.perf_counter()
        prefix(images)
    return (time.perf_counter() - start) / len(images)


def _pays(plan: Plan, epochs: int, jobs: int, store: Store) -> bool:
    """Whether keeping activations costs less than computing them anew, if one more job than is known reads them."""
    distinct, read = plan.distinct(epochs), epochs * len(plan.part) * (jobs + 1)
    stored = plan.row_bytes * distinct
    if stored > min(store.max_bytes, shutil.disk_usage(store.folder).free):
        return False
    saved = plan.seconds * (read - distinct)
    return saved > stored / WRITE_RATE + plan.row_bytes * read / READ_RATE


def tell(plans: dict[str, Plan], kept: dict[str, Plan]) -> str:
    """The decision in a line."""
    left = [name for name in plans if name not in kept]
    sentences = []
    for names, verdict in ((list(kept), "kept"), (left, "not kept, it would not pay")):
        if names:
            plan = plans[names[0]]
            what = f"{gigabytes(plan.row_bytes)} and {1e3 * plan.seconds:.1f} ms of frozen layers an image"
            sentences.append(f"{', '.join(names)} {verdict} ({what})")
    return "; ".join(sentences)
