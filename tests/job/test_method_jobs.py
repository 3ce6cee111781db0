"""Jobs that train less than layers, or with L2-SP: resumed, cached and tested like all others."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from helpers import small_backbone
from helpers.devices import Apart, replay_on_cpu
from helpers.jobs import metrics, summary
from helpers.training import DATA, small_config, small_context
from tvf.data import FlipsAndCrops
from tvf.files import BEST_WEIGHTS
from tvf.frontier import Residency
from tvf.frontier.activations import ActivationReader
from tvf.job.probe_start import start_from_ridge
from tvf.job.run import run_job
from tvf.job.setup import build_job
from tvf.models import FineTuneModel, ProbeModel, best_scale, fit_ridge, load_weights
from tvf.records import read_predictions, write_manifest
from tvf.store import Store
from tvf.training import graphs, step

TARGETS = {
    "lora": {"_target_": "tvf.models.LoraModel", "rank": 2, "alpha": 4, "dropout": 0.2},
    "bitfit": {"_target_": "tvf.models.BitFitModel"},
    "norm": {"_target_": "tvf.models.NormModel"},
    "finetune": {"_target_": "tvf.models.FineTuneModel"},
    "probe": {"_target_": "tvf.models.ProbeModel"},
}
EMA = {"_target_": "tvf.training.ExponentialMovingAverage", "decay": 0.9}


@pytest.fixture(autouse=True)
def same_threads() -> Any:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def _config(tmp_path: Path, method: str, **changes: Any) -> dict[str, Any]:
    model = TARGETS[method] | {"pct_unfreeze": 1.0, "frozen_bn": "eval", "head_dropout": 0.0}
    common: dict[str, Any] = {"epochs": 3, "threads": 1, "model": model}
    common |= {"optimizer__backbone_lr": 0.01, "optimizer__lr": 0.01}
    return small_config(**common | {"store__dir": str(tmp_path / "store")} | changes)


def _run(tmp_path: Path, name: str, config: dict[str, Any]) -> Path:
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    run_job(config, small_context(folder))
    return folder


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("lora", {}),
        ("bitfit", {"fabric__precision": "bf16-mixed"}),
        ("norm", {"mix": {"_target_": "tvf.training.ImageMixing", "kind": "mixup", "alpha": 0.4}}),
        ("finetune", {"recipe": {"_target_": "tvf.training.Gradual"}, "epochs": 3}),
        ("probe", {"average": EMA}),
    ],
)
def test_every_method_trains_the_same_when_its_steps_are_recorded(
    method: str,
    changes: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(Residency, "is_apart", True)
    monkeypatch.setattr(Residency, "free_bytes", lambda self: 10**9)
    monkeypatch.setattr(graphs, "record_graph", replay_on_cpu)
    plain, recorded = (
        _run(tmp_path, mode, _config(tmp_path, method, fabric__compile=mode, **changes))
        for mode in ("off", "on")
    )
    assert metrics(recorded) == metrics(plain)
    assert summary(recorded)["test_loss"] == summary(plain)["test_loss"]
    linear = method == "probe"  # one layer on what the store has: too few kernels
    assert ("training: recorded as CUDA graphs." in caplog.text) != linear
    assert "without CUDA graphs" not in caplog.text


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("lora", {}),
        pytest.param(
            "lora",
            {"average": EMA, "recipe": {"_target_": "tvf.training.LpFt", "head_epochs": 1}},
            marks=pytest.mark.slow,
        ),
        pytest.param("norm", {"optimizer__l2_sp": 0.5}, marks=pytest.mark.slow),
        ("finetune", {"optimizer__l2_sp": 0.5}),
        ("probe", {"average": EMA}),
    ],
)
def test_a_resumed_job_equals_a_whole_one(
    tmp_path: Path, method: str, changes: dict[str, Any]
) -> None:
    config = _config(tmp_path, method, **changes)
    whole = _run(tmp_path, "whole", config)
    paused = _run(tmp_path, "resumed", config | {"stop_after": 2})
    assert len(metrics(paused)) == 2
    resumed = _run(tmp_path, "resumed", config)
    assert metrics(resumed) == metrics(whole)
    assert (resumed / BEST_WEIGHTS).read_bytes() == (whole / BEST_WEIGHTS).read_bytes()
    if "optimizer__l2_sp" in changes:
        free = _run(tmp_path, "free", _config(tmp_path, method))
        assert metrics(free) != metrics(whole)


@pytest.mark.parametrize(
    "method",
    ["lora", "probe", *(pytest.param(m, marks=pytest.mark.slow) for m in ("bitfit", "norm"))],
)
def test_cached_epochs_equal_uncached_ones(tmp_path: Path, method: str) -> None:
    half = {"model": _config(tmp_path, method)["model"] | {"pct_unfreeze": 0.5}}
    cached = _run(tmp_path, "on", _config(tmp_path, method, store__mode="on", **half))
    uncached = _run(tmp_path, "off", _config(tmp_path, method, store__mode="off", **half))
    assert summary(cached)["prefix_kept"] and not summary(uncached)["prefix_kept"]
    assert metrics(cached) == metrics(uncached)


def test_pixels_pass_through_the_frozen_layers_in_pieces_of_a_fixed_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that memory does not grow with the rows that a table computes at a time; equal values."""
    sizes = []
    read = ActivationReader._pixels

    def note(self: ActivationReader, view: int, places: np.ndarray) -> torch.Tensor:
        sizes.append(len(places))
        return read(self, view, places)

    monkeypatch.setattr(ActivationReader, "_pixels", note)
    monkeypatch.setattr("tvf.frontier.activations.BLOCK_SIZE", 4)
    config = _config(tmp_path, "finetune", store__mode="on")
    config["model"]["pct_unfreeze"] = 0.5
    whole = _run(tmp_path, "whole", config)
    assert max(sizes) > 12
    sizes.clear()
    monkeypatch.setattr("tvf.store.arrays.PIECE", 8)
    config = _config(tmp_path, "finetune", store__mode="on", store__dir=str(tmp_path / "another"))
    config["model"]["pct_unfreeze"] = 0.5
    pieces = _run(tmp_path, "pieces", config)
    assert 0 < max(sizes) < 8 + 4 // 2
    assert metrics(pieces) == metrics(whole)


