"""Networks of torchvision and timm, tried with random weights, and the page that says what works.

`python -m helpers.architectures > docs/backbones.md` (with PYTHONPATH=.:tests) tries all of them
and writes the page; it takes about ten minutes on one core. A test tries some of them.
"""

import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tvf.frontier.split import TracedModel
from tvf.frontier.trace import TraceError
from tvf.models import (
    Backbone,
    FineTuneModel,
    check_network,
    load_weights,
    save_weights,
    timm_backbone,
    torchvision_backbone,
)
from tvf.models.timm_network import takes_image_size

FRACTIONS = (0.0, 0.5, 1.0)
CLASSES = 3
SIZES = (64, 96, 128, 192)  # pixels per side, tried before the size that a network was made for

TORCHVISION = """
alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 maxvit_t
mnasnet0_5 mobilenet_v2 mobilenet_v3_small regnet_x_400mf regnet_y_400mf resnet18 resnext50_32x4d
shufflenet_v2_x0_5 squeezenet1_1 swin_t swin_v2_t vgg11 vgg11_bn vit_b_32 wide_resnet50_2
""".split()
TIMM = """
bat_resnext26ts botnet26t_256 caformer_s18 cait_xxs24_224 coat_lite_tiny coatnet_nano_rw_224
convit_tiny convmixer_768_32 convnext_atto convnextv2_atto crossvit_tiny_240 cs3darknet_s
cspdarknet53 csatv2 davit_tiny deit3_small_patch16_224 deit_tiny_distilled_patch16_224
densenet121 dla46_c dpn48b
eca_nfnet_l0 edgenext_xx_small efficientformerv2_s0 efficientvim_m1 efficientvit_b0 efficientvit_m0
ese_vovnet19b_slim eva02_tiny_patch14_224 fastvit_t8 flexivit_small focalnet_tiny_srf gcvit_xxtiny
ghostnet_050 gmlp_ti16_224 halonet26t hgnetv2_b0 hiera_tiny_224 hrnet_w18_small inception_next_atto
inception_v4 lambda_resnet26rpt_256 lcnet_035 levit_128s mambaout_femto maxvit_rmlp_pico_rw_256
mixer_s32_224 mobilenetv3_small_050 mobilenetv4_conv_small_050 mobileone_s0 mobilevit_xxs
mobilevitv2_050 nest_tiny nf_regnet_b0 nextvit_small pit_ti_224 poolformer_s12 pvt_v2_b0 rdnet_tiny
regnety_002 repghostnet_050 repvgg_a0 repvit_m0_9 res2net50_14w_8s resmlp_12_224 resnest14d resnet18
resnetv2_50x1_bit rexnetr_200 selecsls42 semnasnet_050 sequencer2d_s seresnet18 shvit_s1 skresnet18
starnet_s1 swiftformer_xs swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 tf_efficientnet_lite0
tf_efficientnetv2_b0 tiny_vit_5m_224 tinynet_e tresnet_m twins_svt_small visformer_tiny
vit_base_patch16_siglip_224 vit_small_patch14_dinov2 vit_tiny_patch16_224 vit_tiny_r_s16_p8_224
volo_d1_224 vovnet39a xception41 xcit_nano_12_p16_224
""".split()


@dataclass(frozen=True)
class Trial:
    """What trying a network has shown; `untraced` is why its graph has no frontier, if it has none.

    `cuts` are the shares of the parameters that are in the prefix at each of FRACTIONS.
    """

    name: str
    backbone: Backbone
    image_size: int
    untraced: str | None
    cuts: tuple[float, ...]


def try_network(library: str, name: str) -> Trial:
    """Try a network at FRACTIONS; AssertionError or InputError if anything is wrong.

    The new head returns CLASSES, the groups are a partition, in a training step the right
    parameters move and no other number does, prefix and suffix are the whole, saved weights give
    the same logits.
    """
    torch.manual_seed(0)
    backbone, size = build(library, name)
    assert len({group.name for group in backbone.groups}) == len(backbone.groups)
    pixels = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8)
    untraced, cuts = None, []
    for fraction in FRACTIONS:
        model = FineTuneModel(backbone, fraction)
        check_step(model, pixels)
        try:
            cuts.append(check_frontier(model, pixels))
        except TraceError as error:
            untraced = str(error)
    check_saving(FineTuneModel(backbone, 0.5), pixels, build(library, name)[0])
    return Trial(name, backbone, size, untraced, tuple(cuts))


def build(library: str, name: str) -> tuple[Backbone, int]:
    """The network for images as small as it takes, checked as a job does, and their size."""
    if library == "timm":
        backbone = timm_backbone(name, CLASSES, pretrained=False)
        if takes_image_size(backbone.module):
            size = 56 if "patch14" in name else 64
            try:
                adapted = timm_backbone(name, CLASSES, False, options={"img_size": size})
                check_network(adapted, size, CLASSES)
                return adapted, size
            except Exception as error:  # not all that take it take such small ones
                print(f"{name} at {size}: {error}", file=sys.stderr)
    else:
        backbone = torchvision_backbone(name, CLASSES, weights=None)
    made_for = backbone.image_size or 224
    for size in (*SIZES, made_for):
        try:
            check_network(backbone, size, CLASSES)
            return backbone, size
        except Exception as error:
            if size == made_for:
                raise
            print(f"{name} at {size}: {str(error)[:150]}", file=sys.stderr)
    raise AssertionError("unreachable")


