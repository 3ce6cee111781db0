"""How one split uses the store: the cuts where its activations are cached, and their names.

A cached activation is identified by two fingerprints, of its source (the pool's pixels, the
augmentation, the numeric environment) and of its cut (the layers before it and their weights), and
by its image and view. Jobs with equal fingerprints share it, however they divide the pool.
"""

import shutil
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from tvf.data import Augmentation, Split, ViewRows
from tvf.frontier.split import Cut, TensorLayout, TracedModel
from tvf.models import network_parameters
from tvf.store import (
    MORE_ROOM,
    ArraySpec,
    Entry,
    Store,
    count_missing,
    fingerprint,
    format_bytes,
    numeric_environment,
)

OpenEntry = Callable[[int], Entry]  # the entry of a cut that holds this view

# Bytes per second of a typical disk, as store.mode=auto assumes.
WRITE_RATE, READ_RATE = 300e6, 1.5e9


@dataclass(frozen=True)
class CachePoint:
    """A cut, how many jobs of the sweep train on it, and the seconds per image from pixels to it.

    A cut with 0 jobs is read if the store has it, but never filled.
    """

    cut: Cut
    jobs: int
    seconds: float


@dataclass(frozen=True)
class CachePlan:
    """The cache points of one split, from shallow to the job's own.

    `dtype` is the type in which float32 activations are cached; None keeps float32.
    """

    trace: TracedModel
    points: list[CachePoint]
    split: Split
    augment: Augmentation
    dtype: torch.dtype | None

    @property
    def own(self) -> CachePoint:
        """The job's own cache point, at its frontier."""
        return self.points[-1]

    @property
    def cost(self) -> str:
        """Size and compute time of one image's activations, for the log."""
        size, milliseconds = format_bytes(self.row_bytes(self.own.cut)), 1e3 * self.own.seconds
        return f"{size} and {milliseconds:.1f} ms of frozen layers per image"

    @property
    def rounding(self) -> str | None:
        """The dtype that the store rounds activations to, as an approximation; None if none."""
        for point in self.points:
            columns = self.columns(point.cut)
            for layout, column in zip(point.cut.layouts, columns, strict=True):
                if column.dtype != layout.dtype:
                    return f"{str(column.dtype).removeprefix('torch.')} store"
        return None

    def columns(self, cut: Cut) -> list[ArraySpec]:
        """Return the columns of the tables of a cut."""
        return [array_spec(layout, self.dtype) for layout in cut.layouts]

    def row_bytes(self, cut: Cut) -> int:
        """Return the bytes per image at a cut."""
        return sum(column.row_bytes for column in self.columns(cut))

    def source_fingerprints(self, fabric: Fabric) -> tuple[str, str]:
        """Return digests of what the activations depend on besides the cut.

        The first is for images without changes (view 0), the second for augmented ones. Raises
        FingerprintError.
        """
        augment = copy(self.augment)
        object.__setattr__(augment, "views", "epochs")  # the number of views does not change a view
        # The dtype that float32 is stored as: tables of other dtypes are separate.
        stored = array_spec(TensorLayout((), torch.float32, False), self.dtype).dtype
        shared = [
            self.split.pool.fingerprint,
            stored,
            numeric_environment(fabric, network_parameters(self.trace.model)),
        ]
        return fingerprint([*shared, None]), fingerprint([*shared, augment])

    def decide(
        self, fabric: Fabric, store: Store, views: Sequence[int]
    ) -> "tuple[CachePlan, list[OpenEntry] | None, str]":
        """Decide whether passes over the split, with these views, read it from the store.

        Returns the plan with the cache points that are worth storing, functions that open their
        entries (None: not cached), and the decision for the log. Raises FingerprintError or
        StoreError if the split cannot be cached.
        """
        sources = self.source_fingerprints(fabric)
        plan = self._select_points(store, sources, views)
        if store.must_pay and (reason := plan.reason_not_to_cache(plan.own, store, sources, views)):
            return plan, None, f"not cached: {reason}"
        return plan, plan._open_entries(store, sources), "cached"

    def reason_not_to_cache(
        self, point: CachePoint, store: Store, sources: tuple[str, str], views: Sequence[int]
    ) -> str | None:
        """Return why a cut is not worth caching for these passes of its jobs; None if it is.

        Assumes one more job than is known, since most people run another one later.
        """
        view_rows = ViewRows(self.augment, len(self.split.pool))
        shown = [view_rows.rows_of_view(view)[self.split.places] for view in views]
        missing = 0
        for view, rows in view_rows.by_table(np.concatenate(shown)).items():
            folder = store.folder.joinpath("activations", sources[view > 0], point.cut.fingerprint)
            missing += count_missing(folder / view_name(view), rows)
        read = len(views) * len(self.split) * (point.jobs + 1)
        row_bytes = self.row_bytes(point.cut)
        size = row_bytes * missing
        if size > store.max_bytes:
            limit = f"store.max_gb={store.max_bytes / 1e9:g}"
            return f"{format_bytes(size)} exceeds {limit}: raise it"
        if size > (free := shutil.disk_usage(store.folder).free):
            space = format_bytes(free)
            return f"{format_bytes(size)} exceeds the {space} free on disk: {MORE_ROOM}"
        saved = point.seconds * (read - missing)
        if saved >= size / WRITE_RATE + row_bytes * read / READ_RATE:  # equal without images
            return None
        return "recomputing is faster than caching"

    def _select_points(
        self, store: Store, sources: tuple[str, str], views: Sequence[int]
    ) -> "CachePlan":
        """Drop points that are not worth caching, and add cuts that earlier jobs cached."""
        points = {
            point.cut.fingerprint: point
            for point in self.points[:-1]
            if not (store.must_pay and self.reason_not_to_cache(point, store, sources, views))
        }
        kept: dict[str, dict[str, Any]] = {}
        for source in sources:
            kept |= store.entries_below("activations", [source])
        for cut_fingerprint, metadata in kept.items():
            digests = metadata.get("cut")
            if cut_fingerprint not in points and isinstance(digests, list):
                cut = self.trace.locate(digests, self.own.cut)
                if cut is not None and cut.weights:
                    points[cut_fingerprint] = CachePoint(cut, jobs=0, seconds=0)
        chain: list[CachePoint] = []
        for point in sorted(points.values(), key=lambda point: point.cut.depth):
            if self.trace.continues(point.cut, self.own.cut) and (
                not chain or self.trace.continues(chain[-1].cut, point.cut)
            ):
                chain.append(point)
        return replace(self, points=[*chain, self.own])

    def _open_entries(self, store: Store, sources: tuple[str, str]) -> "list[OpenEntry]":
        """Return functions that open the points' entries; open the job's own. Raises StoreError."""

        def opening(cut: Cut) -> OpenEntry:
            """What opens the store's entry of the activations at `cut`, by view."""
            nodes = ", ".join(node.name for node in cut.nodes)

            def open_entry(view: int) -> Entry:
                images = "augmented images" if view else "images"
                metadata = {"about": f"{images}, after {nodes}", "cut": cut.digests}
                return store.entry("activations", [sources[view > 0], cut.fingerprint], metadata)

            return open_entry

        entries = [opening(point.cut) for point in self.points]
        entries[-1](0)
        return entries


def view_name(view: int) -> str:
    """Return the name of a view's table in its store entry."""
    return f"view-{view:04d}"


def array_spec(layout: TensorLayout, dtype: torch.dtype | None) -> ArraySpec:
    """Return how the store saves a tensor of a cut; `dtype` replaces float32 unless it is None."""
    shape = (*layout.shape[1:], layout.shape[0]) if layout.channels_last else layout.shape
    if dtype is None or layout.dtype != torch.float32:
        dtype = layout.dtype
    return ArraySpec(shape, dtype)
