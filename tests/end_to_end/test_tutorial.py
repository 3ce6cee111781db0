"""The tutorial, number for number: a plain PyTorch loop, as it describes it, against tvf."""

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from scipy.stats import chi2_contingency, chisquare
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import CIFAR10
from torchvision.transforms import functional

from helpers.cifar_files import draw_images, expect_files, write_cifar10
from helpers.configs import plain_config
from tvf import cli
from tvf.config.build import build, build_part
from tvf.data.augment import FlipsAndCrops
from tvf.models.backbones import resnet
from tvf.models.finetune import FineTuneModel
from tvf.records.rows import read_jobs
from tvf.training.step import sum_batches

EPOCHS, BATCH, SEED = 3, 16, 1337
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
DEEPEST_FIRST = ["layer4", "layer3", "layer2", "layer1", "bn1", "conv1"]
# How many of the six train: round(pct * 6), half to even.
TRAINED = {0.0: 0, 0.25: 2, 0.5: 3, 0.75: 4, 1.0: 6}
METRICS = ("train_loss", "train_acc", "val_loss", "val_acc")


@dataclass
class PlainRun:
    """The plain loop's metrics and the network's whole state after every epoch."""

    metrics: list[dict[str, float]] = field(default_factory=list)
    states: list[dict[str, Tensor]] = field(default_factory=list)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with CIFAR-10's files and a ResNet18 checkpoint where torchvision looks for it.

    Sets torch to one thread, because the order of sums depends on it.
    """
    home = tmp_path_factory.mktemp("tutorial")
    checkpoints = home / "torch" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    url = torchvision.models.ResNet18_Weights.DEFAULT.url
    torch.save(pretrained_weights(), checkpoints / url.rpartition("/")[2])
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(home / "torch"))
        # 110 and 140: the last batch is smaller, in training and in validation.
        expect_files(
            patch, write_cifar10(home / "data", draw_images(110, seed=1), draw_images(140, seed=2))
        )
        torch.set_num_threads(1)
        yield home
    torch.set_num_threads(threads)


def pretrained_weights() -> dict[str, Tensor]:
    """A ResNet18 whose BatchNorm layers have statistics, scales and shifts as after training."""
    torch.manual_seed(7)
    network = torchvision.models.resnet18()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor, low, high in (
                (layer.weight.data, 0.8, 1.2),
                (layer.bias.data, -0.1, 0.1),
                (layer.running_mean, -0.1, 0.1),
                (layer.running_var, 0.5, 1.5),
            ):
                assert tensor is not None
                tensor.uniform_(low, high)
    return network.state_dict()


@cache
def train_plainly(root: Path, pct: float) -> PlainRun:
    """Train as the tutorial does, without augmentation or tvf. Transfer learning is `pct` 0."""
    to_tensor = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    training, testing = (
        CIFAR10(root, train=True, transform=to_tensor),
        CIFAR10(root, train=False, transform=to_tensor),
    )

    torch.manual_seed(SEED)
    network = torchvision.models.resnet18(weights="DEFAULT")
    network.fc = nn.Linear(network.fc.in_features, 10)
    for parameter in network.parameters():
        parameter.requires_grad = False
    for parameter in network.fc.parameters():
        parameter.requires_grad = True
    unfrozen: list[nn.Parameter] = []
    for name in DEEPEST_FIRST[: TRAINED[pct]]:
        for parameter in network.get_submodule(name).parameters():
            parameter.requires_grad = True
            unfrozen.append(parameter)
    groups: list[dict[str, Any]] = [{"params": list(network.fc.parameters()), "lr": 1e-3}]
    if unfrozen:
        groups.append({"params": unfrozen, "lr": 1e-4})
    optimizer = torch.optim.Adam(groups, weight_decay=1e-4)
    criterion = nn.CrossEntropyLoss()

    run = PlainRun()
    for epoch in range(1, EPOCHS + 1):
        # Only the order of the samples must be taken from tvf's documentation.
        order = np.random.default_rng([SEED, epoch]).permutation(len(training)).tolist()
        network.train()
        loss_sum, correct = 0.0, 0
        for images, labels in DataLoader(training, BATCH, sampler=order):
            optimizer.zero_grad()
            logits = network(images)
            loss = criterion(logits, labels)
            loss.backward()
            optimizer.step()
            loss_sum += loss.item() * len(labels)
            correct += int((logits.argmax(1) == labels).sum())
        metrics = {"train_loss": loss_sum / len(training), "train_acc": correct / len(training)}

        network.eval()
        loss_sum, correct = 0.0, 0
        with torch.no_grad():
            for images, labels in DataLoader(testing, 128):
                logits = network(images)
                loss_sum += criterion(logits, labels).item() * len(labels)
                correct += int((logits.argmax(1) == labels).sum())
        metrics |= {"val_loss": loss_sum / len(testing), "val_acc": correct / len(testing)}
        run.metrics.append(metrics)
        run.states.append({name: value.clone() for name, value in network.state_dict().items()})
    return run


def train_with_tvf(home: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *model: str) -> None:
    """Run `train.py +experiment=cifar10_tutorial`, shorter, in small batches, not augmented."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    arguments = [
        "+experiment=cifar10_tutorial",
        *model,
        "augment=none",
        f"epochs={EPOCHS}",
        f"data.root={home / 'data'}",
        "data.download=false",
        f"data.batch_size={BATCH}",
        "fabric=cpu",
        "threads=1",
        "tracker=none",
        f"hydra.run.dir={folder}",
    ]
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    cli.train()