def test_a_job_of_a_linear_head_has_the_weights_that_autograd_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _config(tmp_path, "finetune", model__pct_unfreeze=0.0, optimizer__clip_norm=0.1)
    written_out, asked = _run(tmp_path, "written", config), list[bool]()
    monkeypatch.setattr(step, "is_written_out", lambda *_: asked.append(True))
    recorded = _run(tmp_path, "recorded", config)
    assert asked and metrics(written_out) == metrics(recorded)
    assert (written_out / BEST_WEIGHTS).read_bytes() == (recorded / BEST_WEIGHTS).read_bytes()


def test_lora_reads_from_the_store_what_fine_tuning_has_computed(tmp_path: Path) -> None:
    images = []
    for method in ("finetune", "lora"):
        config = _config(tmp_path, method, store__mode="on")
        config["model"]["groups"] = ["conv2"]
        images.append(summary(_run(tmp_path, method, config))["prefix_images"])
    assert images[0] > 0 and images[1] == 0


def test_what_is_saved_is_an_ordinary_network_with_the_recorded_predictions(
    tmp_path: Path,
) -> None:
    folder = _run(tmp_path, "job", _config(tmp_path, "lora"))
    plain = FineTuneModel(small_backbone(), 0.0).eval()
    load_weights(plain, folder / BEST_WEIGHTS, summary(folder)["best_epoch"])
    before = FineTuneModel(small_backbone(), 0.0).state_dict()
    assert not torch.equal(before["module.conv2.weight"], plain.module.conv2.weight)  # type: ignore[arg-type]
    predicted = read_predictions(folder)["test"].logits
    with torch.no_grad():
        logits = plain(DATA.test.pixels(np.arange(len(DATA.test)))).numpy()
    np.testing.assert_allclose(logits, predicted, rtol=1e-5, atol=1e-6)
    best = metrics(folder)[summary(folder)["best_epoch"] - 1]
    assert summary(folder)["val_loss"] == pytest.approx(best["val_loss"], abs=1e-6)
    sizes = [p.numel() for p in plain.parameters()]
    assert summary(folder)["total_params"] == sum(sizes) > summary(folder)["trainable_params"]


def test_a_probe_begins_with_ridge_regression_on_its_training_images(tmp_path: Path) -> None:
    """Its head is that of the normal equations on standardised inputs, up to the logits' scale."""
    config = _config(tmp_path, "probe")
    job = build_job(config, small_context(tmp_path), None)
    start_from_ridge(job.phases)
    model: Any = job.phases.model.eval()
    seen: list[torch.Tensor] = []
    model.probe.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        logits = model(DATA.train.pixels(np.arange(len(DATA.train))))
    x = seen[0].double()
    mean, spread = model.probe.standardise(x)
    labels = DATA.train.labels
    ridge = fit_ridge((x - mean) / spread, labels, len(DATA.classes), standardise=False)
    expected = ridge((x - mean) / spread) * best_scale(ridge.left_out, labels)
    torch.testing.assert_close(logits.double(), expected, rtol=1e-4, atol=1e-4)


