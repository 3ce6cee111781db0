"""What an input pipeline reads from the store, and its fallbacks when it cannot."""

import dataclasses
import itertools
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
from helpers.devices import fabric_on
from helpers.training import whole_pool
from tvf.data.augment import Augmentation, FlipsAndCrops, ViewRows
from tvf.data.pool import Catalog, DataSplits, Split
from tvf.data.splits import SplitOptions, divide
from tvf.files import write_json
from tvf.frontier.inputs import CachedPipeline, InputPipeline
from tvf.frontier.plan import CacheOptions, SiblingJobs, open_pipeline
from tvf.frontier.split import TracedModel
from tvf.job.recalibration import recalibrate
from tvf.models.backbones import Backbone
from tvf.models.finetune import FineTuneModel
from tvf.models.groups import group_by_modules
from tvf.records.sweep import sibling_configs, write_manifest
from tvf.store.disk import Store, list_entries
from tvf.store.row_file import ArraySpec, StoreError

FABRIC = fabric_on("cpu")
IMAGES = torch.randint(
    0, 256, (48, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
SPLIT = whole_pool(IMAGES, torch.arange(48) % 3)
DATA = DataSplits(("a", "b", "c"), train=SPLIT, val=SPLIT, test=SPLIT)
SAMPLES = np.arange(48)


def set_up(fraction: float, frozen_bn: str = "eval") -> Any:
    model = FineTuneModel(small_backbone(), fraction, frozen_bn=frozen_bn)
    model.train()
    return FABRIC.setup_module(model)


def pipeline_of(
    module: Any,
    store: Store | None,
    augment: Augmentation | None = None,
    *siblings: SiblingJobs,
    fabric: Fabric = FABRIC,
) -> InputPipeline:
    uncached = InputPipeline(fabric, module, DATA, augment or FlipsAndCrops())
    return open_pipeline(uncached, CacheOptions(range(1, 3), store, siblings))


def logits(pipeline: InputPipeline) -> Tensor:
    """Logits of all training images in epoch 1."""
    epoch = pipeline.train(1)
    return epoch.module(*epoch.inputs(SAMPLES)).detach()


def other_fraction(module: Any, fraction: float) -> Callable[[], None]:
    """Return a function that freezes as a job with another fraction does."""
    backbone = dataclasses.replace(small_backbone(), module=module.module.module)
    other = FineTuneModel(backbone, fraction)
    module.module.unfreeze()

    def freeze() -> None:
        other.unfreeze()
        other.train()

    return freeze


class _WithUnusedBranch(SmallNet):
    """Also computes a trained layer whose result nobody uses."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(8, 2)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.bn2(self.conv2(self.bn1(self.conv1(images)).relu())).relu()
        self.unused(hidden.amax((2, 3)))
        return self.head(hidden.mean((2, 3)))


def test_only_a_suffix_of_one_input_and_one_layer_is_a_linear_layer_alone() -> None:
    net = _WithUnusedBranch()
    groups = group_by_modules(net, [["unused"], ["bn2"], ["conv2"], ["bn1"], ["conv1"]])
    branching = Backbone("branching", net, "head", groups)
    for backbone, fraction, alone in ((small_backbone(), 0, True), (branching, 0.2, False)):
        model: Any = FABRIC.setup_module(FineTuneModel(backbone, fraction).train())
        epoch = pipeline_of(model, None).train(1)
        assert (epoch.linear is not None) == alone
        assert epoch.linear in (None, model.module.module.head)


def test_a_shallower_cut_that_does_not_fit_into_the_store_is_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """After bn1 an image takes 3,600 bytes, before the head 32."""
    module = set_up(0)
    expected = logits(pipeline_of(module, None))
    for max_bytes, continued in ((10**9, 48), (100_000, 0)):
        store = Store(tmp_path / str(max_bytes), max_bytes)
        pipeline = pipeline_of(module, store, None, SiblingJobs(other_fraction(module, 0.5), 1))
        assert torch.equal(logits(pipeline), expected)
        assert pipeline.prefix_images == 48 and pipeline.continued_images == continued
        assert len(list(store.folder.rglob("*.rows"))) == (2 if continued else 1)
    assert re.search(
        r"activations for other jobs are not cached: 173 kB .*store\.max_gb=0\.0001", caplog.text
    )


def test_a_sibling_that_cannot_be_cut_does_not_affect_this_job(
    tmp_path: Path,
) -> None:
    module = set_up(0)
    expected = logits(pipeline_of(module, None))

    def freeze_all() -> None:
        module.module.requires_grad_(False)

    pipeline = pipeline_of(module, Store(tmp_path, 10**9), None, SiblingJobs(freeze_all, 1))
    assert isinstance(pipeline, CachedPipeline) and torch.equal(logits(pipeline), expected)

    def fail() -> None:
        freeze_all()
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        pipeline_of(module, Store(tmp_path, 10**9), None, SiblingJobs(fail, 1))
    for model in (module.module, set_up(0).module):
        assert [name for name, p in model.named_parameters() if p.requires_grad] == [
            "module.head.weight",
            "module.head.bias",
        ]


def test_activations_too_large_for_half_precision_are_not_cached(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = set_up(0)
    with torch.no_grad():
        module.module.module.bn2.weight.mul_(1e6)
    expected = logits(pipeline_of(module, None))
    pipeline = pipeline_of(module, Store(tmp_path, 10**9, dtype=torch.float16))
    assert torch.equal(logits(pipeline), expected)
    assert (
        "store: no longer caching train images: activations exceed the range of float16"
        in caplog.text
    )
    caplog.clear()
    assert torch.equal(logits(pipeline), expected) and not caplog.text


class Residual(nn.Module):
    """x + conv3(conv2(x)): the cut is (x, conv2(x)) if conv3 alone trains, and x if both train."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.conv3 = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.conv1(images).relu()
        return self.head((hidden + self.conv3(self.conv2(hidden))).mean((2, 3)))


def test_of_two_cuts_that_determine_each_other_only_the_shallower_is_continued(
    tmp_path: Path,
) -> None:
    """Otherwise two jobs could wait for each other's rows forever."""
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
        expected = logits(pipeline_of(module, None))
        pipeline = pipeline_of(
            module, Store(tmp_path / str(number), 10**9), None, freezing(other), freezing(own)
        )
        assert torch.equal(logits(pipeline), expected)
        assert pipeline.continued_images == (48 if own is last else 0)


class Normed(SmallNet):
    """A normalized float32 residual stream: what mixed precision keeps in float32 must stay so."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__(num_classes)
        self.bn1 = nn.GroupNorm(1, 4)  # type: ignore[assignment]

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.bn1(self.conv1(images).float() * 1000)
        # The numbers are near 1,000, where bfloat16 is only accurate to within 4.
        fine = hidden.sin().mean((1, 2, 3), keepdim=True)
        return self.head((self.conv2(hidden).float().sigmoid() + fine).mean((2, 3)))


def test_mixed_precision_rounds_no_more_than_in_the_full_network() -> None:
    fabric = fabric_on("cpu", precision="bf16-mixed")
    network = Normed()
    network.bn2 = nn.Identity()  # type: ignore[assignment]
    groups = group_by_modules(network, [["conv2"], ["bn1"], ["conv1"]])
    model = FineTuneModel(Backbone("normed", network, "head", groups), 0.34)
    module: Any = fabric.setup_module(model)
    pipeline = pipeline_of(module, None, fabric=fabric)
    assert isinstance(pipeline, CachedPipeline)
    assert torch.equal(
        logits(pipeline), logits(InputPipeline(fabric, module, DATA, FlipsAndCrops()))
    )


def freeze_backbone(model: nn.Module) -> None:
    """Freeze everything but the head."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("head" in name)


def test_planning_changes_neither_random_states_nor_what_trains(tmp_path: Path) -> None:
    """With dropout in the frozen layers, and a model that trains only a part of a group."""
    module = set_up(0.5)
    network = module.module.module
    network.bn1 = nn.Sequential(network.bn1, nn.Dropout(0.5))
    network.bn2.bias.requires_grad_(False)
    sibling = SiblingJobs(lambda: freeze_backbone(module.module), 1)
    trains = [p.requires_grad for p in module.module.parameters()]
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    pipeline_of(module, Store(tmp_path, 10**9), None, sibling)
    assert torch.equal(torch.rand(3), expected)
    assert [p.requires_grad for p in module.module.parameters()] == trains


def test_an_untraceable_network_trains_as_a_whole_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Untraced(SmallNet):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images if images.mean() > 0 else -images)

    module = FABRIC.setup_module(
        FineTuneModel(dataclasses.replace(small_backbone(), module=Untraced()), 0)
    )
    pipeline = pipeline_of(module, Store(tmp_path, 10**9))
    assert not isinstance(pipeline, CachedPipeline) and logits(pipeline).shape == (48, 3)
    assert (
        "cannot split off the frozen layers; running the full network: torch.fx cannot trace"
        in caplog.text
    )


def test_auto_caches_what_saves_time_and_logs_what_does_not_and_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By seconds of frozen layers per byte: SmallNet's are not worth caching, slow ones are."""
    caplog.set_level("INFO")
    module = set_up(0)
    for seconds, max_bytes, verdict in (
        (0.0, 10**9, "train, val, test not cached: recomputing is faster than caching"),
        (
            1.0,
            1000,
            "train, val, test not cached: 1.54 kB exceeds store.max_gb=1e-06: raise it",
        ),
        (1.0, 10**9, "train, val, test cached"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "tvf.frontier.plan.time_prefix",
                lambda trace, cut, example, seconds=seconds: seconds,
            )
            pipeline = pipeline_of(module, Store(tmp_path, max_bytes, must_pay=True))
        assert f"store: {verdict} (0.032 kB" in caplog.text
        logits(pipeline)
        assert bool(list(tmp_path.rglob("*.rows"))) == (verdict == "train, val, test cached")


class Unidentifiable(FlipsAndCrops):
    """An augmentation that cannot be fingerprinted."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "state", iter([]))


def test_an_augmentation_without_a_fingerprint_keeps_only_training_images_uncached(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module, store = set_up(0.5), Store(tmp_path, 10**9)
    expected = logits(pipeline_of(module, None))
    pipeline = pipeline_of(module, store, Unidentifiable())
    assert torch.equal(logits(pipeline), expected)
    pipeline.evaluate("val").inputs(SAMPLES)
    assert re.search(r"train not cached: .*builtins\.list_iterator", caplog.text)
    cached = {entry.about.partition(",")[0] for entry in list_entries(tmp_path)}
    assert cached == {"activations images"}  # those of val; here, they are the test images too


class Brighter(FlipsAndCrops):
    """Views that differ in more than the base class draws, with a constructor of its own."""

    def __init__(self, by: int, **more: Any) -> None:
        super().__init__(**more)
        object.__setattr__(self, "by", by)

    def __call__(self, images: Tensor, samples: np.ndarray, view: int) -> Tensor:
        return super().__call__(images // 2, samples, view) + self.by * view  # type: ignore[attr-defined]


def test_a_custom_augmentation_has_its_own_cached_views(tmp_path: Path) -> None:
    module, store = set_up(0.5), Store(tmp_path, 10**9)
    for by in (1, 5):
        cached = pipeline_of(module, store, Brighter(by))
        uncached = pipeline_of(module, None, Brighter(by))
        for number in (1, 2):
            epochs = cached.train(number), uncached.train(number)
            expected, actual = (epoch.module(*epoch.inputs(SAMPLES)) for epoch in epochs)
            assert torch.equal(expected, actual)
        assert cached.prefix_images == 96


@pytest.mark.parametrize("fraction", [1.0, 0.0])
def test_recalibrated_statistics_are_cached_per_network_and_pixel_scaling(
    tmp_path: Path, fraction: float
) -> None:
    """At fraction 1.0 nothing is frozen, so there is nothing to recalibrate."""

    def statistics(store: Store | None, std: float) -> list[Tensor]:
        module = set_up(fraction)
        module.module.std.fill_(std)
        recalibrate(FABRIC, module, SPLIT, 16, store)
        return [buffer.clone() for buffer in module.module.module.buffers()]

    store = Store(tmp_path, 10**9)
    for std in (0.5, 0.25, 0.5):
        found, expected = statistics(store, std), statistics(None, std)
        assert all(map(torch.equal, found, expected))
    assert len(list_entries(tmp_path)) == (0 if fraction else 2)
    before = [*SmallNet().buffers()]
    changed = [not torch.equal(*pair) for pair in zip(before, found, strict=True)]
    assert any(changed) == (fraction == 0)


@pytest.mark.slow
def test_folds_and_fractions_share_one_pool_and_compute_each_image_once(tmp_path: Path) -> None:
    """Five folds cost at most 1.3 times the frozen images of one division of the same pool."""
    count, epochs, augment = 200, range(1, 9), FlipsAndCrops(horizontal=0.5)
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=generator)
    pool = whole_pool(images, torch.arange(count) % 3).pool
    catalog = Catalog(("a", "b", "c"), np.arange(count) % 3, pool.names, lambda *how: None)  # type: ignore[arg-type, return-value]
    modules = {fraction: set_up(fraction) for fraction in (0, 0.5)}

    def run(fold: int, fraction: float, store: Store | None) -> tuple[int, list[Tensor]]:
        """How many images pass through the prefix from pixels, and the suffix's inputs."""
        places = divide(catalog, SplitOptions(folds=5, fold=fold))
        splits = {name: Split(pool, places[name]) for name in ("train", "val", "test")}
        data = DataSplits(("a", "b", "c"), **splits)
        uncached = InputPipeline(FABRIC, modules[fraction], data, augment)
        pipeline = open_pipeline(uncached, CacheOptions(epochs, store))
        activations = []
        for epoch in epochs:
            activations += pipeline.train(epoch).inputs(np.arange(len(data.train)))
        for name in ("val", "test"):
            activations += pipeline.evaluate(name).inputs(np.arange(len(splits[name])))
        return pipeline.prefix_images, activations

    def distinct(folds: int) -> int:
        rows, shown = ViewRows(augment, count), set()
        for fold in range(folds):
            places = divide(catalog, SplitOptions(folds=5, fold=fold))
            shown |= {*places["val"], *places["test"]}  # their rows of view 0
            shown |= {row for view in epochs for row in rows.rows_of_view(view)[places["train"]]}
        return len(shown)

    store, computed = Store(tmp_path, 10**9), 0
    # The largest fraction first: the smaller one continues from its activations.
    for fold, fraction in itertools.product(range(5), (0.5, 0)):
        images_passed, activations = run(fold, fraction, store)
        computed += images_passed
        assert all(map(torch.equal, activations, run(fold, fraction, None)[1])), (fold, fraction)
        if (fold, fraction) == (0, 0):
            assert computed == distinct(1)
    assert computed == distinct(5) <= 1.3 * distinct(1)


def test_a_table_that_is_removed_while_it_is_written_is_an_error(tmp_path: Path) -> None:
    entry = Store(tmp_path, 10**9).entry("kind", ["k"], {})

    def fill(rows: np.ndarray, wait: bool) -> list[Tensor]:
        shutil.rmtree(entry.folder)
        return [torch.zeros(len(rows))]

    with pytest.raises(StoreError, match=str(entry.folder)):
        entry.table("t", 300, [ArraySpec((), torch.float32)], fill).tensors()


def test_jobs_that_are_done_or_train_on_other_images_are_not_siblings(tmp_path: Path) -> None:
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
