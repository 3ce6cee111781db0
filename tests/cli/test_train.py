"""train.py and `tvf train`: what a job leaves behind, and what bad input gets for an answer."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import wandb

from helpers import SMALL, Outcome

Shell = Callable[..., Outcome]
VALIDATION = ("val_loss", "val_acc")
QUICK = ("epochs=2", "data.limit=40", "data.image_size=32", "data.batch_size=8", "tracker=none")


def _folder(tmp_path: Path) -> Path:
    (folder,) = (tmp_path / "outputs" / "runs").iterdir()
    return folder


def _metrics(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    times = ("epoch_seconds", "images_per_second")
    return [{key: value for key, value in row.items() if key not in times} for row in rows]


def test_a_job_leaves_the_record_that_the_design_names(shell: Shell, tmp_path: Path) -> None:
    outcome = shell(*QUICK, "model.pct_unfreeze=0.25", "seed=3")
    assert outcome.code == 0, outcome.err
    folder = _folder(tmp_path)
    number = r"\d+\.\d+"
    scores = " ".join(rf"{name} {number}" for name in ("train_loss", "train_acc", *VALIDATION))
    line = rf"\[finetune pct=0.25\] epoch 2/2 {scores}\n"
    assert re.search(line, outcome.out)
    assert "conv_head+bn2 412,160, blocks.6 605,440" in outcome.out
    assert re.search(line, (folder / "job.log").read_text())

    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [list(row) for row in metrics] == 2 * [
        ["epoch", "train_loss", "train_acc", "val_loss", "val_acc", "lr_head", "lr_backbone"]
        + ["epoch_seconds", "images_per_second", "val_macro_f1", "val_auroc", "phase"]
    ]
    summary = json.loads((folder / "summary.json").read_text())
    expected = {
        "model": "finetune",
        "backbone": "efficientnet_lite0",
        "data": "elpv",
        "seed": 3,
        "pct_unfreeze": 0.25,
        "unfrozen_groups": ["conv_head+bn2", "blocks.6"],
        "trainable_params": 2562 + 412160 + 605440,
        "epochs": 2,
        "total_params": 3373570,
        "wandb_run_id": None,
        "wandb_url": None,
    }
    assert summary | expected == summary
    best = metrics[summary["best_epoch"] - 1]
    # The summary's scores are measured again, with the weights from disk.
    validation = (*VALIDATION, "val_macro_f1", "val_auroc")
    assert [summary[key] for key in validation] == [best[key] for key in validation]
    assert (summary["metric"], summary["classes"]) == ("accuracy", ["functional", "defective"])
    confusion = summary["test_confusion"]
    assert summary["test_acc"] == (confusion[0][0] + confusion[1][1]) / sum(map(sum, confusion))
    assert {"torch", "tvf", "python"} <= summary["versions"].keys()
    assert summary["machine"]["cores"] > 0
    assert 0 <= summary["test_acc"] <= 1 and summary["test_loss"] > 0
    assert summary["train_seconds"] > 0 and summary["peak_memory_mb"] > 100
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["error"]) == ("done", None)
    assert status["name"] == "fine-tuning-0.25-seed3"
    assert status["started"] <= status["ended"]
    weights = safetensors.torch.load_file(folder / "checkpoints" / "best.safetensors")
    assert weights["module.classifier.weight"].shape == (2, 1280)
    assert (folder / ".hydra" / "overrides.yaml").exists()


@pytest.mark.slow
def test_the_same_command_gives_the_same_metrics_and_another_seed_does_not(
    shell: Shell, tmp_path: Path
) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert shell(*QUICK, f"seed={seed}", f"hydra.run.dir={name}").code == 0
    first, again, other = (_metrics(tmp_path / name) for name in "abc")
    assert first == again != other


@pytest.mark.slow
def test_transfer_and_fraction_zero_give_the_same_metrics(shell: Shell, tmp_path: Path) -> None:
    assert shell(*QUICK, "model=transfer", "hydra.run.dir=a").code == 0
    assert shell(*QUICK, "model.pct_unfreeze=0", "hydra.run.dir=b").code == 0
    assert _metrics(tmp_path / "a") == _metrics(tmp_path / "b")


def test_transfer_warns_that_it_ignores_a_fraction(shell: Shell, tmp_path: Path) -> None:
    outcome = shell(*QUICK, SMALL, "epochs=1", "model=transfer", "model.pct_unfreeze=0.5")
    assert outcome.code == 0
    assert "ignoring model.pct_unfreeze" in outcome.out
    assert json.loads((_folder(tmp_path) / "summary.json").read_text())["pct_unfreeze"] == 0


def test_every_override_of_the_readme_reaches_the_job(shell: Shell, tmp_path: Path) -> None:
    outcome = shell(
        "epochs=2",
        "data.batch_size=16",
        "optimizer=sgd",
        "optimizer.lr=0.01",
        "optimizer.backbone_lr=0.001",
        "data.image_size=96",
        "data.limit=68",
        "seed=7",
        "data.split_seed=${seed}",
        "model.frozen_bn=batch",
        "tracker=none",
        SMALL,
    )
    assert outcome.code == 0, outcome.err
    folder = _folder(tmp_path)
    assert [(row["lr_head"], row["lr_backbone"]) for row in _metrics(folder)] == 2 * [(0.01, 0.001)]
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["seed"], summary["epochs"]) == (7, 2)
    status = json.loads((folder / "status.json").read_text())
    assert status["name"].endswith("-split7-seed7-lr0.01-backbone_lr0.001")


def test_a_users_own_images_and_network(shell: Shell, image_root: Path, tmp_path: Path) -> None:
    conf = tmp_path / "my_conf" / "backbone"
    conf.mkdir(parents=True)
    (conf / "mine.yaml").write_text("_target_: my_network.make\nwidth: 4\n")
    (tmp_path / "my_conf" / "my_network.py").write_text(
        "from torch import nn\n"
        "from tvf.models import Backbone\n"
        "from tvf.models import group_by_modules\n"
        "def make(num_classes, width):\n"
        "    net = nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),\n"
        "                        nn.Flatten(), nn.Linear(width, num_classes))\n"
        "    return Backbone('mine', net, '4', group_by_modules(net, [['0']]))\n"
    )
    outcome = shell(
        "--config-dir",
        str(tmp_path / "my_conf"),
        "backbone=mine",
        "data=image_folder",
        f"data.root={image_root}",
        "data.image_size=32",
        "epochs=1",
        "tracker=none",
        "model.pct_unfreeze=1",
    )
    assert outcome.code == 0, outcome.err + outcome.out
    summary = json.loads((_folder(tmp_path) / "summary.json").read_text())
    assert (summary["backbone"], summary["data"]) == ("mine", "image_folder")
    assert summary["unfrozen_groups"] == ["0"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["model.pct_unfreeze=-0.1"], r"pct_unfreeze=-0.1 is outside \[0, 1\]"),
        (["model.pct_unfreeze=1.5"], r"pct_unfreeze=1.5 is outside \[0, 1\]"),
        (["model.pct_unfreeze=25"], r"did you mean 0.25\?"),
        (["model.pct_unfreeze=nan"], r"pct_unfreeze=nan is outside \[0, 1\]"),
        (["model.pct_unfreeze=abc"], r"pct_unfreeze=abc is not a number"),
        (["model=nope"], r"Could not find 'model/nope'(.|\n)*finetune(.|\n)*transfer"),
        (["backbone=timm", "backbone.name=nope"], r"'nope' is not a timm network"),
        (["data=image_folder", "data.root=/nowhere"], r"data.root=/nowhere must be a folder"),
        (["data=image_folder"], r"data.root has no value"),
        (["data=image_folder", "data.root=2020"], r"must be a path.*'data.root=\"2020\"'"),
        (["model.pct_unfreeze=${z}"], r"pct_unfreeze has a broken reference .*'z' not found"),
        (["data.batch_size=0"], r"data.batch_size=0 must be a whole number of at least 1"),
        (["epochs=0"], r"epochs=0 must be a whole number of at least 1"),
        (["data.metric=f1"], r"data.metric='?f1'? must be one of accuracy, macro_f1, auroc"),
        (
            ["data.metric=auroc", "data.task=four_class"],
            r"data.metric=auroc must be used with 2 classes, but there are 4",
        ),
        (
            ["data.limit=1"],
            r"1 group of images cannot be divided into 2 sides: each needs a group of its own",
        ),
        (["data.image_size=7"], r"data.image_size=7 must be a whole number of at least 32"),
        (["optimizer.lr=-1"], r"optimizer.lr=-1 must be a finite number above 0"),
        (["seed=-1"], r"seed=-1 must be a whole number of at least 0"),
        (["threads=0"], r"threads=0 must be a whole number of at least 1"),
        (["model.frozen_bn=maybe"], r"must be one of eval, batch"),
        (["hydra.run.dir=/dev/null/x"], r"/dev/null/x.*choose another with hydra.run.dir"),
        (["+typo=1"], r"typo is not an option"),
        (["+model.typo=1"], r"model.typo is not an option"),
        (["model.pct_unfreez=0.5"], r"did you mean model.pct_unfreeze\?"),
        (["epoch=3"], r"epoch is not an option: did you mean epochs\?"),
        (["hydra.sweeper.budget=3"], r"hydra.sweeper.budget is not .* one of hydra/sweeper=race:"),
        (
            ["recipe.head_epochs=1"],
            r"recipe.head_epochs is not an option of the chosen recipe. It is one of recipe=lp_ft:",
        ),
        (["optimizer.algorithm.momentum=0"], r"momentum is not .* It is one of optimizer=sgd:"),
        (["-m", "hydra.launcher.partition=x"], r"chosen hydra/launcher, .*hydra/launcher=slurm:"),
        (
            ["data.root=photos"],
            r"data.root is not an option of the chosen data, which has batch_size, .*"
            r"It is one of data=cifar10, data=image_folder, data=table: choose that, or leave it",
        ),
        (["tracker=wandb", "tracker.mode=on"], r"must be one of online, offline, disabled"),
        (["channels_last=no"], r"channels_last='?no'? must be true or false"),
        (["model.unit=layers"], r"model.unit='?layers'? must be one of groups, params"),
        (["seed=99999999999999999999"], r"seed=9{20} must be a whole number of at least 0"),
        (
            ["+backbone.num_classes=7"],
            r"backbone.num_classes is not an option: tvf passes it",
        ),
        (
            ["data.batch_size=1", "model.pct_unfreeze=1"],
            r"BatchNorm layers cannot train on single images",
        ),
        (["hydra.run.dir=/sys/kernel"], r"/sys/kernel.*choose another with hydra.run.dir"),
        (["nonsense"], r"cannot parse nonsense \(missing EQUAL"),
        (
            ["data=image_folder", "data.root=/a/côté"],
            r"cannot parse data.root=/a/côté .*quote a value",
        ),
        (["optimizer.lr=inf"], r"optimizer.lr=inf must be a finite number above 0"),
        (["fabric.devices=-1"], r"fabric.devices=-1 must be the number of devices"),
        (["fabric.resident=some"], r"fabric.resident=some must be one of auto, on, off"),
        (["fabric.compile=true"], r"fabric.compile=True must be one of auto, on, off"),
        (["fabric.tf32=1"], r"fabric.tf32=1 must be true or false"),
        (["deterministic=maybe"], r"deterministic='maybe' must be true or false"),
        (
            ["-m", "hydra.launcher.jobs_per_gpu=2"],
            r"hydra.launcher.jobs_per_gpu is not an option: did you mean fabric.jobs_per_gpu\?",
        ),
        (["fabric.jobs_per_gpu=0"], r"fabric.jobs_per_gpu=0 must be .* of at least 1, or auto"),
        (["fabric.precision=fp8"], r"fabric.precision=fp8 must be one of 32-true, bf16-mixed"),
        (["fabric.accelerator=tpu"], r"fabric.accelerator=tpu must be one of auto, cpu, gpu"),
        (
            ["backbone=resnet18", "backbone.weights=null", "backbone.std=[0,0,0]"],
            r"backbone.std=0 must be a finite number above 0",
        ),
        (
            ["backbone=resnet18", "backbone.weights=null", "backbone.mean=0.5"],
            r"backbone.mean=0.5 must be a list of three numbers, or of one",
        ),
        (
            ["backbone=timm", "backbone.pretrained=false", "+backbone.options.foo=1"],
            r"backbone.options=.*foo",
        ),
        (["tracker=wandb", "project="], r"project is empty"),
        (
            ["augment=torchvision", "augment.transforms.0.size=7"],
            r"augment.transforms returned .* but must return torch.uint8",
        ),
        (
            ["augment._target_=argparse.Namespace"],
            r"augment._target_='argparse.Namespace' must build a tvf.data.Augmentation",
        ),
        (
            ["augment._target_=builtins.dict"],
            r"augment._target_='builtins.dict' has no signature to check",
        ),
        (["optimizer.fused=maybe"], r"optimizer.fused='?maybe'? must be true or false"),
        (["model.frozen_bn=recalibrate", "data.batch_size=1"], r"cannot train on single images"),
        (["hydra/sweeper=race"], r"hydra/sweeper=race must be used with -m.*Add -m"),
        (["hydra.sweep.dir=x"], r"hydra.sweep.dir=x must be used with -m"),
        (["-m", "hydra.launcher.n_jobs=0"], r"n_jobs=0 must be the number"),
        (["-m", "model.unit=groups,foo"], r"model.unit='?foo'? must be one of groups, params"),
        (["-m", "model.pct_unfreeze=0,0.5,25"], r"did you mean 0.25\?"),
        (["-m", "model=finetune,nope"], r"Could not find 'model/nope'"),
        (
            ["-m", "seed=1,2", "hydra.sweep.dir=/dev/null/x"],
            r"choose another with .*hydra.sweep.dir",
        ),
        (["-m", "--cfg", "job"], "Only one of --run, --multirun, --cfg"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_an_error_without_a_traceback_before_any_training(
    shell: Shell, tmp_path: Path, arguments: list[str], expected: str
) -> None:
    given = {argument.split("=")[0] for argument in arguments}
    quick = [argument for argument in QUICK if argument.split("=")[0] not in given]
    outcome = shell(*arguments, *quick)
    printed = outcome.out + outcome.err
    assert outcome.code != 0
    assert re.search(f"error: (.|\n)*{expected}", printed), printed
    assert "Traceback" not in printed and "Error executing job" not in printed
    assert "epoch 1/" not in printed
    assert not list(tmp_path.rglob("metrics.jsonl"))


def test_a_failed_job_records_its_error(shell: Shell, tmp_path: Path) -> None:
    shell(*QUICK, "epochs=0")
    status = json.loads((_folder(tmp_path) / "status.json").read_text())
    assert status["state"] == "failed"
    assert "epochs=0 must be a whole number of at least 1" in status["error"]


def test_bad_input_leaves_a_finished_record_unchanged(shell: Shell, tmp_path: Path) -> None:
    def record() -> dict[str, bytes]:
        names = ["metrics.jsonl", "summary.json", "config.json", "status.json"]
        names.append("checkpoints/best.safetensors")
        return {name: (tmp_path / "a" / name).read_bytes() for name in names}

    assert shell(*QUICK, SMALL, "epochs=1", "hydra.run.dir=a").code == 0
    before = record()
    assert shell(*QUICK, SMALL, "epochs=0", "hydra.run.dir=a").code == 1
    assert record() == before


@pytest.mark.slow
def test_wandb_gets_the_config_the_flat_keys_every_epoch_and_the_test_scores(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, logged = [], []
    real_init, real_log = wandb.init, wandb.Run.log
    monkeypatch.setattr(
        wandb, "init", lambda **arguments: started.append(arguments) or real_init(**arguments)
    )
    monkeypatch.setattr(
        wandb.Run, "log", lambda run, row, **more: logged.append(row) or real_log(run, row, **more)
    )
    outcome = shell(*QUICK[:-1], "model.pct_unfreeze=0.25", "seed=4", "project=mine")
    assert outcome.code == 0, outcome.err
    (start,) = started
    assert (start["project"], start["mode"]) == ("mine", "offline")
    assert start["name"] == "fine-tuning-0.25-seed4"
    config = start["config"]
    flat = {
        "pct_unfreeze": 0.25,
        "model": "finetune",
        "backbone": "efficientnet_lite0",
        "data": "elpv",
        "seed": 4,
    }
    assert {key: config[key] for key in flat} == flat
    assert config["config"]["optimizer"]["lr"] == 0.001
    summary = json.loads((_folder(tmp_path) / "summary.json").read_text())
    lines = (_folder(tmp_path) / "metrics.jsonl").read_text().splitlines()
    test_scores = ("test_loss", "test_acc", "test_macro_f1", "test_auroc")
    last = {key: summary[key] for key in test_scores} | {"epoch": summary["best_epoch"]}
    assert logged == [*map(json.loads, lines), last]
    assert json.loads((_folder(tmp_path) / "status.json").read_text())["wandb_mode"] == "offline"
    assert f"wandb sync {_folder(tmp_path)}/wandb/offline-run-*" in outcome.out


@pytest.mark.slow
def test_a_job_that_cannot_read_its_data_is_a_failed_run(
    shell: Shell, image_root: Path, tmp_path: Path
) -> None:
    (image_root / "train" / "cats" / "3.png").write_text("no image")
    outcome = shell("data=image_folder", f"data.root={image_root}", "data.image_size=32")
    assert outcome.code == 1
    assert "3.png cannot be read as an image" in outcome.out
    assert "Traceback" not in outcome.out + outcome.err
    (wandb_log,) = _folder(tmp_path).glob("wandb/offline-run-*/logs/debug.log")
    assert "got exitcode: 1" in wandb_log.read_text()


def test_a_class_folder_without_images_is_named_before_training(
    shell: Shell, image_root: Path
) -> None:
    (image_root / "train" / "birds").mkdir()
    outcome = shell("data=image_folder", f"data.root={image_root}", "tracker=none")
    assert outcome.code == 1
    assert re.search("error: .*has a class folder without images.*birds", outcome.out)


def test_a_truncated_image_is_named_before_training(shell: Shell, image_root: Path) -> None:
    image = image_root / "train" / "cats" / "3.png"
    image.write_bytes(image.read_bytes()[:300])
    outcome = shell(
        "data=image_folder", f"data.root={image_root}", "data.image_size=32", "tracker=none"
    )
    assert outcome.code == 1
    assert f"{image} cannot be read as an image" in outcome.out
    assert "Traceback" not in outcome.out + outcome.err


def test_the_debug_flag_shows_the_traceback(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TVF_DEBUG", "1")
    outcome = shell(*QUICK, "epochs=0")
    assert "Traceback" in outcome.out + outcome.err


def test_help_names_the_groups_and_the_sweep(shell: Shell) -> None:
    outcome = shell("--help")
    assert outcome.code == 0
    for word in (
        "model: bitfit, finetune, lora, norm, probe, transfer",
        "backbone: efficientnet_lite0",
        "-m model=finetune",
        "pct_unfreeze",
    ):
        assert word in outcome.out


def test_cfg_job_prints_the_config_and_trains_nothing(shell: Shell, tmp_path: Path) -> None:
    outcome = shell("--cfg", "job", "epochs=9")
    assert outcome.code == 0
    assert "epochs: 9" in outcome.out
    assert not list(tmp_path.iterdir())
    assert "name: fine-tuning-0.5" in shell("--cfg", "job", "--resolve").out
