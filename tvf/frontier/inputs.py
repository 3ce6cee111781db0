"""Where the network's inputs come from: pixels for the whole of it, or stored activations for the part that trains.

A `Feed` gives each pass over the data a module and its inputs: the whole network and pixels, or what follows a cut and
activations, which the store has or, without one, frozen layers compute each time. All give the same losses.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from tvf.data import Augmentation, DataSplits, Split, ViewRows
from tvf.frontier.split import Cut, TensorLayout, TracedModel
from tvf.models import FineTuneModel
from tvf.store import ArraySpec, ArrayTable, Entry, StoreError

log = logging.getLogger(__name__)

BLOCK = 32  # images that go through the prefix together

Inputs = Callable[[np.ndarray], tuple[Tensor, ...]]


@dataclass(frozen=True)
class EpochInputs:
    """One pass over a part: `module(*inputs(samples))` are logits. The module is in the mode that the pass needs."""

    module: Callable[..., Tensor]
    inputs: Inputs


class InputPipeline:
    """Inputs for the whole network. `module` is the model as Fabric set it up."""

    def __init__(
        self, fabric: Fabric, module: FineTuneModel, data: DataSplits, augment: Augmentation
    ) -> None:
        self.fabric, self.module, self.data, self.augment = fabric, module, data, augment
        self.approximations: list[str] = []

    @property
    def prefix_seconds(self) -> float:
        """Seconds spent in the prefix, or waiting for what the store has of it."""
        return 0.0

    @property
    def prefix_kept(self) -> bool:
        """Whether the store has what the prefix gave, for other jobs too."""
        return False

    @property
    def prefix_images(self) -> int:
        """How many images have gone through the prefix, from pixels."""
        return 0

    @property
    def continued_images(self) -> int:
        """How many have gone on from a shallower cut that the store had."""
        return 0

    def train(self, epoch: int) -> EpochInputs:
        """The pass of this epoch, in training mode; `epoch` counts from 1."""
        self.module.train()
        return EpochInputs(
            self.module,
            partial(self._pixels, self.data.train, self.augment, self.augment.view_of(epoch)),
        )

    def evaluate(self, part: str) -> EpochInputs:
        """A pass over "val" or "test", in eval mode."""
        self.module.eval()
        return EpochInputs(self.module, partial(self._pixels, getattr(self.data, part), None, 1))

    def _pixels(
        self, part: Split, augment: Augmentation | None, view: int, samples: np.ndarray
    ) -> tuple[Tensor, ...]:
        images = part.images[torch.from_numpy(samples)]
        return (
            self.fabric.to_device(images if augment is None else augment(images, samples, view)),
        )


class CachedPipeline(InputPipeline):
    """Inputs for the part of the network after a cut, from the store where there is one."""

    def __init__(
        self,
        fabric: Fabric,
        module: FineTuneModel,
        data: DataSplits,
        augment: Augmentation,
        parts: "dict[str, ActivationReader]",
    ) -> None:
        super().__init__(fabric, module, data, augment)
        self._parts = parts
        self._warned: set[str] = set()

    def train(self, epoch: int) -> EpochInputs:
        """As Feed's, at the cut."""
        self.module.train()
        known = "train" in self._parts
        return (
            self._through("train", self.augment.view_of(epoch)) if known else super().train(epoch)
        )

    def evaluate(self, part: str) -> EpochInputs:
        """As Feed's, at the cut."""
        self.module.eval()
        return self._through(part, 1) if part in self._parts else super().evaluate(part)

    @property
    def prefix_seconds(self) -> float:
        """Seconds spent in the prefix, or waiting for what the store has of it."""
        return sum(part.seconds for part in self._parts.values())

    @property
    def prefix_kept(self) -> bool:
        """Whether the store has what the prefix gave, for other jobs too."""
        return not self._warned and all(part.stores for part in self._parts.values())

    @property
    def prefix_images(self) -> int:
        """How many images have gone through the prefix, from pixels."""
        return sum(part.images for part in self._parts.values())

    @property
    def continued_images(self) -> int:
        """How many have gone on from a shallower cut that the store had."""
        return sum(part.continued for part in self._parts.values())

    def _through(self, name: str, view: int) -> EpochInputs:
        part = self._parts[name]
        try:
            inputs = part.inputs(view)
        except StoreError as error:
            if name not in self._warned:
                self._warned.add(name)
                log.warning("store: %s images are not kept from here on: %s.", name, error)
            inputs = partial(part.compute, view)
        return EpochInputs(part.suffix, inputs)