def assert_equal(actual: Tensor, expected: Tensor, name: str) -> None:
    """Equal to 1e-6 relative to the number or, near zero, to the tensor's largest number."""
    largest = expected.abs().max().item()
    torch.testing.assert_close(
        actual, expected, rtol=1e-6, atol=1e-6 * largest, msg=lambda message: f"{name}: {message}"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "pct"),
    [
        pytest.param(["model=transfer", "model.pct_unfreeze=0.5"], 0.0, id="transfer"),
        pytest.param(["model=finetune", "model.pct_unfreeze=0"], 0.0, id="0"),
        pytest.param(["model=finetune", "model.pct_unfreeze=0.25"], 0.25, id="0.25"),
        pytest.param(["model=finetune", "model.pct_unfreeze=0.5"], 0.5, id="0.5"),
        pytest.param(["model=finetune", "model.pct_unfreeze=0.75"], 0.75, id="0.75"),
        pytest.param(["model=finetune", "model.pct_unfreeze=1.0"], 1.0, id="1.0"),
    ],
)
def test_a_plain_loop_and_tvf_reach_the_same_numbers(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: list[str], pct: float
) -> None:
    plain = train_plainly(home / "data", pct)
    train_with_tvf(home, tmp_path / "job", monkeypatch, *model)

    lines = [
        json.loads(line) for line in (tmp_path / "job" / "metrics.jsonl").read_text().splitlines()
    ]
    assert len(lines) == EPOCHS
    for line, metrics in zip(lines, plain.metrics, strict=True):
        assert {name: line[name] for name in METRICS} == pytest.approx(metrics, rel=1e-6, abs=0)

    summary = json.loads((tmp_path / "job" / "summary.json").read_text())
    best = max(
        range(EPOCHS), key=lambda i: (plain.metrics[i]["val_acc"], -plain.metrics[i]["val_loss"])
    )
    # The best epoch is the last, so what is compared went through the whole training.
    assert summary["best_epoch"] == best + 1 == EPOCHS
    for name in ("loss", "acc"):
        assert summary[f"test_{name}"] == pytest.approx(
            plain.metrics[best][f"val_{name}"], rel=1e-6, abs=0
        )
    saved = safetensors.torch.load_file(tmp_path / "job" / "checkpoints" / "best.safetensors")
    expected = {f"module.{name}": tensor for name, tensor in plain.states[best].items()}
    assert saved.keys() - {"mean", "std"} == expected.keys()
    for name, tensor in expected.items():
        assert_equal(saved[name], tensor, name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fractions", "names"),
    [
        ("0.5", ["fine-tuning-0.5", "transfer-learning"]),
        ("0,0.5,1.0", ["fine-tuning-0", "fine-tuning-0.5", "fine-tuning-1.0", "transfer-learning"]),
    ],
)
def test_the_tutorials_command_makes_its_runs_and_trains_transfer_once_for_all_fractions(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fractions: str, names: list[str]
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    arguments = [
        "-m",
        "+experiment=cifar10_tutorial",
        "model=transfer,finetune",
        f"model.pct_unfreeze={fractions}",
    ]
    # Like the tutorial, but for one epoch. The basic launcher stays in this process, in which
    # CIFAR-10's checksums are patched.
    arguments += [
        "epochs=1",
        f"data.root={home / 'data'}",
        "data.download=false",
        "hydra/launcher=basic",
    ]
    monkeypatch.setattr(
        sys,
        "argv",
        ["train.py", *arguments, "tracker=none", f"hydra.sweep.dir={tmp_path / 'sweep'}"],
    )
    cli.train()
    rows = read_jobs(tmp_path / "sweep")
    assert sorted(row["name"] for row in rows) == names
    assert {row["state"] for row in rows} == {"done"}


def test_an_epoch_of_391_batches_is_summed_without_losing_digits() -> None:
    losses = [torch.tensor(128 * (1.5 + 0.001 * (number % 7))) for number in range(391)]
    assert sum_batches(losses) == pytest.approx(
        math.fsum(loss.item() for loss in losses), rel=1e-13
    )


def compose_tutorial(*overrides: str) -> dict[str, Any]:
    """The experiment's config as a job gets it."""
    return plain_config("+experiment=cifar10_tutorial", *overrides)


def test_the_experiment_has_the_tutorials_numbers() -> None:
    config = compose_tutorial("model=finetune", "model.pct_unfreeze=0.5")
    assert config["project"] == config["tracker"]["project"] == "transfer-vs-finetune"
    assert config["name"] == "fine-tuning-0.5"
    assert compose_tutorial("model=transfer")["name"] == "transfer-learning"
    assert (config["epochs"], config["seed"]) == (30, 1337)
    for model in ("transfer", "finetune"):
        assert compose_tutorial(f"model={model}")["model"]["frozen_bn"] == "batch"
    backbone, data, optimizer = config["backbone"], config["data"], config["optimizer"]
    assert (backbone["name"], backbone["grouping"]) == ("resnet18", "layers")
    assert (tuple(backbone["mean"]), tuple(backbone["std"])) == (MEAN, STD)
    assert (data["image_size"], data["batch_size"]) == (32, 128)
    assert (data["validate_on"], data["limit"]) == ("test", None)
    assert optimizer["algorithm"]["_target_"] == "torch.optim.Adam"
    assert (optimizer["lr"], optimizer["backbone_lr"]) == (1e-3, 1e-4)
    assert optimizer["weight_decay"] == 1e-4
    augment = config["augment"]
    assert (augment["padding"], augment["horizontal"], augment["vertical"]) == (4, 0.5, 0.0)


def images_that_tell_positions(count: int) -> Tensor:
    """Equal images whose red is a pixel's row and green its column, both from 1; blue is 255."""
    position = torch.arange(1, 33, dtype=torch.uint8)
    image = torch.stack(
        [
            position[:, None].expand(32, 32),
            position.expand(32, 32),
            torch.full((32, 32), 255).byte(),
        ]
    )
    return image.expand(count, 3, 32, 32).contiguous()


def find_crops(views: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Top and left (0 to 8) and flip of every view of `images_that_tell_positions`."""
    row, column, right = (
        views[:, channel, 16, x].long() for channel, x in ((0, 16), (1, 16), (1, 17))
    )
    flipped = column > right
    # Padding is 4 columns, and a flip moves column 15 to column 16.
    return (row - 13).numpy(), (column - torch.where(flipped, 12, 13)).numpy(), flipped.numpy()


@pytest.fixture(scope="module")
def augment() -> FlipsAndCrops:
    return build(compose_tutorial()["augment"], "augment")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("samples", "views"), [(10_000, 4), (50, 800)], ids=["many samples", "many views"]
)
def test_crops_and_flips_are_drawn_as_the_tutorial_draws_them(
    augment: FlipsAndCrops, samples: int, views: int
) -> None:
    """All 9 x 9 offsets, with and without a flip, are equally frequent."""
    images, counts = images_that_tell_positions(samples), np.zeros((9, 9, 2), int)
    for view in range(1, views + 1):
        crops = find_crops(augment(images, np.arange(samples), view))
        np.add.at(counts, tuple(values.astype(int) for values in crops), 1)
    assert counts.sum() == samples * views
    assert counts.min() > 0
    # Views are a pure function, so this always passes or always fails; fair draws would fail for
    # one seed in a thousand.
    assert chisquare(counts.ravel()).pvalue > 1e-3  # type: ignore[attr-defined]
    for axes in ((1, 2), (0, 2), (0, 1)):
        assert chisquare(counts.sum(axes)).pvalue > 1e-3  # type: ignore[attr-defined]


@pytest.mark.slow
def test_one_view_tells_nothing_about_the_next(augment: FlipsAndCrops) -> None:
    images, samples = images_that_tell_positions(20_000), np.arange(20_000)
    now, after = (find_crops(augment(images, samples, view)) for view in (1, 2))
    for one in now:
        for other in after:
            table = np.zeros((9, 9), int)
            np.add.at(table, (one.astype(int), other.astype(int)), 1)
            table = table[table.any(1)][:, table.any(0)]
            assert chi2_contingency(table).pvalue > 1e-3  # type: ignore[attr-defined]


def test_the_network_sees_the_result_of_torchvisions_zero_padding_crop_flip_and_normalise(
    augment: FlipsAndCrops,
) -> None:
    images = images_that_tell_positions(200)
    views = augment(images, np.arange(200), 1)
    model = FineTuneModel(resnet("resnet18", 10, weights=None, mean=MEAN, std=STD), 0.5)
    seen: list[Tensor] = []
    model.module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model.eval()(views)
    picture = functional.to_pil_image(images[0])
    for view, top, left, flipped in zip(seen[0], *find_crops(views), strict=True):
        expected = functional.crop(functional.pad(picture, [4]), int(top), int(left), 32, 32)
        expected = np.array(functional.hflip(expected) if flipped else expected)
        assert torch.equal(
            view, functional.normalize(functional.to_tensor(expected), [*MEAN], [*STD])
        )
    black = -torch.tensor(MEAN) / torch.tensor(STD)
    corner = views[:, 2, 0, 0] == 0
    assert 50 < corner.sum() < 200
    assert torch.equal(seen[0][corner][:, :, 0, 0], black.expand(int(corner.sum()), 3))


@pytest.mark.parametrize(
    ("grouping", "pct", "trained"),
    [
        ("layers", 0.0, []),
        ("layers", 0.25, ["layer4", "layer3"]),
        ("layers", 0.5, ["layer4", "layer3", "layer2"]),
        ("layers", 0.75, ["layer4", "layer3", "layer2", "layer1"]),
        ("layers", 1.0, DEEPEST_FIRST),
        ("stages", 0.0, []),
        ("stages", 0.25, ["layer4"]),
        ("stages", 0.5, ["layer4", "layer3"]),
        ("stages", 0.75, ["layer4", "layer3", "layer2"]),
        ("stages", 1.0, DEEPEST_FIRST),
    ],
)
def test_six_groups_follow_the_tutorials_code_and_four_its_prose(
    grouping: str, pct: float, trained: list[str]
) -> None:
    config = compose_tutorial(
        f"backbone.grouping={grouping}", "backbone.weights=null", f"model.pct_unfreeze={pct}"
    )
    backbone = build_part(config, "backbone", num_classes=10)
    model = build_part(config, "model", backbone=backbone)
    names = {name for name, parameter in model.module.named_parameters() if parameter.requires_grad}
    assert {name.partition(".")[0] for name in names} == {"fc", *trained}
    for layer in ("fc", *trained):
        assert all(
            parameter.requires_grad for parameter in model.module.get_submodule(layer).parameters()
        )
    assert len(model.trained_groups) == round(pct * {"layers": 6, "stages": 4}[grouping])
