"""Weights of images: how much each counts in the training loss, and nowhere else."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot
from torch.nn.utils import parameters_to_vector

from helpers import small_backbone, training
from helpers.training import DATA, train
from tvf.data import DataSplits, Split
from tvf.models.finetune import FineTuneModel
from tvf.training.loss import CrossEntropyLoss, ImageMixing, balanced_weights, share_by_weight
from tvf.training.phases import Phase
from tvf.training.step import StepOptions

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(12, 3, generator=GENERATOR)
LABELS = torch.tensor([0] * 7 + [1] * 4 + [2])
WEIGHTS = torch.rand(12, generator=GENERATOR)
BY_CLASS = torch.tensor([0.5, 1.0, 3.0])


def _weighted(weights: np.ndarray | None) -> DataSplits:
    pool = replace(DATA.train.pool, weights=weights)
    return replace(DATA, train=Split(pool, DATA.train.places))


def _trained(monkeypatch: pytest.MonkeyPatch, weights: np.ndarray | None, **how: Any) -> Tensor:
    """The parameters after two epochs on DATA with these weights."""
    monkeypatch.setattr(training, "DATA", _weighted(weights))
    torch.manual_seed(0)
    model = FineTuneModel(small_backbone(num_classes=3), 0.5)
    best = train(model, [Phase(len(model.trained_groups), 2)], steps=StepOptions(8, 1, **how))
    assert best is not None and np.isfinite(best.train_loss)
    return parameters_to_vector(model.parameters()).detach().clone()


@pytest.mark.parametrize("mix", [None, ImageMixing("mixup", 1.0)])
def test_equal_weights_are_no_weights_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch, mix: ImageMixing | None
) -> None:
    count = len(DATA.train)
    plain = _trained(monkeypatch, None, mix=mix)
    for weight in (1.0, 0.3):
        assert torch.equal(_trained(monkeypatch, np.full(count, weight), mix=mix), plain)
    others = np.random.default_rng(0).random(count)
    weighted = _trained(monkeypatch, others, mix=mix)
    assert not torch.allclose(weighted, plain, atol=1e-4)
    assert torch.allclose(_trained(monkeypatch, 7 * others, mix=mix), weighted, atol=1e-5)


def test_batches_without_weight_train_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    only_one = np.zeros(len(DATA.train))
    only_one[4] = 1
    assert torch.isfinite(_trained(monkeypatch, only_one)).all()


@pytest.mark.parametrize("by_class", [None, BY_CLASS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_weighted_mean(by_class: Tensor | None, smoothing: float) -> None:
    loss = CrossEntropyLoss(smoothing, by_class)
    parts = [slice(0, 5), slice(5, 12)]
    found = sum(loss.sum(LOGITS[part], LABELS[part], WEIGHTS[part]) for part in parts)
    each = cross_entropy(LOGITS, LABELS, by_class, reduction="none", label_smoothing=smoothing)
    counts = WEIGHTS if by_class is None else WEIGHTS * by_class[LABELS]
    expected = (WEIGHTS * each).sum() / counts.sum()
    assert found / loss.size(LABELS, WEIGHTS) == pytest.approx(expected.item(), rel=1e-6)


def test_a_weight_of_2_is_the_image_twice_and_one_of_0_no_image() -> None:
    loss = CrossEntropyLoss(0.1, BY_CLASS)
    times = torch.tensor([0, 1, 2] * 4)
    often = torch.arange(12).repeat_interleave(times)
    plain = loss.sum(LOGITS[often], LABELS[often]) / loss.size(LABELS[often])
    weights = times.float()
    weighted = loss.sum(LOGITS, LABELS, weights) / loss.size(LABELS, weights)
    assert weighted.item() == pytest.approx(plain.item(), rel=1e-6)
    assert loss.size(LABELS, torch.zeros(12)) == 1


def test_balanced_classes_have_the_same_weight_with_that_of_their_images() -> None:
    by_class = balanced_weights(LABELS, "abc", WEIGHTS)
    totals = torch.bincount(LABELS, WEIGHTS * by_class[LABELS])
    assert totals.tolist() == pytest.approx(3 * [totals[0].item()], rel=1e-5)


@pytest.mark.parametrize("by_class", [None, BY_CLASS])
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_each_part_of_a_mixed_image_counts_by_its_own_weight(
    kind: str, by_class: Tensor | None
) -> None:
    images = torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8, generator=GENERATOR)
    mix, seeds, weights = ImageMixing(kind, 1.0), (1, 2, 3), WEIGHTS.clone()
    weights[:3] = 0
    mixed, parts = mix(images, torch.arange(12), 12, seeds)
    alone, expected = mix(images, LABELS, 3, seeds)
    assert torch.equal(mixed, alone)
    shares, targets, totals = share_by_weight(parts, LABELS, weights, 3)
    assert torch.allclose(shares, expected, atol=1e-6)
    loss = CrossEntropyLoss(0.1, by_class)
    found = loss.sum(LOGITS, targets, totals)
    by_part = torch.stack(
        [
            parts[i, j]
            * weights[j]
            * loss.sum(LOGITS[i : i + 1], one_hot(LABELS[j : j + 1], 3).float())
            for i in range(12)
            for j in range(12)
        ]
    )
    assert found.item() == pytest.approx(by_part.sum().item(), rel=1e-5)