class ActivationReader:
    """One part of the data at one cut.

    `cuts` lead from pixels to the cut, shallow ones first, each with a way to open its entry; the last is the job's.
    Those that are `planned` other jobs of the sweep will read too: they are filled on the way, if the store has room.
    The rest are used as far as they are there. Without entries every image passes the prefix each time. `images` counts
    what went through it from pixels, `continued` what went on from a shallower cut.
    """

    def __init__(
        self,
        fabric: Fabric,
        trace: TracedModel,
        cuts: Sequence[Cut],
        planned: Sequence[bool],
        entries: Sequence[Callable[[], Entry]] | None,
        part: Split,
        augment: Augmentation,
        dtype: torch.dtype | None,
        show: bool,
    ) -> None:
        self._fabric, self._trace, self._cuts, self._planned, self._entries = (
            fabric,
            trace,
            cuts,
            planned,
            entries,
        )
        self._part, self._augment, self._dtype, self._show = part, augment, dtype, show
        self._rows = ViewRows(augment, len(part))
        self._tables: dict[tuple[int, int], ArrayTable] = {}
        self._bridges: dict[tuple[int | None, int], Any] = {}
        self._unusable: set[int] = set()
        self._module = trace.extract(cuts[-1], None)
        self.images = self.continued = 0
        self.seconds = 0.0  # in the prefix, or waiting for the store
        self.stores = entries is not None

    def suffix(self, *activations: Tensor) -> Tensor:
        """Logits. As Fabric calls a module, but activations keep their dtype: mixed precision would round float32."""
        assert self._module is not None, "everything after a cut can be computed from it"
        with self._fabric.autocast():
            return self._fabric.strategy.precision.convert_output(self._module(*activations))

    def inputs(self, view: int) -> Inputs:
        """The activations of a view, computed as far as the store has them not. Raises StoreUnusable."""
        if self._entries is None:
            return partial(self.compute, view)
        start = time.perf_counter()
        rows = self._rows.of_view(view)
        starts = np.array(self._rows.starts)
        tensors = {
            table: self._table(len(self._cuts) - 1, table).tensors()
            for table in self._rows.tables(view)
        }
        layouts = self._cuts[-1].layouts
        self.seconds += time.perf_counter() - start

        def inputs(samples: np.ndarray) -> tuple[Tensor, ...]:
            wanted = rows[samples]
            views = np.searchsorted(starts, wanted, side="right")
            within = torch.from_numpy(wanted - starts[views - 1])
            if (views == views[0]).all():
                values = [tensor[within] for tensor in tensors[int(views[0])]]
            else:
                values = [
                    tensor.new_empty(len(wanted), *tensor.shape[1:])
                    for tensor in next(iter(tensors.values()))
                ]
                for number in np.unique(views):
                    chosen = torch.from_numpy(np.flatnonzero(views == number))
                    for value, tensor in zip(values, tensors[int(number)], strict=True):
                        value[chosen] = tensor[within[chosen]]
            return self._fabric.to_device(tuple(map(_unpack, values, layouts)))

        return inputs

    def compute(self, view: int, samples: np.ndarray) -> tuple[Tensor, ...]:
        """The same activations, without the store."""
        start = time.perf_counter()
        self.images += len(samples)
        values = tuple(self._run(None, len(self._cuts) - 1, [self._look(view, samples)]))
        self.seconds += time.perf_counter() - start
        return values

    def _table(self, level: int, view: int) -> ArrayTable:
        if (level, view) not in self._tables:
            assert self._entries is not None, "asked for only where there is a store"
            new, cut = self._rows.new(view), self._cuts[level]
            self._tables[level, view] = self._entries[level]().table(
                view_name(view),
                len(new),
                [array_spec(layout, self._dtype) for layout in cut.layouts],
                partial(self._fill, level, view),
                f"frozen layers, view {view}"
                if self._show and level == len(self._cuts) - 1
                else None,
            )
        return self._tables[level, view]

    def _fill(self, level: int, view: int, rows: slice, wait: bool) -> list[Tensor]:
        """Some rows at a level: from the deepest level before it that has them or is to have them, else from pixels."""
        before, values = self._nearest(level, view, rows, wait)
        if before is None:
            self.images += rows.stop - rows.start
        else:
            self.continued += rows.stop - rows.start
        found = self._run(before, level, values)
        layouts = self._cuts[level].layouts
        return [
            _pack(value, layout, self._dtype) for value, layout in zip(found, layouts, strict=True)
        ]

    def _nearest(
        self, level: int, view: int, rows: slice, wait: bool
    ) -> tuple[int | None, list[Tensor]]:
        for before in reversed(range(level)):
            table = self._table(before, view)
            number = rows.start // table.chunk_rows
            if before not in self._unusable and (self._planned[before] or table.has(number)):
                try:
                    values = table.chunk(number, wait)
                except StoreError as error:
                    self._unusable.add(before)
                    log.warning("store: activations for other jobs are not kept: %s.", error)
                    continue
                return before, list(
                    map(_unpack, (value.clone() for value in values), self._cuts[before].layouts)
                )
        return None, [self._look(view, self._rows.new(view)[rows])]

    def _look(self, view: int, samples: np.ndarray) -> Tensor:
        return self._augment(self._part.images[torch.from_numpy(samples)], samples, view)

    def _run(self, start: int | None, end: int, values: Sequence[Tensor]) -> list[Tensor]:
        """From one level (None: pixels) to another."""
        if (start, end) not in self._bridges:
            begin = None if start is None else self._cuts[start]
            self._bridges[start, end] = self._trace.extract(begin, self._cuts[end])
        return run_in_blocks(self._fabric, self._bridges[start, end], values)


