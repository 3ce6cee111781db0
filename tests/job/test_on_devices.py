"""Jobs on a GPU, and on the CPU that stands in for one: where data live changes no number."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from helpers import IMPORTABLE, ROOT, small_backbone
from helpers.devices import DEVICES, replay_on_cpu
from helpers.jobs import metrics, summary
from helpers.training import small_config, small_context
from tvf.errors import InputError
from tvf.files import LAST_CHECKPOINT, read_json
from tvf.frontier import Residency
from tvf.job import checkpoint, parts, resources, run_job
from tvf.models import Backbone, FineTuneModel
from tvf.training import graphs
from tvf.training.generators import random_states, set_random_states

Run = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """If the device is the CPU, its memory counts as apart from the host's."""
    if request.node.callspec.params["device"] == "cpu":
        monkeypatch.setattr(Residency, "is_apart", True)
        monkeypatch.setattr(Residency, "free_bytes", lambda self: 10**9)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """`run("cuda", "name", store__mode="on")` trains a small job; its epochs, without times."""
    threads = torch.get_num_threads()

    def train(device: str, name: str, **changes: Any) -> list[dict[str, Any]]:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        run_job(config_on(device, **changes), small_context(folder))
        torch.set_num_threads(threads)
        return metrics(folder)

    return train


def config_on(device: str, **changes: Any) -> dict[str, Any]:
    """The config of a small job; on a GPU with the same bits in every run."""
    accelerator = "gpu" if device == "cuda" else device
    options = {"epochs": 3, "model__pct_unfreeze": 0.5, "deterministic": True, "threads": 1}
    return small_config(**options | {"fabric__accelerator": accelerator} | changes)


