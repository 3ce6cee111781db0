"""backbone.checkpoint in a job: what trains, what is recorded, and what is refused before it."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

import tvf
from helpers.classifier import train_classifier
from helpers.configs import compose_once, plain_config
from helpers.folders import write_images
from tvf.config import starts_at_random, validate_config
from tvf.errors import InputError
from tvf.files import BEST_WEIGHTS
from tvf.models import images_made_for, timm_backbone

NETWORK = ("backbone=timm", "backbone.name=test_resnet")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the network for other classes, as a training script writes it."""
    path = tmp_path_factory.mktemp("weights") / "own.pth"
    state = timm_backbone("test_resnet", 7, pretrained=False).module.state_dict()
    torch.save({"model": {f"module.{name}": tensor for name, tensor in state.items()}}, path)
    return path


@pytest.mark.slow
def test_the_job_starts_from_it_and_the_model_needs_it_no_more(
    images: Path, weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the option, this network's own weights would be downloaded."""
    caplog.set_level("INFO")
    given = (*NETWORK, f"backbone.checkpoint={weights}")
    folder = train_classifier(images, tmp_path / "job", "model.pct_unfreeze=0", backbone=given)
    assert "all 90 tensors of the backbone are from" in caplog.text
    source = torch.load(weights)["model"]
    trained = safetensors.torch.load_file(folder / BEST_WEIGHTS)
    assert torch.equal(trained["module.conv1.0.weight"], source["module.conv1.0.weight"])
    weights.rename(weights.with_suffix(".gone"))
    try:
        model = tvf.load(folder)
    finally:
        weights.with_suffix(".gone").rename(weights)
    table = model.predict([next((images / "train" / "cats").iterdir())])
    assert table.probabilities.shape == (1, 2)


def test_weights_of_a_job_that_saw_the_validation_images_are_refused(
    images: Path, weights: Path, tmp_path: Path
) -> None:
    given = (*NETWORK, f"backbone.checkpoint={weights}")
    first = train_classifier(images, tmp_path / "first", backbone=given)
    best = (*NETWORK, f"backbone.checkpoint={first / BEST_WEIGHTS}")
    again = train_classifier(images, tmp_path / "again", backbone=best)  # the same division
    assert json.loads((again / "summary.json").read_text())
    with pytest.raises(InputError, match="backbone.checkpoint=.*that job trained on .* images"):
        train_classifier(images, tmp_path / "other", "data.split_seed=1", backbone=best)


def test_a_checkpoint_is_matched_before_anything_trains(images: Path, weights: Path) -> None:
    def check(*given: str) -> None:
        validate_config(compose_once(*given, f"data.root={images}", "data=image_folder"))

    check(*NETWORK, f"backbone.checkpoint={weights}")
    with pytest.raises(InputError, match="it has 53 of the 294 tensors"):
        check(f"backbone.checkpoint={weights}")
    with pytest.raises(InputError, match="does not exist"):
        check(f"backbone.checkpoint={weights}x")


@pytest.mark.parametrize(
    ("backbone", "size", "how"),
    [
        (("backbone=efficientnet_lite1",), 240, "bicubic"),
        (("backbone=torchvision", "backbone.name=swin_v2_t"), 256, "bicubic"),
        (("backbone=resnet18",), 224, "bilinear"),
        (("backbone=timm", "backbone.name=vit_small_patch14_dinov2"), 518, "bicubic"),
        (
            ("backbone=timm", "backbone.name=levit_128s", "+backbone.options.img_size=96"),
            96,
            "bicubic",
        ),
    ],
)
def test_images_are_read_as_the_weights_were_made_for_unless_said_otherwise(
    backbone: tuple[str, ...], size: int, how: str, images: Path
) -> None:
    common = ["data=image_folder", f"data.root={images}", *backbone]
    data = validate_config(compose_once(*common))["data"]
    assert (data["image_size"], data["interpolation"]) == (size, how)
    said = ("data.image_size=64", "data.interpolation=box")
    data = validate_config(compose_once(*common, *said))["data"]
    assert (data["image_size"], data["interpolation"]) == (64, "box")


def test_a_network_without_published_weights_takes_a_checkpoint() -> None:
    node = {"_target_": "tvf.models.timm_backbone", "name": "cspresnet50d", "pretrained": True}
    with pytest.raises(InputError, match="no pretrained weights exist for cspresnet50d"):
        images_made_for(node)
    assert images_made_for(node | {"checkpoint": "own.pt"}) == (256, "bilinear")


@pytest.mark.parametrize(
    ("given", "random"),
    [
        (("backbone.pretrained=false",), True),
        (("backbone.pretrained=false", "+backbone.options.checkpoint_path=own.pt"), False),
        (("backbone.pretrained=false", "backbone.checkpoint=own.pt"), False),
        ((), False),
    ],
)
def test_random_weights_are_those_that_come_from_nowhere(
    given: tuple[str, ...], random: bool
) -> None:
    assert starts_at_random(plain_config("backbone=timm", *given)) is random
