"""Activations at the frontier for one split: read from the store, or computed by the frozen layers.

Between the pixels and the job's own cut there can be shallower cuts. Each has its own tables in the
store, so a job can continue from the activations that another job computed at a shallower cut.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from tvf.data import Augmentation, ViewRows
from tvf.frontier.cache_plan import CachePlan, OpenEntry, array_spec, view_name
from tvf.frontier.pixels import PixelPass
from tvf.frontier.residency import (
    DeviceRows,
    Feed,
    Inputs,
    Residency,
    Tensors,
    read_ahead,
    take_resident,
)
from tvf.frontier.split import TensorLayout
from tvf.frontier.suffix import Suffix
from tvf.store import ArrayTable, StoreError

log = logging.getLogger(__name__)

BLOCK_SIZE = 32  # images that pass through the prefix together
GATHERED_BYTES = 2**26  # of activations, such as those of a head, that a split has in its own order


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
        residency: Residency,
        show_progress: bool = False,
    ) -> None:
        self.images = self.continued_images = 0
        self.seconds = 0.0
        self.cached = entries is not None
        self._fabric, self._plan, self._entries = fabric, plan, entries
        self._show_progress, self._residency = show_progress, residency
        self._resident: DeviceRows | None = None  # the activations, if they live on the device
        self._cuts = [point.cut for point in plan.points]
        self._last = len(self._cuts) - 1
        self._rows = ViewRows(plan.augment, len(plan.split.pool))
        self._tables: dict[tuple[int, int], ArrayTable] = {}  # by level (index of the cut) and view
        self._extracted: dict[tuple[int | None, int], Any] = {}  # modules between levels
        self._failed: set[int] = set()  # levels that the store could not save
        self.gathers = False  # whether to keep views in the order of the split, if they are small
        self._gathered: dict[int, Tensors] = {}  # such views
        layers = plan.trace.extract(self._cuts[-1], None)
        assert layers is not None, "the logits can be computed from any cut"
        self.suffix = Suffix(fabric, layers)
        self.linear = self.suffix.find_linear()

    def open_view(self, view: int) -> tuple[Inputs, Feed | None]:
        """Return what reads the activations of a view, after filling the gaps in the store.

        See `EpochInputs` for the two. Raises StoreError if the store cannot save them.
        """
        if not self.cached:
            return self.open_uncached(view)
        if view in self._gathered:
            return self._read_gathered(view), None
        start = time.perf_counter()
        rows = self._rows.rows_of_view(view)[self._plan.split.places]
        tables = {
            table_view: self._table(self._last, table_view).tensors(table_rows)
            for table_view, table_rows in self._rows.by_table(rows).items()
        }
        starts = np.array(self._rows.starts)
        self.seconds += time.perf_counter() - start

        def read(samples: np.ndarray) -> Tensors:
            return tuple(_gather(rows[samples], starts, tables))

        def read_here(samples: np.ndarray) -> Tensors:
            return self._unpack(self._fabric.to_device(read(samples)))

        if not self._residency.is_apart and not self.gathers:
            return read_here, None
        if not self._residency.is_apart:
            columns = self._plan.columns(self._cuts[-1])
            size = len(rows) * sum(column.row_bytes for column in columns)
            if (len(self._gathered) + 1) * size <= GATHERED_BYTES:
                self._gathered[view] = read(np.arange(len(rows)))
                return self._read_gathered(view), None
            return read_here, None
        if self._resident is not None:
            return read_here, self._feed_resident(rows, read)
        device = self._residency.device
        return read_here, lambda batches: map(self._unpack, read_ahead(batches, read, device))

    def _read_gathered(self, view: int) -> Inputs:
        gathered = self._gathered[view]

        def read(samples: np.ndarray) -> Tensors:
            chosen = torch.from_numpy(samples)
            return self._unpack(tuple(tensor.index_select(0, chosen) for tensor in gathered))

        return read

    def open_uncached(self, view: int) -> tuple[Inputs, Feed | None]:
        """Like `open_view`, but what the store lacks passes through the frozen layers each time.

        With room on the device, it does so once.
        """
        compute = partial(self.compute, view)
        pixels = PixelPass(self._plan.split, self._augment_of(view), view, self._residency).feed()
        if self._resident is not None and not self.cached:
            rows = self._rows.rows_of_view(view)[self._plan.split.places]
            return compute, self._feed_resident(rows, lambda samples: self._pack(compute(samples)))
        if pixels is None:
            return compute, None
        return compute, lambda batches: (self._compute(*images) for images in pixels(batches))

    def settle(self, views: Sequence[int], name: str) -> str | None:
        """Decide whether the activations of these views live on the device; the decision in words.

        None if there are none to keep: without a store, whatever does not fit is computed anew.
        """
        places, cut = self._plan.split.places, self._cuts[-1]
        rows = np.concatenate([self._rows.rows_of_view(view)[places] for view in {*views}])
        dtype = self._plan.dtype if self.cached else None
        columns = [array_spec(layout, dtype) for layout in cut.layouts]
        capacity = len(np.unique(rows))
        size = capacity * sum(column.row_bytes for column in columns)
        resident = self._residency.admits(size)
        if resident:
            device, count = self._residency.device, self._rows.starts[-1]
            self._resident = DeviceRows(device, capacity, count, columns)
        if not (resident or self.cached):
            return None
        return self._residency.describe(f"{name} activations", size, resident)

    def restart_costs(self) -> None:
        """Count seconds and images from here on, for another job."""
        self.images = self.continued_images = 0
        self.seconds = 0.0

    def release(self) -> None:
        """Free the activations on the device."""
        self._resident = None

    def compute(self, view: int, samples: np.ndarray) -> Tensors:
        """Return the same activations, computed without the store."""
        start = time.perf_counter()
        pixels = self._pixels(view, self._plan.split.places[samples])
        self.seconds += time.perf_counter() - start
        return self._compute(pixels)

    def _compute(self, pixels: Tensor) -> Tensors:
        start = time.perf_counter()
        self.images += len(pixels)
        values = tuple(self._run(None, self._last, [pixels]))
        self.seconds += time.perf_counter() - start
        return values

    def _feed_resident(self, rows: np.ndarray, read: Inputs) -> Feed:
        """What takes these rows, one per sample, from the device, once they are loaded."""
        resident, device = self._resident, self._residency.device
        assert resident is not None

        def take(chosen: Tensor, samples: np.ndarray) -> Tensors:
            return self._unpack(tuple(column[chosen] for column in resident.columns))

        def feed(batches: Sequence[np.ndarray]) -> Iterator[Tensors]:
            start = time.perf_counter()
            places = resident.load(rows, read)
            self.seconds += time.perf_counter() - start
            return take_resident(batches, lambda samples: places[samples], take, device)

        return feed

    def _unpack(self, values: Tensors) -> Tensors:
        return tuple(map(_unpack, values, self._cuts[-1].layouts))

    def _pack(self, values: Tensors) -> Tensors:
        pairs = zip(values, self._cuts[-1].layouts, strict=True)
        return tuple(_pack(value, layout, None) for value, layout in pairs)

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
            places = self._rows.new_samples(view)[rows]
            results = self._run(None, level, [self._pixels(view, places)])
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
        """Return the level to continue from, and the values there; None and nothing for pixels."""
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
        return None, []

    def _augment_of(self, view: int) -> Augmentation | None:
        return self._plan.augment if view else None

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
        return [tensor.index_select(0, within) for tensor in tables[int(views[0])]]
    columns = next(iter(tables.values()))
    values = [tensor.new_empty(len(rows), *tensor.shape[1:]) for tensor in columns]
    for view in np.unique(views):
        chosen = torch.from_numpy(np.flatnonzero(views == view))
        for value, tensor in zip(values, tables[int(view)], strict=True):
            value[chosen] = tensor.index_select(0, within[chosen])
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