@pytest.mark.parametrize("device", DEVICES)
def test_store_on_equals_off(device: str, run: Run, apart: None) -> None:
    off, cold, warm = (
        run(device, name, store__mode=mode)
        for name, mode in (("off", "off"), ("cold", "on"), ("warm", "on"))
    )
    if device == "cpu":
        assert cold == warm == off
    for row, expected in zip([*cold, *warm], [*off, *off], strict=True):
        assert row["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-4)
        assert row["val_loss"] == pytest.approx(expected["val_loss"], rel=1e-4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("fraction, store", [(0.5, "on"), (0.5, "off"), (1.0, "off")])
def test_resident_equals_streamed(
    device: str,
    fraction: float,
    store: str,
    run: Run,
    apart: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    how = {"model__pct_unfreeze": fraction, "augment__horizontal": 0.5, "store__mode": store}
    resident, streamed = (run(device, mode, fabric__resident=mode, **how) for mode in ("on", "off"))
    lines = [line for line in caplog.messages if " device: " in line]
    assert "on the device" in lines[0] and "read ahead" in lines[1]
    if device == "cuda" and fraction < 1 and store == "off":
        # Frozen layers run on other batches, for which a GPU may choose other kernels.
        for one, other in zip(resident, streamed, strict=True):
            assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4)
    else:
        assert resident == streamed


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("fraction, store", [(0.5, "on"), (1.0, "off")])
def test_recorded_steps_equal_those_kernel_by_kernel(
    device: str,
    fraction: float,
    store: str,
    run: Run,
    apart: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    if device == "cpu":
        monkeypatch.setattr(graphs, "record_graph", replay_on_cpu)
    how = {"model__pct_unfreeze": fraction, "store__mode": store, "model__head_dropout": 0.2}
    plain, recorded = (run(device, mode, fabric__compile=mode, **how) for mode in ("off", "on"))
    for what in ("training", "validation"):
        assert [line for line in caplog.messages if f"{what}: recorded as CUDA graphs" in line]
    assert recorded == plain
    assert summary(tmp_path / "on")["test_loss"] == summary(tmp_path / "off")["test_loss"]
    used = [summary(tmp_path / mode)["cuda_graphs"] for mode in ("off", "on")]
    assert used == ([None, None] if device == "cpu" else [False, True])


@pytest.mark.parametrize("device", DEVICES)
def test_resumed_equals_whole(device: str, run: Run, apart: None, tmp_path: Path) -> None:
    average = {"_target_": "tvf.training.ExponentialMovingAverage", "decay": 0.9}
    how = {"average": average, "store__mode": "on"}
    whole = run(device, "whole", **how)
    assert len(run(device, "resumed", stop_after=1, **how)) == 1
    assert run(device, "resumed", **how) == whole
    scores = [summary(tmp_path / name)["test_loss"] for name in ("whole", "resumed")]
    assert scores[0] == scores[1]


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_two_jobs_at_once_equal_those_apart(device: str, run: Run, tmp_path: Path) -> None:
    code = (
        "import json, sys, pathlib\n"
        "from helpers.training import small_context\n"
        "from tvf.job import run_job\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "run_job(json.loads(sys.argv[2]), small_context(folder))"
    )
    processes = []
    for seed in (1, 2):
        folder = tmp_path / f"at-once-{seed}"
        folder.mkdir()
        config = json.dumps(config_on(device, seed=seed, store__mode="on"))
        command = [sys.executable, "-c", code, str(folder), config]
        environment = os.environ | {"PYTHONPATH": IMPORTABLE}
        processes.append(subprocess.Popen(command, cwd=ROOT, env=environment))
    assert [process.wait() for process in processes] == [0, 0]
    for seed in (1, 2):
        apart = run(device, f"apart-{seed}", seed=seed, store__mode="on")
        assert metrics(tmp_path / f"at-once-{seed}") == apart


@pytest.mark.parametrize("device", DEVICES)
def test_the_devices_memory_is_in_the_summary(device: str, run: Run, tmp_path: Path) -> None:
    run(device, "job", epochs=1)
    found = summary(tmp_path / "job")["peak_device_memory_mb"]
    assert found is None if device == "cpu" else found > 0


def test_a_job_from_another_kind_of_device_resumes_and_says_so(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = run("cpu", "whole")
    run("cpu", "moved", stop_after=1)
    path = tmp_path / "moved" / LAST_CHECKPOINT
    before = checkpoint._read(path)
    before["state"] |= {"device": "cuda"}
    before["state"]["random"] |= {"cuda": torch.zeros(16, dtype=torch.uint8)}
    _rewrite(path, before)
    caplog.clear()
    assert run("cpu", "moved") == whole
    assert "was trained on cuda so far: digits may differ." in caplog.text


def _rewrite(path: Path, held: dict[str, Any]) -> None:
    """Replace a checkpoint by one with this content."""
    checkpoint.Checkpoints(path.parent, held["of"]).save(held["state"])


def test_a_gpus_generator_is_left_alone_on_a_cpu() -> None:
    states = random_states()
    assert "cuda" not in states or torch.cuda.is_initialized()
    set_random_states(states | {"cuda": torch.zeros(3, dtype=torch.uint8)})
    assert torch.equal(random_states()["torch"], states["torch"])


def hungry_backbone(num_classes: int, needs: str) -> Backbone:
    """The small network, which runs out of memory in its first training step if asked."""
    backbone = small_backbone(num_classes)

    def fail(module: Any, inputs: Any) -> None:
        if needs == "too much" and module.training and len(inputs[0]) > 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    backbone.module.register_forward_pre_hook(fail)
    return backbone


def test_a_job_that_runs_out_of_memory_says_what_to_lower_and_costs_only_itself(
    run: Run, tmp_path: Path
) -> None:
    def hungry(needs: str) -> dict[str, Any]:
        target = f"{__name__}.hungry_backbone"
        return {"backbone": {"_target_": target, "needs": needs}, "store__mode": "off"}

    with pytest.raises(InputError, match="too little memory"):
        run("cpu", "first", model__pct_unfreeze=1.0, **hungry("too much"))
    status = read_json(tmp_path / "first" / "status.json")
    assert status["state"] == "failed"
    for remedy in ("lower data.batch_size=8", "fabric.precision=bf16-mixed", "fabric.resident=off"):
        assert remedy in status["error"]
    assert len(run("cpu", "second", model__pct_unfreeze=1.0, **hungry("little"))) == 3


def test_remedies_are_those_that_would_change_something(tmp_path: Path) -> None:
    def advice(sharing: int, **changes: Any) -> str:
        context = resources.replace(small_context(tmp_path), sharing=sharing)
        with pytest.raises(InputError) as raised:
            with resources.explain_memory(small_config(**changes), context):
                raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return str(raised.value)

    assert "fabric.jobs_per_gpu" not in advice(1)
    few = advice(3, fabric__precision="bf16-mixed", fabric__resident="off")
    assert "fewer jobs than 3 share a GPU" in few
    assert "precision" not in few and "resident" not in few


def test_gradients_that_are_clipped_in_half_precision_are_not_unscaled_by_a_fused_kernel() -> None:
    """Fabric refuses to clip them: the kernel would unscale them after the clipping."""

    def leaves_unscaling(precision: str, **changes: Any) -> bool:
        fabric: Any = SimpleNamespace(
            strategy=SimpleNamespace(precision=SimpleNamespace(precision=precision))
        )
        model = FineTuneModel(small_backbone(), 0.5)
        build = parts.build_optimizer(small_config(**changes), fabric, model)
        optimizer = build([torch.nn.Parameter(torch.ones(1))], [])
        return not getattr(optimizer, "_step_supports_amp_scaling", False)

    assert leaves_unscaling("16-mixed", optimizer__clip_norm=1.0)
    assert leaves_unscaling("16-mixed", optimizer__l2_sp=0.1)
    assert not leaves_unscaling("16-mixed")
    assert not leaves_unscaling("bf16-mixed", optimizer__clip_norm=1.0)


@pytest.mark.parametrize(
    "gpus, workers, devices, sharing, own",
    [
        (0, 8, 1, 1, None),
        (1, 4, 1, 4, None),
        (2, 4, 1, 2, [1]),
        (2, 3, 1, 2, [1]),
        (4, 2, 2, 1, [1]),
        (4, 2, [3], 2, None),  # named: no other is claimed
        (4, 1, [0, 2], 1, None),
    ],
)
def test_jobs_are_spread_over_the_gpus(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    gpus: int,
    workers: int,
    devices: int | list[int],
    sharing: int,
    own: list[int] | None,
) -> None:
    claims: list[tuple[int, int]] = []

    def claim(count: int, at_once: int) -> list[int]:
        claims.append((count, at_once))
        return [1]

    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(resources, "claim_gpus", claim)
    monkeypatch.setattr("tvf.distributed.devices.available_cores", lambda: 16)
    context = resources.replace(small_context(tmp_path), parallel=True, workers=workers)
    config = small_config(fabric__accelerator="auto", fabric__devices=devices)
    found = resources.claim_devices(config, context)
    assert (found.sharing, found.devices) == (sharing, own)
    named = isinstance(devices, list)
    assert claims == ([(devices, sharing)] if gpus and not named else [])


def test_a_gpu_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    config = small_config(fabric__accelerator="auto", fabric__devices=[2])
    with pytest.raises(InputError, match=r"fabric.devices=\[2\] must be indices .* 0 to 1"):
        resources.claim_devices(config, small_context(tmp_path))