def check_step(model: FineTuneModel, pixels: Tensor) -> None:
    """One training step moves parameters of the head and of the unfrozen groups, and no other."""
    wanted = {id(p) for p in model.head_parameters()}
    wanted |= {id(p) for group in model.unfrozen_parameters() for p in group}
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    torch.nn.functional.cross_entropy(model(pixels), torch.arange(3)).backward()
    moving = {id(p) for p in model.parameters() if p.grad is not None and p.grad.any()}
    assert moving <= wanted, "a frozen parameter has a gradient"
    assert {id(p) for p in model.head_parameters() if p.dim() > 1} & moving, "the head has none"
    for group in model.unfrozen_groups:
        parameters = map(model.module.get_parameter, group.parameters)
        assert any(id(p) in moving for p in parameters), f"group {group.name} has no gradient"
    optimizer.step()
    named = model.module.named_parameters(remove_duplicate=False)
    training = {name for name, p in named if id(p) in wanted}
    layers = {name.rpartition(".")[0] for name in training}
    for name, tensor in model.module.state_dict().items():
        if name not in training and name.rpartition(".")[0] not in layers:
            assert torch.equal(tensor, state[f"module.{name}"]), f"{name} has moved"
    optimizer.zero_grad()
    model.load_state_dict(state)


def check_frontier(model: FineTuneModel, pixels: Tensor) -> float:
    """Check that prefix and suffix are the whole; the share of the parameters in the prefix.

    Raises TraceError if there is no prefix for another reason than that everything trains.
    """
    traced = TracedModel(model.train(), pixels)
    cut = traced.find_cut()
    if cut.weights:
        traced.check(cut, pixels)
    return cut.weights / sum(p.numel() for p in model.parameters())


def check_saving(model: FineTuneModel, pixels: Tensor, anew: Backbone) -> None:
    """Saved weights, loaded into a network built anew, give the same logits."""
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "best.safetensors"
        save_weights(model, path, 1)
        expected = model.eval()(pixels)
        other = FineTuneModel(anew, 0.0)
        load_weights(other, path, 1)
        assert torch.equal(other.eval()(pixels), expected)


def describe(library: str, trial: Trial) -> str:
    """A row of the page."""
    backbone = trial.backbone
    head = backbone.module.get_submodule(backbone.head)
    form = {"Conv2d": "convolution"}.get(type(head).__name__, "linear")
    if len(backbone.heads) > 1:
        form += f", {len(backbone.heads)} layers"
    ends = f"{backbone.groups[0].name} ... {backbone.groups[-1].name}"
    store = f"no: {trial.untraced}"
    if trial.untraced is None:
        store = " / ".join(f"{100 * cut:.0f} %" for cut in trial.cuts)
    return (
        f"| {trial.name} | {library} | {trial.image_size} | {form} "
        f"| {len(backbone.groups)}: {ends} | {store} |"
    )


def page() -> Iterator[str]:
    """The lines of docs/backbones.md."""
    rows, faults = [], []
    networks = [("torchvision", n) for n in TORCHVISION] + [("timm", n) for n in TIMM]
    for library, name in networks:
        print(name, file=sys.stderr, flush=True)
        try:
            rows.append(describe(library, try_network(library, name)))
        except Exception as error:
            text = " ".join(f"{type(error).__name__}: {error}".split())
            faults.append(f"| {name} | {library} | {text[:300]} |")
    tried = len(rows) + len(faults)
    yield from (INTRODUCTION.format(tried=tried, works=len(rows)).splitlines())
    yield ""
    yield "| network | from | pixels | head | groups, deepest first | in the store at 0 / 0.5 / 1 |"
    yield "|---|---|---|---|---|---|"
    yield from rows
    if faults:
        yield from ("", "## What does not work", "", "| network | from | why |", "|---|---|---|")
        yield from faults


INTRODUCTION = """# Which networks work

{works} of {tried} networks of torchvision and timm, tried with random weights on three images each,
at the fractions 0, 0.5 and 1: the head is replaced, the groups are a partition, a training step
moves the parameters that are to train and nothing else, prefix and suffix (if there are) are the
whole network, and saved weights give the same logits when they are loaded. Other networks of these
libraries are built in the same ways; each is checked before it trains.

"pixels" is the smallest side tried that the network takes; most are made for 224. A head is one
layer unless more are new with it. The last column is the share of the parameters that is computed
once and kept in the store. Where a network's code cannot be traced, it trains all the same, as a
whole in each step. Where little is kept at fraction 0, layers that drop at random (dropout,
stochastic depth) stand near the pixels: they do so in training whether or not they are frozen. In
timm, `+backbone.options.drop_path_rate=0` switches stochastic depth off; it is also why prefix and
suffix of some do not reproduce the network. Without it, all of `swin_tiny_patch4_window7_224`,
`swinv2_tiny_window8_256`, `focalnet_tiny_srf` and `nextvit_small` is kept at fraction 0.
"""


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print("\n".join(page()))