def run_in_blocks(
    fabric: Fabric, module: Callable[..., Sequence[Tensor]], values: Sequence[Tensor]
) -> list[Tensor]:
    """`module` over `values`, a block at a time, without autograd; results on the module's device.

    For very small batches libraries choose other kernels, which round otherwise: so a rest of less than half a block
    joins the block before it, and fewer images than that are made up to half a block by repeating them.
    """
    count = len(values[0])
    if count < BLOCK // 2:
        repeated = torch.arange(BLOCK // 2) % count
        return [
            result[:count]
            for result in run_in_blocks(fabric, module, [value[repeated] for value in values])
        ]
    bounds = list(range(0, count, BLOCK))
    if len(bounds) > 1 and count - bounds[-1] < BLOCK // 2:
        bounds.pop()
    results = []
    with torch.no_grad(), fabric.autocast():
        for start, stop in zip(bounds, [*bounds[1:], count], strict=True):
            results.append(module(*fabric.to_device(tuple(value[start:stop] for value in values))))
    return [torch.cat(tensors) for tensors in zip(*results, strict=True)]


def view_name(view: int) -> str:
    """What a view's table is called in its entry."""
    return f"view-{view:04d}"


def array_spec(layout: TensorLayout, dtype: torch.dtype | None) -> ArraySpec:
    """How a tensor of the cut is kept; `dtype` is for float32 ones, None keeps them as they are."""
    shape = (*layout.shape[1:], layout.shape[0]) if layout.channels_last else layout.shape
    return ArraySpec(
        shape, dtype if dtype is not None and layout.dtype == torch.float32 else layout.dtype
    )


def _pack(value: Tensor, layout: TensorLayout, dtype: torch.dtype | None) -> Tensor:
    value = value.permute(0, 2, 3, 1) if layout.channels_last else value
    packed = value.to(array_spec(layout, dtype).dtype).contiguous()
    if packed.dtype == torch.float16 != value.dtype and not packed.isfinite().all():
        raise StoreError(
            "activations are larger than float16 can hold: choose store.dtype=bfloat16 or float32"
        )
    return packed


def _unpack(value: Tensor, layout: TensorLayout) -> Tensor:
    value = value.to(layout.dtype)
    return value.permute(0, 3, 1, 2) if layout.channels_last else value