def test_a_probes_start_leaves_room_on_a_device_for_the_epochs(tmp_path: Path) -> None:
    """It reads images as they are, of which some are flipped in all epochs."""
    flips = FlipsAndCrops(horizontal=0.5)
    config = _config(tmp_path, "probe", epochs=1)
    seen = []
    for residency in (None, Apart()):
        job = build_job(config, small_context(tmp_path), Store(tmp_path / "store", 10**9))
        job.phases.augment, job.phases.residency = flips, residency
        start_from_ridge(job.phases)
        inputs = job.phases.pipeline_of(0).train(1)
        (tensors,) = inputs.batches([np.arange(len(DATA.train))])
        seen.append(inputs.module(*tensors).detach())
    torch.testing.assert_close(*seen)


def test_the_statistics_of_a_probe_are_kept_for_other_jobs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = _config(tmp_path, "probe")
    config["model"] = TARGETS["probe"] | {"frozen_bn": "recalibrate"}
    store, found = Store(tmp_path / "store", 10**9), []
    for _ in range(2):
        job = build_job(config, small_context(tmp_path), store)
        found.append([buffer.clone() for buffer in job.phases.model.buffers()])
    assert "not caching" not in caplog.text
    assert len([*store.folder.rglob("statistics/*/*.rows")]) == 1
    assert all(map(torch.equal, *found))


def test_a_probe_is_loaded_with_the_predictions_that_it_recorded(tmp_path: Path) -> None:
    folder = _run(tmp_path, "job", _config(tmp_path, "probe"))
    probe = ProbeModel(small_backbone(), DATA.train.pixels(np.arange(1)).shape[-1]).eval()
    load_weights(probe, folder / BEST_WEIGHTS, summary(folder)["best_epoch"])
    with torch.no_grad():
        logits = probe(DATA.test.pixels(np.arange(len(DATA.test)))).numpy()
    predicted = read_predictions(folder)["test"].logits
    np.testing.assert_allclose(logits, predicted, rtol=1e-5, atol=1e-5)
    assert summary(folder)["unfrozen_groups"] == []


@pytest.mark.slow
def test_a_head_phase_is_shared_by_ranks_and_leaves_adapters_as_they_begin(tmp_path: Path) -> None:
    recipe = {"_target_": "tvf.training.LpFt", "head_epochs": 1}
    fingerprints, folders = [], []
    for rank in (1, 2):
        config = _config(tmp_path, "lora", recipe=recipe)
        config["model"]["rank"] = rank
        job = build_job(config, small_context(tmp_path), Store(tmp_path / "store", 10**9))
        fingerprints.append(job.head_phase)
        folders.append(_run(tmp_path, str(rank), config))
    assert fingerprints[0] is not None and len({*fingerprints}) == 1
    config["store"]["mode"] = "off"
    assert metrics(folders[1]) == metrics(_run(tmp_path, "alone", config))


def test_statistics_are_recalibrated_where_normalisation_trains(tmp_path: Path) -> None:
    for method in ("lora", "norm"):
        config = _config(tmp_path, method, model__frozen_bn="recalibrate")
        config["model"] = TARGETS[method] | {"pct_unfreeze": 1.0, "frozen_bn": "recalibrate"}
        job = build_job(config, small_context(tmp_path), Store(tmp_path / "store", 10**9))
        network: Any = job.phases.model.module
        for layer in (network.bn1, network.bn2):
            assert isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None
            assert layer.running_mean.abs().max() > 0


def test_jobs_of_other_methods_are_siblings_and_change_nothing(tmp_path: Path) -> None:
    config = _config(tmp_path, "finetune")
    others = {method: _config(tmp_path, method) for method in ("lora", "bitfit", "norm")}
    write_manifest(tmp_path, {"own": config, **others})
    context = replace(small_context(tmp_path / "own"), sweep=tmp_path)
    job = build_job(config, context, Store(tmp_path / "store", 10**9))
    assert len(job.phases.siblings) == 1 + len(others)  # its own configuration is one
    assert not any(layer._forward_hooks for layer in job.phases.model.modules())
    assert all(parameter.requires_grad for parameter in job.phases.model.parameters())
