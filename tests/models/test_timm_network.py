"""timm networks: what is new with the head, names that timm takes, and timm's own reasons."""

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from tvf.errors import InputError
from tvf.models import (
    FineTuneModel,
    check_network,
    load_initial_weights,
    save_weights,
    timm_backbone,
)
from tvf.models.backbones import run_black_images


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("volo_d1_224", ("head", "aux_head")),
        ("efficientvit_m0", ("head.linear", "head.bn")),
        ("resnet18", ("fc",)),
        ("deit_tiny_distilled_patch16_224", ("head", "head_dist")),
        ("levit_128s", ("head.linear", "head.bn", "head_dist.bn", "head_dist.linear")),
        ("efficientformer_l1", ("head", "head_dist")),
        ("efficientformerv2_s0", ("head", "head_dist")),
        ("swiftformer_xs", ("head", "head_dist")),
        ("repvit_m1", ("head.head.l", "head.head.bn")),
        ("efficientvim_m1", ("heads.0", "heads.1", "heads.2", "heads.3")),
    ],
)
def test_what_is_new_with_the_head_belongs_to_it_and_trains_at_fraction_0(
    name: str, heads: tuple[str, ...]
) -> None:
    with torch.device("meta"):
        backbone = timm_backbone(name, 3, pretrained=False)
    assert backbone.heads == heads
    named = {path for group in backbone.groups for path in group.parameters}
    assert not any(path.startswith(f"{head}.") for path in named for head in heads)
    model = FineTuneModel(backbone, 0.0)
    training = {path for path, p in model.module.named_parameters() if p.requires_grad}
    assert {path.rpartition(".")[0] for path in training} == {*heads}
    assert len(model.head_parameters()) == len(training)


@pytest.mark.parametrize("apart", [False, True])
def test_both_heads_of_a_distilled_network_make_its_logits_and_train(apart: bool) -> None:
    """timm returns the mean of both unless distilled training is on, which tvf leaves off."""
    options = {"depth": 1, "embed_dim": 12, "num_heads": 1, "img_size": 32}
    backbone = timm_backbone("deit_tiny_distilled_patch16_224", 2, False, options=options)
    check_network(backbone, 32, 2)
    model = FineTuneModel(backbone, 0.0, head_dropout=0.5)
    seen: list[torch.Tensor] = []
    for head in ("head", "head_dist"):
        layer: Any = backbone.module.get_submodule(head)
        layer.register_forward_hook(lambda layer, inputs, output: seen.append(output))
    logits = model.train(apart)(torch.full((3, 3, 32, 32), 9.0))
    assert torch.equal(logits, (seen[0] + seen[1]) / 2)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.head_parameters())
    assert not any(p.grad is not None for n, p in model.named_parameters() if "blocks" in n)


def test_two_heads_of_other_classes_are_named_as_such(tmp_path: Path) -> None:
    options = {"depth": 1, "embed_dim": 12, "num_heads": 1, "img_size": 32}
    models = [
        FineTuneModel(
            timm_backbone("deit_tiny_distilled_patch16_224", n, False, options=options), 0
        )
        for n in (2, 3)
    ]
    save_weights(models[0], tmp_path / "x.safetensors", 1)
    with pytest.raises(InputError, match="its head is for 2 classes, this one for 3"):
        heads = [f"module.{head}" for head in models[1].heads]
        load_initial_weights(models[1], str(tmp_path / "x.safetensors"), *heads)


