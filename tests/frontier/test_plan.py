"""What a feed takes from the store, and what it does where something is in the way."""

import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from helpers import SmallNet, small_backbone
from tvf.data.augment import Augmentation, FlipsAndCrops
from tvf.data.splits import DataSplits, Split
from tvf.files import write_json
from tvf.frontier.inputs import CachedPipeline, InputPipeline
from tvf.frontier.plan import SiblingJobs, open_pipeline
from tvf.frontier.split import TracedModel
from tvf.job.recalibration import recalibrate
from tvf.models.backbones import Backbone
from tvf.models.finetune import FineTuneModel
from tvf.models.groups import group_by_modules
from tvf.records.sweep import sibling_configs, write_manifest
from tvf.store.arrays import ArraySpec, StoreError
from tvf.store.disk import Store, list_entries

FABRIC = Fabric(accelerator="cpu", devices=1)
IMAGES = torch.randint(
    0, 256, (48, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
PART = Split(IMAGES, torch.arange(48) % 3)
DATA = DataSplits(("a", "b", "c"), PART, PART, PART)
SAMPLES = np.arange(48)


def set_up(fraction: float, frozen_bn: str = "eval") -> Any:
    model = FineTuneModel(small_backbone(), fraction, frozen_bn=frozen_bn)
    model.train()
    return FABRIC.setup_module(model)


def feed_of(
    module: Any,
    store: Store | None,
    augment: Augmentation | None = None,
    *sharing: SiblingJobs,
    fabric: Fabric = FABRIC,
) -> InputPipeline:
    return open_pipeline(
        fabric,
        module,
        DATA,
        augment or FlipsAndCrops(),
        epochs=range(1, 3),
        store=store,
        sharing=sharing,
    )


def logits(feed: InputPipeline) -> Tensor:
    run = feed.train(1)
    return run.module(*run.inputs(SAMPLES)).detach()


def other_fraction(module: Any, fraction: float) -> Callable[[], None]:
    """Freeze as a job with another fraction does."""
    backbone = dataclasses.replace(small_backbone(), module=module.module.module)
    other = FineTuneModel(backbone, fraction)
    module.module.unfreeze()

    def freeze() -> None:
        other.unfreeze()
        other.train()

    return freeze


def test_a_shallower_cut_that_the_store_has_no_room_for_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """After bn1 an image takes 3,600 bytes, before the head 32."""
    module = set_up(0)
    expected = logits(feed_of(module, None))
    for max_bytes, continued in ((10**9, 48), (100_000, 0)):
        store = Store(tmp_path / str(max_bytes), max_bytes)
        feed = feed_of(module, store, None, SiblingJobs(other_fraction(module, 0.5), 1))
        assert torch.equal(logits(feed), expected)
        assert feed.prefix_images == 48 and feed.continued_images == continued
        assert len(list(store.folder.rglob("*.bin"))) == 1
    assert "activations for other jobs are not kept: 173 kB do not fit" in caplog.text


def test_another_jobs_way_of_freezing_that_cannot_be_cut_is_not_this_ones_matter(
    tmp_path: Path,
) -> None:
    module = set_up(0)
    expected = logits(feed_of(module, None))

    def freeze_all() -> None:
        module.module.requires_grad_(False)

    feed = feed_of(module, Store(tmp_path, 10**9), None, SiblingJobs(freeze_all, 1))
    assert isinstance(feed, CachedPipeline) and torch.equal(logits(feed), expected)

    def fail() -> None:
        freeze_all()
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        feed_of(module, Store(tmp_path, 10**9), None, SiblingJobs(fail, 1))
    for model in (module.module, set_up(0).module):
        assert [name for name, p in model.named_parameters() if p.requires_grad] == [
            "module.head.weight",
            "module.head.bias",
        ]


def test_activations_too_large_for_half_precision_are_not_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = set_up(0)
    with torch.no_grad():
        module.module.module.bn2.weight.mul_(1e6)
    expected = logits(feed_of(module, None))
    feed = feed_of(module, Store(tmp_path, 10**9, dtype=torch.float16))
    assert torch.equal(logits(feed), expected)
    assert (
        "train images are not kept from here on: activations are larger than float16 can hold"
        in caplog.text
    )
    caplog.clear()
    assert torch.equal(logits(feed), expected) and not caplog.text


class Residual(nn.Module):
    """x + conv3(conv2(x)): with conv3 alone in training the cut is x and conv2(x), with both it is x."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.conv3 = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.conv1(images).relu()
        return self.head((hidden + self.conv3(self.conv2(hidden))).mean((2, 3)))


def test_of_two_cuts_that_each_give_the_other_only_the_shallower_comes_first(
    tmp_path: Path,
) -> None:
    """Else two jobs could wait for each other's rows for ever."""
    torch.manual_seed(0)
    network = Residual()
    backbone = Backbone(
        "residual", network, "head", group_by_modules(network, [["conv3"], ["conv2"], ["conv1"]])
    )
    both, last = FineTuneModel(backbone, 0.67), FineTuneModel(backbone, 0.33)

    def freezing(model: FineTuneModel) -> SiblingJobs:
        return SiblingJobs(model.unfreeze, 1)

    trace, cuts = TracedModel(last.train(), IMAGES[:3]), []
    for model in (both, last):
        model.unfreeze()
        cuts.append(trace.find_cut())
    shallow, deep = cuts
    assert (len(shallow.nodes), len(deep.nodes)) == (1, 2)
    assert trace.continues(shallow, deep) and not trace.continues(deep, shallow)
    for number, (own, other) in enumerate(((both, last), (last, both))):
        own.unfreeze()
        module = FABRIC.setup_module(own)
        expected = logits(feed_of(module, None))
        feed = feed_of(
            module, Store(tmp_path / str(number), 10**9), None, freezing(other), freezing(own)
        )
        assert torch.equal(logits(feed), expected)
        assert feed.continued_images == (48 if own is last else 0)


class Normed(SmallNet):
    """A residual stream in float32 with a normalisation: what mixed precision keeps in float32 must stay so."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__(num_classes)
        self.bn1 = nn.GroupNorm(1, 4)  # type: ignore[assignment]

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.bn1(self.conv1(images).float() * 1000)
        fine = hidden.sin().mean(
            (1, 2, 3), keepdim=True
        )  # of numbers near 1,000: bfloat16 knows them to within 4
        return self.head((self.conv2(hidden).float().sigmoid() + fine).mean((2, 3)))


def test_mixed_precision_rounds_nothing_more_than_in_the_whole_network() -> None:
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    network = Normed()
    network.bn2 = nn.Identity()  # type: ignore[assignment]
    groups = group_by_modules(network, [["conv2"], ["bn1"], ["conv1"]])
    model = FineTuneModel(Backbone("normed", network, "head", groups), 0.34)
    module: Any = fabric.setup_module(model)
    feed = feed_of(module, None, fabric=fabric)
    assert isinstance(feed, CachedPipeline)
    assert torch.equal(logits(feed), logits(InputPipeline(fabric, module, DATA, FlipsAndCrops())))


def set_trained(model: nn.Module, whether: bool) -> None:
    """All of it but the head."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(whether or "head" in name)


def test_planning_leaves_random_states_and_what_trains_alone(tmp_path: Path) -> None:
    """With dropout in what is frozen, and a model that trains other parameters than whole groups."""
    module = set_up(0.5)
    network = module.module.module
    network.bn1 = nn.Sequential(network.bn1, nn.Dropout(0.5))
    network.bn2.bias.requires_grad_(False)
    other = SiblingJobs(lambda: set_trained(module.module, False), 1)
    trains = [p.requires_grad for p in module.module.parameters()]
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    feed_of(module, Store(tmp_path, 10**9), None, other)
    assert torch.equal(torch.rand(3), expected)
    assert [p.requires_grad for p in module.module.parameters()] == trains


def test_what_cannot_be_traced_trains_as_a_whole_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Untraced(SmallNet):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images if images.mean() > 0 else -images)

    module = FABRIC.setup_module(
        FineTuneModel(dataclasses.replace(small_backbone(), module=Untraced()), 0)
    )
    feed = feed_of(module, Store(tmp_path, 10**9))
    assert not isinstance(feed, CachedPipeline) and logits(feed).shape == (48, 3)
    assert re.search("every image passes the whole network: torch.fx cannot trace it", caplog.text)


def test_auto_keeps_what_pays_and_says_what_does_not_and_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By seconds of frozen layers for each byte: none of SmallNet's is worth keeping, slow ones are."""
    caplog.set_level("INFO")
    module = set_up(0)
    for seconds, max_bytes, verdict in (
        (0.0, 10**9, "train, val, test not kept, it would not pay"),
        (
            1.0,
            1000,
            "train, val, test not kept, 1.54 kB are more than store.max_gb=1e-06: raise it",
        ),
        (1.0, 10**9, "train, val, test kept"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "tvf.frontier.plan.time_prefix",
                lambda trace, cut, example, seconds=seconds: seconds,
            )
            feed = feed_of(module, Store(tmp_path, max_bytes, must_pay=True))
        assert f"store: {verdict} (0.032 kB" in caplog.text
        logits(feed)
        assert bool(list(tmp_path.rglob("*.bin"))) == (verdict == "train, val, test kept")


class Odd(FlipsAndCrops):
    """An augmentation whose content has no key."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "state", iter([]))


def test_an_augmentation_without_a_key_costs_only_the_training_images_their_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module, store = set_up(0.5), Store(tmp_path, 10**9)
    expected = logits(feed_of(module, None))
    feed = feed_of(module, store, Odd())
    assert torch.equal(logits(feed), expected)
    feed.evaluate("val").inputs(SAMPLES)
    assert "train not kept: what a builtins.list_iterator does cannot be told" in caplog.text
    kept = {entry.about.partition(",")[0] for entry in list_entries(tmp_path)}
    assert kept == {"activations val images"}  # which are the test images too, here


class Brighter(FlipsAndCrops):
    """Views that differ in more than what its base draws, made by a constructor of its own."""

    def __init__(self, by: int, **more: Any) -> None:
        super().__init__(**more)
        object.__setattr__(self, "by", by)

    def __call__(self, images: Tensor, samples: np.ndarray, view: int) -> Tensor:
        return super().__call__(images // 2, samples, view) + self.by * view  # type: ignore[attr-defined]


def test_an_augmentation_of_the_users_has_its_own_views(tmp_path: Path) -> None:
    module, store = set_up(0.5), Store(tmp_path, 10**9)
    for by in (1, 5):
        stored, whole = feed_of(module, store, Brighter(by)), feed_of(module, None, Brighter(by))
        for epoch in (1, 2):
            runs = stored.train(epoch), whole.train(epoch)
            one, other = (run.module(*run.inputs(SAMPLES)) for run in runs)
            assert torch.equal(one, other)
        assert stored.prefix_images == 96


@pytest.mark.parametrize("fraction", [1.0, 0.0])
def test_recalibration_keeps_what_belongs_to_one_network_and_its_pixels(
    tmp_path: Path, fraction: float
) -> None:
    """At fraction 1.0 nothing is frozen: there is nothing to do."""

    def statistics(store: Store | None, std: float) -> list[Tensor]:
        module = set_up(fraction, "recalibrate")
        module.module.std.fill_(std)
        recalibrate(FABRIC, module, PART, 16, store)
        return [buffer.clone() for buffer in module.module.module.buffers()]

    store = Store(tmp_path, 10**9)
    for std in (0.5, 0.25, 0.5):
        found, expected = statistics(store, std), statistics(None, std)
        assert all(map(torch.equal, found, expected))
    assert len(list_entries(tmp_path)) == (0 if fraction else 2)
    before = [*SmallNet().buffers()]
    changed = [not torch.equal(*pair) for pair in zip(before, found, strict=True)]
    assert any(changed) == (fraction == 0)


def test_a_table_that_vanishes_as_it_is_written_is_given_up(tmp_path: Path) -> None:
    entry = Store(tmp_path, 10**9).entry("kind", ["k"], {})

    def fill(rows: slice, wait: bool) -> list[Tensor]:
        shutil.rmtree(entry.folder)
        return [torch.zeros(rows.stop - rows.start)]

    with pytest.raises(StoreError, match=str(entry.folder)):
        entry.table("t", 300, [ArraySpec((), torch.float32)], fill).tensors()


def test_jobs_that_are_done_or_train_on_other_images_share_nothing(tmp_path: Path) -> None:
    def config(fraction: float, **more: Any) -> dict[str, Any]:
        data = {"_target_": "d", "batch_size": more.pop("batch_size", 32)}
        return {
            "model": {"pct_unfreeze": fraction, "frozen_bn": "eval"},
            "data": data,
            "augment": {"seed": 0},
            **more,
        }

    jobs = {
        "a": config(0),
        "b": config(0.5, batch_size=8),
        "c": config(1.0),
        "d": config(0.25, augment={"seed": 1}),
    }
    write_manifest(tmp_path, jobs)
    assert [job["model"]["pct_unfreeze"] for job in sibling_configs(tmp_path, jobs["a"])] == [
        0,
        0.5,
        1.0,
    ]
    (tmp_path / "c").mkdir()
    write_json(tmp_path / "c" / "status.json", {"state": "done"})
    assert [job["model"]["pct_unfreeze"] for job in sibling_configs(tmp_path, jobs["a"])] == [
        0,
        0.5,
    ]
