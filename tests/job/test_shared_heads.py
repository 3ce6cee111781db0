"""Jobs that only train heads share a process, on a GPU and on the CPU that stands in for one."""

import json
from collections.abc import Callable
from dataclasses import replace
from mmap import mmap
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric.plugins.precision.precision import Precision
from omegaconf import OmegaConf
from torch import Tensor

from helpers import small_backbone
from helpers.devices import DEVICES, GPU
from helpers.jobs import digests, metrics, summary
from helpers.training import small_config, small_context
from tvf.errors import InputError
from tvf.files import read_json
from tvf.frontier import Residency
from tvf.job import SharedSetups, heads, run_job, shared_setup
from tvf.job.setup import open_job
from tvf.models import Backbone
from tvf.sweep import heads as sweep_heads
from tvf.training import CrossEntropyLoss
from tvf.training.generators import random_states, set_random_states

Train = Callable[..., Path]
SCORES = ("val_loss", "val_acc", "test_loss", "test_acc", "best_epoch", "calibration")


@pytest.fixture
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The device to train on. If it is the CPU, its memory counts as apart from the host's."""
    if request.param == "cpu":
        monkeypatch.setattr(Residency, "is_apart", True)
        monkeypatch.setattr(Residency, "free_bytes", lambda self: 10**9)
    return request.param


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """`train("name", setups.open_job, seed=2)` trains a head; returns its folder."""
    monkeypatch.setattr(heads, "TVFS", ())  # the test's own network and images count as tvf's
    threads = torch.get_num_threads()

    def run(name: str, opened: Any = open_job, on: str = "cpu", **changes: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        try:
            run_job(head_config(on, name=name, **changes), small_context(folder), opened)
        finally:
            torch.set_num_threads(threads)
        return folder

    return run


def head_config(on: str = "cpu", **changes: Any) -> dict[str, Any]:
    """The config of a head; on a GPU with the same bits in every run."""
    options = {"epochs": 2, "model__pct_unfreeze": 0.0, "deterministic": True, "threads": 1}
    options |= {"fabric__accelerator": "gpu" if on == "cuda" else on, "store__mode": "on"}
    options |= {"backbone": {"_target_": f"{__name__}.seeded_backbone"}}
    return small_config(**options | changes)


def seeded_backbone(num_classes: int) -> Backbone:
    """The small network with the same frozen layers each time, and a head that the seed draws."""
    before = random_states()
    backbone = small_backbone(num_classes)
    set_random_states(before)
    for head in backbone.heads:
        backbone.module.get_submodule(head).reset_parameters()  # type: ignore[reportCallIssue]
    return backbone


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the jobs for which what heads share was built."""
    names, build = [], heads.build_frozen

    def noted(config: dict[str, Any], *rest: Any) -> Any:
        names.append(config["name"])
        return build(config, *rest)

    monkeypatch.setattr(heads, "build_frozen", noted)
    return names


@pytest.mark.parametrize("device", DEVICES, indirect=True)
@pytest.mark.parametrize(
    "how",
    [
        pytest.param({}, id="linear"),
        pytest.param({"model__head_dropout": 0.3}, id="dropout"),
        pytest.param({"fabric__precision": "bf16-mixed"}, id="bf16-mixed"),
        pytest.param({"fabric__precision": "bf16-true"}, id="bf16-true"),
    ],
)
def test_heads_in_one_process_are_those_alone(
    device: str, how: dict[str, Any], train: Train, built: list[str]
) -> None:
    _compare(device, how, train)
    assert built == ["shared-1"]


@pytest.mark.parametrize("device", [GPU], indirect=True)
def test_a_heads_loss_scale_is_that_of_a_new_process(device: str, train: Train) -> None:
    _compare(device, {"fabric__precision": "16-mixed", "model__head_dropout": 0.3}, train)


def _compare(device: str, how: dict[str, Any], train: Train) -> None:
    """Train three heads one after another on what they share, and each of them alone."""
    own = [
        {"seed": seed, "optimizer__lr": lr, **how} for seed, lr in ((1, 0.01), (2, 0.01), (2, 0.1))
    ]
    with SharedSetups() as setups:
        together = [
            train(f"shared-{n}", setups.open_job, device, **given) for n, given in enumerate(own, 1)
        ]
    alone = [train(f"alone-{n}", open_job, device, **given) for n, given in enumerate(own, 1)]
    for one, other in zip(together, alone, strict=True):
        assert metrics(one) == metrics(other)
        assert digests(one) == digests(other)
        found, expected = summary(one), summary(other)
        assert [found[key] for key in SCORES] == [expected[key] for key in SCORES]
        memory = found["peak_device_memory_mb"]
        assert memory is None if device == "cpu" else memory > 0
    assert len({json.dumps(metrics(folder)) for folder in together}) == len(own)


@pytest.mark.parametrize("device", ["cpu"], indirect=True)
def test_heads_share_what_lies_in_the_devices_memory(
    device: str, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    admits = Residency.admits

    def noted(self: Residency, size: int) -> bool:
        asked.append(size)
        return admits(self, size)

    monkeypatch.setattr(Residency, "admits", noted)
    with SharedSetups() as setups:
        train("one", setups.open_job)
        assert len(asked) == 3  # train, val and test
        train("two", setups.open_job, seed=2)
    assert len(asked) == 3


class Hungry(CrossEntropyLoss):
    """Runs out of the device's memory."""

    def sum(self, logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")


@pytest.mark.parametrize("device", DEVICES, indirect=True)
def test_a_head_that_runs_out_of_memory_costs_only_itself(
    device: str, train: Train, built: list[str], tmp_path: Path
) -> None:
    with SharedSetups() as setups:
        train("one", setups.open_job, device)
        with pytest.raises(InputError, match="too little memory"):
            hungry = {"loss___target_": f"{__name__}.Hungry"}
            train("two", setups.open_job, device, seed=2, **hungry)
        three = train("three", setups.open_job, device, seed=3)
        assert setups.accepts(head_config(device))
    assert read_json(tmp_path / "two" / "status.json")["state"] == "failed"
    assert built == ["one", "three"]  # what is in memory was given up
    assert metrics(three) == metrics(train("alone", open_job, device, seed=3))


def test_a_process_that_gets_another_gpu_builds_everything_there(
    train: Train, built: list[str], tmp_path: Path
) -> None:
    with SharedSetups() as setups:
        for number, devices in enumerate([None, [1], [1], [0]]):
            folder = tmp_path / str(number)
            folder.mkdir()
            context = replace(small_context(folder), devices=devices)
            config = head_config(name=str(number))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(
                    heads,
                    "build_frozen",
                    lambda c, x, *rest, build=heads.build_frozen: build(
                        c, replace(x, devices=None), *rest
                    ),
                )
                with setups.open_job(config, context):
                    pass
    assert built == ["0", "1", "3"]


def test_the_scale_of_losses_is_reset_for_each_head(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Float16's scaler, which only GPUs have: here a number that grows with each step."""
    scales: list[int] = []
    step = Precision.optimizer_step

    def grow(self: Any, *arguments: Any, **more: Any) -> Any:
        scales.append(getattr(self, "scale", 0))
        self.scale = scales[-1] + 1
        return step(self, *arguments, **more)

    monkeypatch.setattr(Precision, "optimizer_step", grow)
    monkeypatch.setattr(Precision, "state_dict", lambda self: {"scale": getattr(self, "scale", 0)})
    monkeypatch.setattr(
        Precision, "load_state_dict", lambda self, state: setattr(self, "scale", state["scale"])
    )
    with SharedSetups() as setups:
        train("one", setups.open_job)
        first = [*scales]
        train("two", setups.open_job, seed=2)
    assert first == [*range(len(first))] and scales == 2 * first


def test_a_process_is_left_where_it_would_train_otherwise(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [{"deterministic": False}, {"fabric__precision": "bf16-mixed"}]
    with SharedSetups() as setups:
        train("one", setups.open_job)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
        assert all(setups.accepts(head_config(**other)) for other in others)  # all on the CPU
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        assert setups.accepts(head_config(seed=2))
        assert not any(setups.accepts(head_config(**other)) for other in others)


def test_a_process_whose_gpu_has_failed_trains_nothing_more(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with SharedSetups() as setups:
        with (
            pytest.raises(RuntimeError, match="illegal"),
            setups.open_job(head_config(), small_context(Path())),
        ):
            monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
            monkeypatch.setattr(torch.cuda, "synchronize", fail)
            fail()
        assert not setups.accepts(head_config())
        monkeypatch.undo()


def test_jobs_that_a_process_does_not_accept_wait_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: Any = [
        sweep_heads.CheckedJob(name, head_config(name=name), "", None) for name in "abc"
    ]
    jobs = [sweep_heads.HeadJob(n, job, "") for n, job in enumerate(checked)]
    monkeypatch.setattr(SharedSetups, "accepts", lambda self, config: config["name"] == "a")
    monkeypatch.setattr(sweep_heads._Worker, "_train", lambda *arguments: None)
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}})
    with mmap(-1, 3) as states:
        assert sweep_heads._Worker(config, jobs, range(3), states, 1).run() == 0
        assert [*states[:]] == [sweep_heads.ENDED, sweep_heads.WAITING, sweep_heads.WAITING]


def test_what_heads_share_is_known_without_asking_a_device(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def touch() -> Any:
        raise AssertionError("this process forks jobs, so it must not initialise CUDA")

    for name in ("is_available", "device_count", "_lazy_init"):
        monkeypatch.setattr(torch.cuda, name, touch)
    on_gpu = shared_setup(head_config("cuda"))
    assert on_gpu is not None and on_gpu != shared_setup(head_config("cpu"))
    assert shared_setup(head_config("cuda", fabric__devices=2)) is None
