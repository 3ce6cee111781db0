"""A job that starts from the weights of an earlier one, and which weights it may start from."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from helpers import Outcome, small_backbone
from helpers.sweeps import base_config
from helpers.training import DATA
from tvf.config import build_part
from tvf.config.validate import validate_config
from tvf.data.pool import DataSplits, Pool, Split
from tvf.errors import InputError
from tvf.files import BEST_WEIGHTS, write_json
from tvf.job.origin import check_origin
from tvf.models.finetune import FineTuneModel
from tvf.models.weights import check_not_own_weights, load_initial_weights, save_weights
from tvf.records.predictions import write_predictions
from tvf.records.sweep import sibling_configs, write_manifest

Shell = Callable[..., Outcome]
QUICK = (
    "epochs=1",
    "data.limit=32",
    "data.image_size=32",
    "data.batch_size=8",
    "tracker=none",
    "model=transfer",
)
CLASSES = ("a", "b", "c")
PIXELS = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)


def _model(classes: int = 3, seed: int = 1) -> FineTuneModel:
    model = FineTuneModel(small_backbone(classes), 0.5)
    torch.manual_seed(seed)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape))
    return model


def _job(folder: Path, model: FineTuneModel, **summary: Any) -> str:
    save_weights(model, folder / BEST_WEIGHTS, 2)
    write_json(folder / "summary.json", {"backbone": "small", "classes": list(CLASSES)} | summary)
    return str(folder)


def _start(
    model: FineTuneModel, origin: str, images: DataSplits | None = None, **data: Any
) -> None:
    config = {"data": {"_target_": "d", "split_seed": 0} | data}
    check_origin(origin, "small", images or DATA, config)
    load_initial_weights(model, origin, "module.head")


@settings(max_examples=15)
@given(seed=st.integers(2, 2**31), bare=st.booleans())
def test_a_model_that_starts_from_another_gives_the_same_logits(
    tmp_path_factory: pytest.TempPathFactory, seed: int, bare: bool
) -> None:
    origin, model = _model(seed=seed), _model()
    folder = _job(tmp_path_factory.mktemp("job"), origin)
    _start(model, str(Path(folder) / BEST_WEIGHTS) if bare else folder)
    assert torch.equal(model.eval()(PIXELS), origin.eval()(PIXELS))
    assert all(
        torch.equal(tensor, origin.state_dict()[name])
        for name, tensor in model.state_dict().items()
    )


@pytest.mark.slow
def test_a_job_that_hardly_trains_has_the_score_of_its_origins_best_epoch(
    shell: Shell, tmp_path: Path
) -> None:
    slow = ("optimizer.lr=1e-12", "augment=none", "seed=5")
    assert shell(*QUICK, "optimizer.lr=0.1", "hydra.run.dir=first").code == 0
    outcome = shell(*QUICK, *slow, "model.init_from=first", "hydra.run.dir=second")
    assert outcome.code == 0, outcome.out + outcome.err
    assert (
        f"[transfer] starts from the weights in {tmp_path / 'first' / BEST_WEIGHTS}, epoch 1."
        in outcome.out
    )
    first, second = (
        json.loads((tmp_path / name / "summary.json").read_text()) for name in ("first", "second")
    )
    assert second["val_loss"] == pytest.approx(first["val_loss"], rel=1e-6)
    config = json.loads((tmp_path / "second" / "config.json").read_text())
    assert config["model"]["init_from"] == str(tmp_path / "first")


@pytest.mark.parametrize(
    ("origin_classes", "summary", "message"),
    [
        (
            3,
            {"backbone": "large"},
            "that job trained backbone=large, this one trains small. Choose",
        ),
        (3, {"classes": ["a", "c", "b"]}, "that job's classes are a, c, b, this one's are a, b, c"),
        (
            4,
            {},
            r"its head is for 4 classes, this one for 3 "
            r"\(module.head.weight is \(4, 8\), expected \(3, 8\)",
        ),
    ],
)
def test_a_job_with_other_classes_or_another_backbone_raises(
    tmp_path: Path, origin_classes: int, summary: dict[str, Any], message: str
) -> None:
    model = _model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match=f"model.init_from={tmp_path} does not fit: {message}"):
        _start(model, _job(tmp_path, _model(origin_classes), **summary))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_an_origin_without_a_record_of_the_same_images_raises(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = _job(tmp_path, _model())
    write_json(tmp_path / "config.json", {"data": {"_target_": "d", "image_size": 32}})
    _start(_model(), folder, _target_="other")  # other images
    with pytest.raises(InputError, match="no record of the images it was trained on"):
        _start(_model(), folder)
    assert not caplog.text
    _start(_model(), str(tmp_path / BEST_WEIGHTS))
    assert "does not record which images it was trained on" in caplog.text


def test_an_origin_that_trained_on_images_that_validate_or_test_this_job_raises(
    tmp_path: Path,
) -> None:
    """Decided by the images, whatever the configs say: a folder may have grown under its name."""
    pixels = DATA.train.pool.pixels
    pool = Pool(pixels, torch.arange(33) % 3, [str(number) for number in range(33)])
    folder = _job(tmp_path, _model())
    write_json(tmp_path / "config.json", {"data": {"_target_": "d", "split_seed": 0}})
    write_predictions(tmp_path, {}, pixels.digests[:20])

    def divided(train: int, val: int) -> DataSplits:
        places = np.split(np.arange(33), [train, val])
        return DataSplits(CLASSES, *(Split(pool, part) for part in places))

    _start(_model(), folder, divided(20, 26))
    _start(_model(), folder, divided(21, 26), split_seed=3)
    for splits, message in (
        (divided(18, 26), "trained on 2 of this job's 8 validation images"),
        (divided(4, 16), "trained on 12 of this job's 12 validation images"),
    ):
        with pytest.raises(InputError, match=message):
            _start(_model(), folder, splits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state.pop("module.conv1.bias"),
            "another backbone, without module.conv1.bias",
        ),
        (
            lambda state: state.update(more=torch.zeros(1)),
            "another backbone, with more as well",
        ),
        (
            lambda state: state.update({"module.conv1.bias": torch.zeros(7)}),
            r"another backbone: module.conv1.bias is \(7,\), expected \(4,\)",
        ),
        (
            lambda state: state.update(
                {"module.head.weight": torch.zeros(9, 8), "module.head.bias": torch.zeros(9)}
            ),
            "its head is for 9 classes, this one for 3",
        ),
    ],
)
def test_a_file_that_does_not_fit_raises_and_names_the_difference(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    state = dict(_model().state_dict())
    change(state)
    safetensors.torch.save_file(state, path := tmp_path / "some.safetensors")
    with pytest.raises(InputError, match=message):
        _start(_model(), str(path))


def test_a_file_without_weights_raises(tmp_path: Path) -> None:
    (path := tmp_path / "notes.txt").write_text("no weights")
    with pytest.raises(InputError, match="is not a file of weights"):
        _start(_model(), str(path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "does not exist: name a finished job's folder"),
        ("empty", f"must be a job's folder: it has no {BEST_WEIGHTS}"),
        ("unfinished", "must be a finished job: the best weights of this one may still change"),
        (3, "must be a path: name a finished job's folder"),
    ],
)
def test_a_config_whose_origin_does_not_exist_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    save_weights(_model(), tmp_path / "unfinished" / BEST_WEIGHTS, 1)
    config = base_config()
    config["model"]["init_from"] = name
    with pytest.raises(InputError, match=f"model.init_from={name} {message}"):
        validate_config(OmegaConf.create(config))


def test_the_shell_reports_a_wrong_origin_before_any_training(shell: Shell, tmp_path: Path) -> None:
    for arguments in (["-m", "model.init_from=nowhere,elsewhere"], ["model.init_from=nowhere"]):
        wrong = shell(*arguments, *QUICK)
        assert wrong.code
        assert "error: model.init_from=nowhere does not exist" in wrong.out + wrong.err
    _job(tmp_path / "other", _model())
    wrong = shell(*QUICK, "model.init_from=other")
    assert "that job trained backbone=small, this one trains efficientnet_lite0" in wrong.out
    assert "epoch 1/" not in wrong.out


def test_a_jobs_own_folder_cannot_be_its_origin_and_keeps_its_weights(
    shell: Shell, tmp_path: Path
) -> None:
    _job(tmp_path / "own", _model())
    wrong = shell(*QUICK, "model.init_from=own", "hydra.run.dir=own")
    assert "must be outside this job's own folder" in wrong.out
    assert (tmp_path / "own" / BEST_WEIGHTS).exists()
    check_not_own_weights(str(tmp_path / "own"), tmp_path / "another")
    check_not_own_weights(None, tmp_path / "own")


def test_only_jobs_that_start_from_the_same_weights_share_frozen_layers(tmp_path: Path) -> None:
    jobs = {
        str(number): {
            "model": {"pct_unfreeze": 0, "frozen_bn": "eval", "init_from": origin},
            "seed": number,
        }
        for number, origin in enumerate([None, "/a", "/a", "/b"])
    }
    write_manifest(tmp_path, jobs)
    assert [
        [sibling["seed"] for sibling in sibling_configs(tmp_path, job)] for job in jobs.values()
    ] == [*([0], [1, 2], [1, 2], [3])]


def test_building_a_model_over_a_backbone_keeps_its_weights(tmp_path: Path) -> None:
    backbone = small_backbone()
    before = {name: tensor.clone() for name, tensor in backbone.module.state_dict().items()}
    node = {
        "_target_": "tvf.models.FineTuneModel",
        "pct_unfreeze": 0.5,
        "init_from": _job(tmp_path, _model()),
    }
    build_part({"model": node}, "model", backbone=backbone)
    assert all(
        torch.equal(tensor, before[name]) for name, tensor in backbone.module.state_dict().items()
    )


@pytest.mark.slow
def test_a_job_does_not_resume_if_its_origin_has_changed(shell: Shell, tmp_path: Path) -> None:
    assert shell(*QUICK, "hydra.run.dir=first").code == 0
    arguments = (*QUICK, "epochs=2", "model.init_from=first", "hydra.run.dir=second")
    assert shell(*arguments, "stop_after=1").code == 0
    path = tmp_path / "first" / BEST_WEIGHTS
    state = safetensors.torch.load_file(path)
    path.unlink()
    safetensors.torch.save_file({name: value * 2 for name, value in state.items()}, path)
    outcome = shell(*arguments)
    assert (
        outcome.code == 1
        and "holds another configuration: init_from_content was" in outcome.out + outcome.err
    )
