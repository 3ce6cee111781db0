"""Activations at the frontier for one split: read from the store, or computed by the frozen layers.

Between the pixels and the job's own cut there can be shallower cuts. Each has its own tables in the
store, so a job can continue from the activations that another job computed at a shallower cut.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from tvf.data import ViewRows
from tvf.frontier.cache_plan import CachePlan, OpenEntry, array_spec, view_name
from tvf.frontier.split import TensorLayout
from tvf.store import ArrayTable, StoreError

log = logging.getLogger(__name__)

BLOCK_SIZE = 32  # images that pass through the prefix together

Inputs = Callable[[np.ndarray], tuple[Tensor, ...]]


class ActivationReader:
    """The activations of one split at the last cut of `plan`, the job's own.

    `entries` opens the store entry of each cut; without a store it is None, and every image passes
    through the prefix each time. `images` counts images that passed through the prefix from pixels,
    `continued_images` those that continued from a shallower cut, and `seconds` the time spent in
    the prefix or waiting for the store.
    """

    def __init__(
        self,
        fabric: Fabric,
        plan: CachePlan,
        entries: Sequence[OpenEntry] | None,
        show_progress: bool = False,
    ) -> None:
        self.images = self.continued_images = 0
        self.seconds = 0.0
        self.cached = entries is not None
        self._fabric, self._plan, self._entries = fabric, plan, entries
        self._show_progress = show_progress
        self._cuts = [point.cut for point in plan.points]
        self._last = len(self._cuts) - 1
        self._rows = ViewRows(plan.augment, len(plan.split.pool))
        self._tables: dict[tuple[int, int], ArrayTable] = {}  # by level (index of the cut) and view
        self._extracted: dict[tuple[int | None, int], Any] = {}  # modules between levels
        self._failed: set[int] = set()  # levels that the store could not save
        self._suffix = plan.trace.extract(self._cuts[-1], None)

    def suffix(self, *activations: Tensor) -> Tensor:
        """Return logits.

        Like a module that Fabric set up, except that activations keep their dtype: Fabric would
        round float32 inputs under mixed precision.
        """
        assert self._suffix is not None, "the logits can be computed from any cut"
        with self._fabric.autocast():
            return self._fabric.strategy.precision.convert_output(self._suffix(*activations))

    def inputs(self, view: int) -> Inputs:
        """Return the activations of a view by sample, after filling the gaps in the store.

        Raises StoreError if the store cannot save them.
        """
        if not self.cached:
            return partial(self.compute, view)
        start = time.perf_counter()
        rows = self._rows.rows_of_view(view)[self._plan.split.places]
        tables = {
            table_view: self._table(self._last, table_view).tensors(table_rows)
            for table_view, table_rows in self._rows.by_table(rows).items()
        }
        starts = np.array(self._rows.starts)
        layouts = self._cuts[-1].layouts
        self.seconds += time.perf_counter() - start

        def read(samples: np.ndarray) -> tuple[Tensor, ...]:
            values = _gather(rows[samples], starts, tables)
            return self._fabric.to_device(tuple(map(_unpack, values, layouts)))

        return read

    def compute(self, view: int, samples: np.ndarray) -> tuple[Tensor, ...]:
        """Return the same activations, computed without the store."""
        start = time.perf_counter()
        self.images += len(samples)
        pixels = self._pixels(view, self._plan.split.places[samples])
        values = tuple(self._run(None, self._last, [pixels]))
        self.seconds += time.perf_counter() - start
        return values

    def _table(self, level: int, view: int) -> ArrayTable:
        if (level, view) not in self._tables:
            assert self._entries is not None, "tables exist only with a store"
            shown = self._show_progress and level == self._last
            label = f"frozen layers, view {view}" if view else "frozen layers"
            self._tables[level, view] = self._entries[level](view).table(
                view_name(view),
                len(self._rows.new_samples(view)),
                self._plan.columns(self._cuts[level]),
                partial(self._fill, level, view),
                label if shown else None,
            )
        return self._tables[level, view]

    def _fill(self, level: int, view: int, rows: np.ndarray, wait: bool) -> list[Tensor]:
        """Compute rows of a table, from the deepest shallower cut that has them, or from pixels.

        A planned cut is filled first if it lacks them.
        """
        start, values = self._nearest(level, view, rows, wait)
        if start is None:
            self.images += len(rows)
        else:
            self.continued_images += len(rows)
        results = self._run(start, level, values)
        layouts = self._cuts[level].layouts
        return [
            _pack(result, layout, self._plan.dtype)
            for result, layout in zip(results, layouts, strict=True)
        ]

    def _nearest(
        self, level: int, view: int, rows: np.ndarray, wait: bool
    ) -> tuple[int | None, list[Tensor]]:
        """Return the level to continue from (None: pixels), and the values there."""
        for start in reversed(range(level)):
            table = self._table(start, view)
            planned = self._plan.points[start].jobs > 0
            if start in self._failed or not (planned or table.has(rows)):
                continue
            try:
                values = table.read(rows, wait)
            except StoreError as error:
                self._failed.add(start)
                log.warning("store: activations for other jobs are not cached: %s.", error)
                continue
            layouts = self._cuts[start].layouts
            return start, [_unpack(*pair) for pair in zip(values, layouts, strict=True)]
        return None, [self._pixels(view, self._rows.new_samples(view)[rows])]

    def _pixels(self, view: int, places: np.ndarray) -> Tensor:
        images = self._plan.split.pool.pixels.images[torch.from_numpy(places)]
        return self._plan.augment(images, places, view) if view else images

    def _run(self, start: int | None, end: int, values: Sequence[Tensor]) -> list[Tensor]:
        """Run the frozen layers from one level (None: pixels) to another."""
        if (start, end) not in self._extracted:
            start_cut = None if start is None else self._cuts[start]
            self._extracted[start, end] = self._plan.trace.extract(start_cut, self._cuts[end])
        return run_in_blocks(self._fabric, self._extracted[start, end], values)


def run_in_blocks(
    fabric: Fabric, module: Callable[..., Sequence[Tensor]], values: Sequence[Tensor]
) -> list[Tensor]:
    """Run `module` over `values` block by block, without autograd; results are on its device.

    For very small batches some libraries choose other kernels, which round differently. So a last
    block smaller than half the size is merged with the block before it, and a smaller input is
    padded with repeats to half a block.
    """
    count = len(values[0])
    if count < BLOCK_SIZE // 2:
        repeated = torch.arange(BLOCK_SIZE // 2) % count
        results = run_in_blocks(fabric, module, [value[repeated] for value in values])
        return [result[:count] for result in results]
    bounds = list(range(0, count, BLOCK_SIZE))
    if len(bounds) > 1 and count - bounds[-1] < BLOCK_SIZE // 2:
        bounds.pop()
    blocks = []
    with torch.no_grad(), fabric.autocast():
        for start, stop in zip(bounds, [*bounds[1:], count], strict=True):
            blocks.append(module(*fabric.to_device(tuple(value[start:stop] for value in values))))
    return [torch.cat(tensors) for tensors in zip(*blocks, strict=True)]


def _gather(
    rows: np.ndarray, starts: np.ndarray, tables: Mapping[int, Sequence[Tensor]]
) -> list[Tensor]:
    """Return one tensor per column with the given rows of `tables` (by view; see `ViewRows`)."""
    views = np.searchsorted(starts, rows, side="right") - 1
    within = torch.from_numpy(rows - starts[views])
    if (views == views[0]).all():
        return [tensor[within] for tensor in tables[int(views[0])]]
    columns = next(iter(tables.values()))
    values = [tensor.new_empty(len(rows), *tensor.shape[1:]) for tensor in columns]
    for view in np.unique(views):
        chosen = torch.from_numpy(np.flatnonzero(views == view))
        for value, tensor in zip(values, tables[int(view)], strict=True):
            value[chosen] = tensor[within[chosen]]
    return values


def _pack(value: Tensor, layout: TensorLayout, dtype: torch.dtype | None) -> Tensor:
    value = value.permute(0, 2, 3, 1) if layout.channels_last else value
    packed = value.to(array_spec(layout, dtype).dtype).contiguous()
    if packed.dtype == torch.float16 != value.dtype and not packed.isfinite().all():
        raise StoreError(
            "activations exceed the range of float16: set store.dtype=bfloat16 or float32"
        )
    return packed


def _unpack(value: Tensor, layout: TensorLayout) -> Tensor:
    value = value.to(layout.dtype)
    return value.permute(0, 3, 1, 2) if layout.channels_last else value
