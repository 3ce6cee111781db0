"""What a feed takes from the store, and what it does where something is in the way."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SmallNet, small_backbone
from lightning_fabric import Fabric
from torch import Tensor

from tvf.data import Dataset, Labelled
from tvf.data.views import Augment, Views
from tvf.feed import CutFeed, Feed
from tvf.files import write_json
from tvf.models import FineTuneModel
from tvf.planning import Sharing, open_feed
from tvf.recalibration import recalibrate
from tvf.store import Store, list_entries
from tvf.sweep.manifest import sharing_models, write_manifest
from tvf.table import Column, StoreUnusable

FABRIC = Fabric(accelerator="cpu", devices=1)
IMAGES = torch.randint(0, 256, (48, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PART = Labelled(IMAGES, torch.arange(48) % 3)
DATA = Dataset(("a", "b", "c"), PART, PART, PART)
SAMPLES = np.arange(48)


def set_up(fraction: float, frozen_bn: str = "eval") -> Any:
    model = FineTuneModel(small_backbone(), fraction, frozen_bn=frozen_bn)
    model.train()
    return FABRIC.setup_module(model)


def feed_of(module: Any, store: Store | None, augment: Views | None = None, sharing: Sharing | None = None) -> Feed:
    return open_feed(FABRIC, module, DATA, augment or Augment(), epochs=2, store=store, sharing=sharing or Sharing())


def logits(feed: Feed) -> Tensor:
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
        feed = feed_of(module, store, sharing=Sharing(2, [other_fraction(module, 0.5)]))
        assert torch.equal(logits(feed), expected)
        assert feed.prefix_images == 48 and feed.continued_images == continued
        assert len(list(store.folder.rglob("*.bin"))) == 1
    assert "activations for other jobs are not kept: 173 kB do not fit" in caplog.text


def test_another_jobs_way_of_freezing_that_cannot_be_cut_is_not_this_ones_matter(tmp_path: Path) -> None:
    module = set_up(0)
    expected = logits(feed_of(module, None))

    def freeze_all() -> None:
        module.module.requires_grad_(False)

    feed = feed_of(module, Store(tmp_path, 10**9), sharing=Sharing(2, [freeze_all]))
    assert isinstance(feed, CutFeed) and torch.equal(logits(feed), expected)

    def fail() -> None:
        freeze_all()
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        feed_of(module, Store(tmp_path, 10**9), sharing=Sharing(2, [fail]))
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
    assert "train images are not kept from here on: activations are larger than float16 can hold" in caplog.text
    caplog.clear()
    assert torch.equal(logits(feed), expected) and not caplog.text


class Odd(Augment):
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
    assert "train images are not kept: what a builtins.list_iterator does cannot be told" in caplog.text
    kept = {entry.about.partition(",")[0] for entry in list_entries(tmp_path)}
    assert kept == {"activations val images"}  # which are the test images too, here


@pytest.mark.parametrize("fraction", [1.0, 0.0])
def test_recalibration_keeps_what_belongs_to_one_network_and_its_pixels(tmp_path: Path, fraction: float) -> None:
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

    with pytest.raises(StoreUnusable, match=str(entry.folder)):
        entry.table("t", 300, [Column((), torch.float32)], fill).tensors()


def test_jobs_that_are_done_or_train_on_other_images_share_nothing(tmp_path: Path) -> None:
    def config(fraction: float, **more: Any) -> dict[str, Any]:
        data = {"_target_": "d", "batch_size": more.pop("batch_size", 32)}
        return {"model": {"pct_unfreeze": fraction, "frozen_bn": "eval"}, "data": data, "augment": {"seed": 0}, **more}

    jobs = {"a": config(0), "b": config(0.5, batch_size=8), "c": config(1.0), "d": config(0.25, augment={"seed": 1})}
    write_manifest(tmp_path, jobs)
    assert [model["pct_unfreeze"] for model in sharing_models(tmp_path, jobs["a"])] == [0, 0.5, 1.0]
    (tmp_path / "c").mkdir()
    write_json(tmp_path / "c" / "status.json", {"state": "done"})
    assert [model["pct_unfreeze"] for model in sharing_models(tmp_path, jobs["a"])] == [0, 0.5]
