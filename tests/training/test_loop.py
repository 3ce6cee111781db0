"""The training loop: what an epoch computes, what decides it, and how it resumes."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR

from helpers import small_backbone
from helpers.training import DATA, FABRIC, SmallPhases, train
from tvf.data.augment import FlipsAndCrops
from tvf.data.order import sample_order, split_batches
from tvf.errors import InputError
from tvf.frontier.inputs import InputPipeline
from tvf.models.finetune import FineTuneModel
from tvf.training.loop import LoopOptions, TrainingLoop
from tvf.training.optimizer import DiscriminativeOptimizer
from tvf.training.phases import Phase
from tvf.training.state import EpochResult, best_epoch
from tvf.training.step import StepOptions, _predicted_classes, evaluate


def _set_up(model: FineTuneModel) -> Any:
    return FABRIC.setup_module(model)


def _epochs(
    seed: int = 1,
    epochs: int = 3,
    augment_seed: int = 0,
    stop_after: int | None = None,
    **how: Any,
) -> list[EpochResult]:
    """The epochs of a small model, without their times."""
    history: list[EpochResult] = []
    train(
        FineTuneModel(small_backbone(), 0.5),
        [Phase(epochs, 2)],
        schedule=lambda optimizer: CosineAnnealingLR(optimizer, epochs),
        augment=FlipsAndCrops(horizontal=0.5, seed=augment_seed),
        steps=StepOptions(8, seed=seed),
        options=LoopOptions(stop_after=stop_after),
        on_epoch=history.append,
        **how,
    )
    return [dataclasses.replace(e, epoch_seconds=0, images_per_second=0) for e in history]


def test_the_same_seeds_give_the_same_epochs_bit_for_bit() -> None:
    assert _epochs() == _epochs()


def test_training_resumed_from_a_state_equals_training_that_never_stopped() -> None:
    states: list[dict[str, Any]] = []
    assert [e.epoch for e in _epochs(stop_after=2, save=states.append)] == [1, 2]
    assert _epochs(stop_after=2, state=states[-1]) == []
    assert _epochs(stop_after=9, state=states[-1]) == _epochs()[2:]
    assert [e.epoch for e in _epochs(stop_after=3)] == [1, 2, 3]


def test_a_state_without_the_classes_of_each_epoch_is_resumed_without_them() -> None:
    def loop(state: dict[str, Any] | None, stop_after: int) -> TrainingLoop:
        model = FineTuneModel(small_backbone(), 0.5)
        builder, steps = SmallPhases(model, [Phase(3, 2)]), StepOptions(8, seed=1)
        loop = TrainingLoop(
            FABRIC, model, builder, steps, LoopOptions(stop_after=stop_after), state
        )
        assert loop.predicted is None or state
        for _ in loop:
            pass
        return loop

    first = loop(None, 2)
    assert first.predicted is not None and first.predicted.shape == (2, len(DATA.val))
    hits = (first.predicted == DATA.val.labels).float().mean(1)
    assert hits.tolist() == pytest.approx([epoch.val_acc for epoch in first.history])
    resumed = loop(first.state_dict(), 3).predicted
    assert resumed is not None and torch.equal(resumed[:2], first.predicted) and len(resumed) == 3
    older = {key: value for key, value in first.state_dict().items() if key != "predicted"}
    assert loop(older, 3).predicted is None


@pytest.mark.parametrize("classes", [2, 256, 257, 40_000])
def test_predicted_classes_fit_their_type(classes: int) -> None:
    logits = torch.zeros(1, classes)
    logits[0, -1] = 1
    found = _predicted_classes(logits)
    assert found.tolist() == [classes - 1]
    assert found.element_size() == (1 if classes <= 256 else 2 if classes <= 2**15 else 4)


def test_the_seed_and_the_augment_seed_each_change_the_epochs() -> None:
    assert _epochs(seed=1) != _epochs(seed=2)
    assert _epochs(augment_seed=0) != _epochs(augment_seed=1)


def test_a_longer_run_starts_like_a_shorter_one_while_their_rates_agree() -> None:
    assert [e.train_loss for e in _epochs(epochs=3)][:1] == [
        e.train_loss for e in _epochs(epochs=1)
    ]


def test_the_scheduler_moves_both_rates_once_an_epoch() -> None:
    history = _epochs(epochs=2)
    assert [(e.lr_head, e.lr_backbone) for e in history] == [(0.01, 0.001), (0.005, 0.0005)]


def test_diverging_training_is_an_error() -> None:
    model = FineTuneModel(small_backbone(), 1.0)
    with pytest.raises(InputError, match="training diverged"):
        train(model, [Phase(3, 4)], optimizer=DiscriminativeOptimizer(torch.optim.SGD, 1e30, 1e30))


def test_the_reported_epoch_is_the_one_that_validates_best() -> None:
    def epoch(number: int, val_loss: float, val_acc: float) -> EpochResult:
        return EpochResult(number, 0, 0, val_loss, val_acc, 0.1, None, 0, 0)

    first = epoch(1, 0.5, 0.8)
    assert first.better_than(None)
    assert epoch(2, 0.9, 0.9).better_than(first)
    assert epoch(2, 0.4, 0.8).better_than(first)
    assert not epoch(2, 0.5, 0.8).better_than(first)
    assert not epoch(2, float("nan"), 0.8).better_than(first)


def test_the_metric_chooses_the_epoch() -> None:
    def epoch(number: int, val_acc: float, val_macro_f1: float, val_auroc: float) -> EpochResult:
        return EpochResult(number, 0, 0, 0.5, val_acc, 0.1, None, 0, 0, val_macro_f1, val_auroc)

    history = [epoch(1, 0.9, 0.1, 0.2), epoch(2, 0.5, 0.8, 0.3), epoch(3, 0.4, 0.7, 0.9)]
    for metric, best in (("accuracy", 1), ("macro_f1", 2), ("auroc", 3)):
        found = best_epoch(history, metric)
        assert found and found.epoch == best


def test_one_epoch_is_a_plain_loop_over_the_sample_order() -> None:
    """tvf's epoch against a loop written out; training sees view 1, validation no view."""
    augment = FlipsAndCrops(horizontal=0.5, padding=2, seed=3)
    ours, theirs = (FineTuneModel(small_backbone(), 0.5) for _ in range(2))
    build = DiscriminativeOptimizer(torch.optim.SGD, 0.1, 0.01)
    seen: list[EpochResult] = []
    train(
        ours,
        [Phase(1, 2)],
        optimizer=build,
        steps=StepOptions(16, seed=5),
        augment=augment,
        on_epoch=seen.append,
    )

    reference = build(theirs.head_parameters(), theirs.unfrozen_parameters())
    theirs.train()
    order, losses = np.random.default_rng([5, 1]).permutation(33), []
    for samples in (order[:16], order[16:]):  # the 33rd joins the second batch
        view = augment(DATA.train.pool.pixels.images[samples], samples, 1)
        assert not torch.equal(view, DATA.train.pool.pixels.images[samples])
        loss = cross_entropy(theirs(view), DATA.train.labels[samples])
        reference.zero_grad()
        loss.backward()
        reference.step()
        losses.append(loss.item() * len(samples))
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, ours.state_dict()[name]), name
    assert np.isclose(seen[0].train_loss, sum(losses) / 33, rtol=1e-6)
    with torch.no_grad():
        expected = cross_entropy(theirs.eval()(DATA.val.pool.pixels.images), DATA.val.labels).item()
    assert seen[0].val_loss == pytest.approx(expected, rel=1e-6)
    feed = InputPipeline(FABRIC, _set_up(ours), DATA, augment)
    assert np.isclose(
        evaluate(FABRIC, feed.evaluate("val"), DATA.val.labels, 16)[0].loss, expected, rtol=1e-6
    )


@given(seed=st.integers(0, 2**32), epoch=st.integers(1, 1000), count=st.integers(1, 200))
def test_the_sample_order_is_a_permutation_and_a_pure_function(
    seed: int, epoch: int, count: int
) -> None:
    order = sample_order(seed, epoch, count)
    assert sorted(order) == list(range(count))
    assert np.array_equal(order, sample_order(seed, epoch, count))


@given(count=st.integers(1, 200), size=st.integers(1, 64))
def test_batches_cover_the_order_and_none_is_a_single_sample(count: int, size: int) -> None:
    parts = list(split_batches(np.arange(count), size))
    assert np.concatenate(parts).tolist() == list(range(count))
    assert all(len(part) <= size + 1 for part in parts)
    assert size == 1 or count == 1 or all(len(part) > 1 for part in parts)