@pytest.mark.parametrize(
    ("name", "deepest", "last", "count"),
    [
        ("pit_ti_224", "transformers.2+norm", "patch_embed.conv+pos_embed+cls_token", 4),
        ("poolformer_s12", "stages.3+head.norm", "stem.conv", 5),
        ("rdnet_tiny", "dense_stages.6+head.norm", "stem", 8),
    ],
)
def test_networks_that_timm_does_not_group_are_grouped_by_their_graph(
    name: str, deepest: str, last: str, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The last one has groups in timm, but no coarse ones."""
    caplog.set_level("INFO")
    with torch.device("meta"):
        groups = timm_backbone(name, 3, pretrained=False).groups
    assert (groups[0].name, groups[-1].name, len(groups)) == (deepest, last, count)
    assert f"timm does not group the layers of {name} (" in caplog.text


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("resnetv2_50x1_bit", ("head.fc",)),
        ("dpn68", ("classifier",)),
        ("dla34", ("fc",)),
        ("caformer_s18", ("head.fc.fc2", "head.fc.fc1", "head.fc.norm")),
    ],
)
def test_heads_that_are_convolutions_or_have_layers_inside(
    name: str, heads: tuple[str, ...]
) -> None:
    with torch.device("meta"):
        backbone = timm_backbone(name, 3, pretrained=False)
        assert backbone.heads == heads
        size = backbone.image_size or 224
        assert backbone.module(torch.zeros(2, 3, size, size)).shape == (2, 3)
    assert len({group.name for group in backbone.groups}) == len(backbone.groups)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenetv5_300m_enc", "qwen3_vit_88m_enc"])
def test_a_network_that_timm_gives_no_classifier_gets_one_on_its_mean(name: str) -> None:
    with torch.device("meta"):
        backbone = timm_backbone(name, 3, pretrained=False)
        size = backbone.image_size or 224
        features = backbone.module.features(torch.zeros(2, 3, size, size))  # type: ignore[operator]
        assert backbone.module(torch.zeros(2, 3, size, size)).shape == (2, 3)
    assert features.dim() > 2
    assert backbone.head == "head"
    assert all(group.name.startswith("features.") for group in backbone.groups)


@pytest.mark.parametrize("name", ["volo_d1_224", "deit_tiny_distilled_patch16_224", "levit_128s"])
def test_a_network_for_another_size_of_images_names_the_option(name: str) -> None:
    with torch.device("meta"):
        backbone = timm_backbone(name, 2, pretrained=False)
        message = (
            "data.image_size=64: .+It was made for data.image_size=224; "
            r"\+backbone.options.img_size=64 adapts it"
        )
        with pytest.raises(InputError, match=message):
            run_black_images(backbone, 64, 1)
        adapted = timm_backbone(name, 2, pretrained=False, options={"img_size": 64})
        assert run_black_images(adapted, 64, 1).shape == (1, 2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet18.fb_in22k", "invalid pretrained tag 'fb_in22k'.*its tags are a1_in1k, a2_in1k"),
        ("vit_tiny_patch16_224.nope", "its tags are augreg_in21k_ft_in1k"),
        ("botnet50ts_256", "no pretrained weights exist.*such as .*backbone.pretrained=false"),
        ("timm/resnet18", "no source prefix.*Use 'hf-hub:timm/resnet18'"),
        ("hub:resnet18", "Unknown model source 'hub'"),
        (
            "local-dir:/nowhere",
            "Config file not found: /nowhere/config.json.*holds config.json and",
        ),
    ],
)
def test_a_name_without_weights_says_why_and_what_works(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        timm_backbone(name, 2)


def test_a_hub_name_reaches_timm_and_its_failure_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def unreachable(name: str, **options: object) -> None:
        asked.append(name)
        raise FileNotFoundError("no connection to the Hub")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(InputError, match="weights of hf-hub:owner/name .*no connection to the Hub"):
        timm_backbone("hf-hub:owner/name", 2)
    assert asked == ["hf-hub:owner/name"]


def test_a_local_folder_is_a_network(tmp_path: Path) -> None:
    network: Any = timm.create_model("test_resnet", num_classes=10)
    timm.models.save_for_hf(network, str(tmp_path), model_config={"num_classes": 10})
    backbone = timm_backbone(f"local-dir:{tmp_path}", 2)
    own = backbone.module.state_dict()
    published = {k: v for k, v in network.state_dict().items() if not k.startswith("fc.")}
    assert all(torch.equal(own[name], value) for name, value in published.items())
    assert own["fc.weight"].shape[0] == 2


def test_what_a_local_folder_lacks_is_named(tmp_path: Path) -> None:
    network: Any = timm.create_model("test_resnet", num_classes=10)
    timm.models.save_for_hf(network, str(tmp_path), model_config={"num_classes": 10})
    for weights in (*tmp_path.glob("*.safetensors"), *tmp_path.glob("*.bin")):
        weights.unlink()
    with pytest.raises(
        InputError, match="No suitable checkpoints.*model.safetensors or pytorch_mo"
    ):
        timm_backbone(f"local-dir:{tmp_path}", 2)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="'architecture' is missing.*Such a folder holds config"):
        timm_backbone(f"local-dir:{tmp_path}", 2)


def test_a_checkpoint_of_other_classes_shows_the_shapes_and_works_with_its_number(
    tmp_path: Path,
) -> None:
    network: Any = timm.create_model("test_resnet", num_classes=10)
    torch.save(network.state_dict(), path := tmp_path / "ten.pth")
    options = {"checkpoint_path": str(path)}
    width = network.fc.in_features
    shapes = re.escape(
        f"size mismatch for fc.weight: copying a param with shape torch.Size([10, {width}]) from "
        f"checkpoint, the shape in current model is torch.Size([1000, {width}])."
    )
    with pytest.raises(InputError, match=rf"{shapes}.*\+backbone.options.num_classes=10"):
        timm_backbone("test_resnet", 2, pretrained=False, options=options)
    timm_backbone("test_resnet", 2, pretrained=False, options=options | {"num_classes": 10})
    with pytest.raises(InputError, match="checkpoint_path=/nowhere.pth must be an existing file"):
        timm_backbone("test_resnet", 2, options={"checkpoint_path": "/nowhere.pth"})
    with pytest.raises(InputError, match="unexpected keyword argument 'widht'"):
        timm_backbone("test_resnet", 2, pretrained=False, options={"widht": 2})
