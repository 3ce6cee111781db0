"""Data on the device, or read ahead of the step: the same inputs, wherever they come from."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from helpers import small_backbone
from helpers.devices import DEVICES, Apart, fabric_on
from helpers.training import DATA
from tvf.data.augment import Augmentation, FlipsAndCrops, TorchvisionTransforms
from tvf.frontier.inputs import CachedPipeline, EpochInputs, InputPipeline
from tvf.frontier.plan import CacheOptions, open_pipeline
from tvf.frontier.residency import DeviceRows, Residency, read_ahead, take_resident
from tvf.models.finetune import FineTuneModel
from tvf.store.disk import Store, format_bytes
from tvf.store.row_file import ArraySpec

COUNT = len(DATA.train)
BATCHES = [np.arange(9)[::-1].copy(), np.arange(9, 17), np.arange(17, COUNT)]
AUGMENT = FlipsAndCrops(horizontal=0.5, vertical=0.3, padding=2, seed=3)
EPOCHS = range(1, 4)


def pipeline_on(
    device: str,
    residency: Residency | None,
    store: Store | None = None,
    augment: Augmentation = AUGMENT,
    fraction: float = 0.5,
) -> InputPipeline:
    fabric = fabric_on(device)
    model = FineTuneModel(small_backbone(), fraction)
    module: Any = fabric.setup_module(model.train())
    uncached = InputPipeline(fabric, module, DATA, augment, residency)
    return open_pipeline(uncached, CacheOptions(EPOCHS, store), "[job]")


def passes(pipeline: InputPipeline) -> list[EpochInputs]:
    return [*map(pipeline.train, EPOCHS), pipeline.evaluate("val")]


def batches_of(inputs: EpochInputs, batches: list[np.ndarray] | None = None) -> list[Tensor]:
    read = inputs.batches(batches or BATCHES)
    return [tensor.cpu() for tensors in read for tensor in tensors]


def assert_same(one: list[Tensor], other: list[Tensor], exact: bool = True) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.dtype == b.dtype and a.stride() == b.stride()
        assert torch.equal(a, b) if exact else torch.allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mode", ["on", "off"])
@pytest.mark.parametrize("cached", [False, True], ids=["no store", "store"])
@pytest.mark.parametrize("fraction", [0.5, 1.0])
def test_inputs_are_the_same_on_the_device_read_ahead_and_read_one_by_one(
    tmp_path: Path, device: str, mode: str, cached: bool, fraction: float
) -> None:
    store = Store(tmp_path, 10**9) if cached else None
    plain = pipeline_on(device, None, store, fraction=fraction)
    apart = pipeline_on(device, Apart(device, mode), store, fraction=fraction)
    assert isinstance(apart, CachedPipeline) == (fraction < 1)
    counts = [COUNT] * len(EPOCHS) + [len(DATA.val)]
    for ours, theirs, count in zip(passes(apart), passes(plain), counts, strict=True):
        assert ours.feed is not None
        rows = [batch[batch < count] for batch in BATCHES]
        one_by_one = [tensor.cpu() for batch in rows for tensor in theirs.inputs(batch)]
        # A GPU may choose other kernels for frozen layers on other batches.
        exact = device == "cpu" or cached or fraction == 1
        assert_same(batches_of(ours, rows), one_by_one, exact)


@pytest.mark.parametrize("device", DEVICES)
def test_resident_activations_are_computed_once_without_a_store(device: str) -> None:
    pipeline = pipeline_on(device, Apart(device, "on"), augment=FlipsAndCrops(horizontal=0.5))
    for _ in range(2):
        for inputs in passes(pipeline)[:-1]:
            batches_of(inputs)
    shown = pipeline.train(1)
    assert COUNT < pipeline.prefix_images <= 2 * COUNT  # each image as it is and mirrored
    batches_of(shown)
    before = pipeline.prefix_images
    pipeline.release()
    batches_of(pipeline.train(1))
    assert pipeline.prefix_images == before + COUNT


def test_on_the_cpu_nothing_is_copied_nor_read_ahead(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for store in (None, Store(tmp_path, 10**9)):
        pipeline = pipeline_on("cpu", Residency(torch.device("cpu"), "on"), store)
        assert all(inputs.feed is None for inputs in passes(pipeline))
    assert " device: " not in caplog.text


def test_one_line_says_what_lives_on_the_device(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    pipeline_on("cpu", Apart(), fraction=1.0)
    pipeline_on("cpu", Apart("cpu", "off"), fraction=1.0)
    pipeline_on("cpu", Apart("cpu", jobs=2, free=90_000), fraction=1.0)
    lines = [line for line in caplog.messages if " device: " in line]
    size = format_bytes(DATA.train.pool.pixels.images.nbytes)
    assert lines[0].startswith(f"[job] device: pixels ({size}) on the device")
    assert lines[1].startswith(f"[job] device: pixels ({size}) read ahead")
    assert "read ahead, being more than 50% of the free 90 kB / 2 jobs" in lines[2]


def test_activations_that_do_not_fit_are_read_ahead_and_pixels_stay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    size = DATA.train.pool.pixels.images.nbytes
    pipeline_on("cpu", Apart(free=2 * size + 2000))
    assert "device: pixels (25.3 kB) on the device; val activations (" in caplog.text
    caplog.clear()
    pipeline_on("cpu", Apart(free=10), Store(tmp_path, 10**9))
    assert "train activations (" in caplog.text and "read ahead, being more than" in caplog.text


@pytest.mark.parametrize(
    "mode, jobs, size, admitted",
    [
        ("auto", 1, 500, True),
        ("auto", 1, 501, False),
        ("auto", 4, 125, True),
        ("auto", 4, 126, False),
        ("on", 4, 10**12, True),
        ("off", 1, 1, False),
    ],
)
def test_data_take_a_share_of_the_free_memory(
    mode: str, jobs: int, size: int, admitted: bool
) -> None:
    assert Apart("cpu", mode, jobs, free=1000).admits(size) == admitted


def test_views_of_other_transforms_are_made_by_the_training_thread() -> None:
    augment = TorchvisionTransforms(transforms=[v2.ColorJitter(0.4)])
    apart = pipeline_on("cpu", Apart(), augment=augment, fraction=1.0)
    plain = pipeline_on("cpu", None, augment=augment, fraction=1.0)
    assert apart.train(1).feed is None and apart.evaluate("val").feed is not None
    assert_same(batches_of(apart.train(1)), batches_of(plain.train(1)))


def test_a_subclass_that_does_more_is_not_taken_for_portable() -> None:
    class Noise(FlipsAndCrops):
        def __call__(self, images: Tensor, samples: np.ndarray, view: int) -> Tensor:
            return super().__call__(images, samples, view)

    assert FlipsAndCrops().is_portable and not Noise().is_portable


def test_an_empty_batch_has_tensors_without_rows() -> None:
    for residency in (None, Apart()):
        inputs = pipeline_on("cpu", residency).train(1)
        empty, some = inputs.batches([np.arange(0), np.arange(3)])
        assert [len(tensor) for tensor in empty] == [0] * len(some)
        assert [tensor.shape[1:] for tensor in empty] == [tensor.shape[1:] for tensor in some]


def test_an_error_while_reading_ahead_reaches_the_step() -> None:
    def read(samples: np.ndarray) -> tuple[Tensor, ...]:
        if samples[0] == 17:
            raise OSError("the disk is gone")
        return (torch.from_numpy(samples),)

    found = read_ahead(BATCHES, read, torch.device("cpu"))
    assert torch.equal(next(found)[0], torch.from_numpy(BATCHES[0])) and len(next(found)[0]) == 8
    with pytest.raises(OSError, match="the disk is gone"):
        next(found)


def test_reading_ahead_stays_ahead_by_a_few_batches_and_ends_with_the_pass() -> None:
    started: list[int] = []

    def read(samples: np.ndarray) -> tuple[Tensor, ...]:
        started.append(int(samples[0]))
        return (torch.from_numpy(samples),)

    found = read_ahead([np.array([number]) for number in range(50)], read, torch.device("cpu"))
    assert next(found)[0].item() == 0
    found.close()  # type: ignore[attr-defined]
    assert len(started) <= 4
    assert not [t for t in threading.enumerate() if t.name.startswith("read-ahead")]


def test_rows_are_loaded_once(tmp_path: Path) -> None:
    values, loaded = torch.arange(40.0).reshape(20, 2), []

    def reader(rows: np.ndarray) -> Callable[[np.ndarray], list[Tensor]]:
        def read(positions: np.ndarray) -> list[Tensor]:
            loaded.extend(rows[positions].tolist())
            return [values[torch.from_numpy(rows[positions])]]

        return read

    kept = DeviceRows(torch.device("cpu"), 7, 20, [ArraySpec((2,), torch.float32)])
    for rows in (np.array([3, 1, 9]), np.array([9, 19, 3, 4]), np.array([19, 1])):
        places = kept.load(rows, reader(rows))
        assert torch.equal(
            kept.columns[0][torch.from_numpy(places)], values[torch.from_numpy(rows)]
        )
    assert sorted(loaded) == [1, 3, 4, 9, 19]
    assert list(take_resident([], lambda rows: rows, lambda *own: (), torch.device("cpu"))) == []


class Recorder:
    """Stands for a tensor, a stream or an event of a GPU; `calls` lists what happens to it."""

    def __init__(self, calls: list[str]) -> None:
        self.calls = calls

    def __getattr__(self, name: str) -> Callable[..., "Recorder"]:
        def call(*arguments: Any, **options: Any) -> "Recorder":
            self.calls.append(f"{name} {options}" if options else name)
            return self

        return call


def test_copies_to_a_gpu_are_pinned_and_the_computation_waits_for_them_not_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []
    recorder: Any = Recorder(calls)

    @contextmanager
    def on_stream(stream: Any) -> Iterator[None]:
        calls.append("on the side stream")
        yield
        calls.append("off it")

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: recorder)
    monkeypatch.setattr(torch.cuda, "stream", on_stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: recorder)
    (copies,) = read_ahead([np.arange(3)], lambda samples: (recorder,), torch.device("cuda"))
    assert copies == (recorder,)
    assert calls == [
        "on the side stream",
        "pin_memory",
        "to {'non_blocking': True}",
        "record_event",
        "off it",
        "wait_event",
        "record_stream",
    ]


def test_free_memory_includes_what_torch_holds_unused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 10)
    residency = Residency(torch.device("cuda"), jobs=2)
    assert residency.is_apart and residency.free_bytes() == 120
    assert residency.admits(30) and not residency.admits(31)
