"""The training loss and learning rates, and that neither affects validation."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector
from torch.optim.lr_scheduler import StepLR

from helpers import small_backbone
from helpers.training import DATA, train
from tvf.errors import InputError
from tvf.models.finetune import FineTuneModel
from tvf.training.loss import CrossEntropyLoss, ImageMixing, balanced_weights
from tvf.training.optimizer import DiscriminativeOptimizer
from tvf.training.phases import Phase
from tvf.training.schedules import Schedule, cosine, make_schedule, one_cycle, plateau
from tvf.training.state import EpochResult
from tvf.training.step import StepOptions

LOGITS = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0] * 7 + [1] * 4 + [2])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_losses_summed_over_shares_of_a_batch_are_torchs_mean(
    smoothing: float, weighted: bool
) -> None:
    weights = balanced_weights(LABELS, "abc") if weighted else None
    loss = CrossEntropyLoss(smoothing, weights)
    expected = cross_entropy(LOGITS, LABELS, weights, label_smoothing=smoothing)
    sums = [loss.sum(LOGITS[share], LABELS[share]) for share in (slice(0, 5), slice(5, 12))]
    assert sum(sums) / loss.size(LABELS) == pytest.approx(expected.item(), rel=1e-6)


@given(labels=st.lists(st.integers(0, 2), max_size=30))
def test_balanced_weights_are_those_of_scikit_learn(labels: list[int]) -> None:
    labels = [0, 1, 2, *labels]
    expected = compute_class_weight("balanced", classes=np.arange(3), y=np.array(labels))
    found = balanced_weights(torch.tensor(labels), "abc").tolist()
    assert found == pytest.approx(expected, rel=1e-6)


def test_balanced_weights_require_images_of_every_class() -> None:
    with pytest.raises(InputError, match="there are none of class b, d. Raise data.limit"):
        balanced_weights(torch.tensor([0, 2]), "abcd")


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_images_are_a_pure_function_of_their_seeds_and_shares_add_up_to_1(
    kind: str,
) -> None:
    images, labels = DATA.train.pool.pixels.images[:8], DATA.train.labels[:8]
    mix, generator = ImageMixing(kind, 1.0), torch.get_rng_state()
    one, shares = mix(images, labels, 3, (1, 2, 3))
    again, _ = mix(images, labels, 3, (1, 2, 3))
    other, _ = mix(images, labels, 3, (1, 2, 4))
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert not torch.equal(one, images.float())
    assert shares.sum(1).tolist() == pytest.approx(8 * [1.0])
    assert one.min() >= 0 and one.max() <= 255
    if kind == "mixup":
        pairs = images.float().roll(1, 0)
        share = shares[0, labels[0]]  # the neighbour is of another class
        assert labels[0] != labels[-1]
        assert torch.allclose(one, share * images + (1 - share) * pairs, atol=1e-3)


def test_an_alpha_of_0_mixes_nothing() -> None:
    images, labels = DATA.train.pool.pixels.images[:8], DATA.train.labels[:8]
    for kind in ("mixup", "cutmix"):
        mixed, shares = ImageMixing(kind, 0)(images, labels, 3, (1,))
        assert torch.equal(mixed, images.float()) and torch.equal(shares.argmax(1), labels)
    found = []
    for mix in (None, ImageMixing("mixup", 0)):
        model = FineTuneModel(small_backbone(), 0.5)
        train(model, [Phase(1, 2)], steps=StepOptions(8, seed=1, mix=mix))
        found.append(parameters_to_vector(model.parameters()))
    assert torch.allclose(*found, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "alpha"), [("mixup", -0.1), ("cutmix", float("nan")), ("blend", 1.0)]
)
def test_wrong_mixing_options_are_named(kind: str, alpha: float) -> None:
    with pytest.raises(
        InputError, match="mix.kind=blend must be one of" if kind == "blend" else "mix.alpha"
    ):
        ImageMixing(kind, alpha)


def test_validation_loss_is_plain_cross_entropy_whatever_is_trained_with() -> None:
    """Learning rates are too small to move weights, so only the training loss can differ."""
    seen: dict[str, EpochResult] = {}
    still = DiscriminativeOptimizer(torch.optim.SGD, 1e-12, 1e-12)
    loss, mix = CrossEntropyLoss(0.3, torch.tensor([1.0, 2.0, 3.0])), ImageMixing("cutmix", 1.0)
    plain, other = StepOptions(8, seed=1), StepOptions(8, seed=1, loss=loss, mix=mix)
    for name, steps in {"plain": plain, "other": other}.items():
        train(
            FineTuneModel(small_backbone(), 0),
            [Phase(1, 0)],
            optimizer=still,
            steps=steps,
            on_epoch=lambda epoch, name=name: seen.update({name: epoch}),
        )
    assert seen["plain"].val_loss == pytest.approx(seen["other"].val_loss, rel=1e-6)
    assert seen["plain"].train_loss != pytest.approx(seen["other"].train_loss, rel=1e-3)


def test_clipped_gradients_bound_the_length_of_a_step() -> None:
    moved = []
    for clip_norm in (None, 0.01):
        model = FineTuneModel(small_backbone(), 1.0)
        before = parameters_to_vector(model.parameters()).clone()
        sgd = DiscriminativeOptimizer(torch.optim.SGD, 0.1, 0.1)
        one_batch = StepOptions(33, seed=1, clip_norm=clip_norm)
        train(model, [Phase(1, 4)], optimizer=sgd, steps=one_batch)
        moved.append((parameters_to_vector(model.parameters()) - before).norm().item())
    assert moved[0] > 0.001 * 1.1
    assert moved[1] == pytest.approx(0.1 * 0.01, rel=1e-4)


def _rates(
    make: object, epochs: int, batches: int, scores: list[float] | None = None
) -> list[float]:
    """The learning rate of every batch, if the optimizer's is 1."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)
    schedule, rates = make_schedule(make, optimizer, epochs, batches), []  # type: ignore[arg-type]
    for epoch in range(epochs):
        for _ in range(batches):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.after_batch()
        schedule.after_epoch(scores[epoch] if scores else 0.0)
    return rates


def test_learning_rates_follow_their_schedule() -> None:
    assert _rates(cosine, 2, 3) == pytest.approx(3 * [1] + 3 * [0.5])
    warmed = _rates(partial(cosine, warmup=0.4), 2, 5)
    assert warmed == pytest.approx(
        [0.01, 0.2575, 0.505, 0.7525] + [(1 + np.cos(np.pi * i / 6)) / 2 for i in range(6)]
    )
    cycle = _rates(one_cycle, 5, 4)
    top = int(np.argmax(cycle))
    assert cycle[0] == pytest.approx(1 / 25)
    assert max(cycle) == pytest.approx(1, rel=0.05)
    assert 4 <= top <= 7
    assert cycle[: top + 1] == sorted(cycle[: top + 1])
    assert cycle[top:] == sorted(cycle[top:], reverse=True)
    falling = _rates(partial(plateau, factor=0.1, patience=1), 5, 1, [0.5, 0.6, 0.6, 0.6, 0.7])
    assert falling == pytest.approx([1, 1, 1, 1, 0.1])
    assert _rates(lambda optimizer: StepLR(optimizer, 1, 0.5), 3, 2) == [1, 1, 0.5, 0.5, 0.25, 0.25]


@given(epochs=st.integers(1, 12), batches=st.integers(1, 12), rising=st.floats(0.01, 0.9))
def test_one_cycle_has_a_learning_rate_for_every_batch_and_never_exceeds_the_optimizers(
    epochs: int, batches: int, rising: float
) -> None:
    rates = _rates(partial(one_cycle, rising=rising), epochs, batches)
    assert len(rates) == epochs * batches
    assert 0 < min(rates) and max(rates) <= 1 + 1e-9


def test_gradients_that_are_not_finite_are_reported_as_divergence_with_and_without_clipping() -> (
    None
):
    wild = DiscriminativeOptimizer(torch.optim.SGD, 1e30, 1e30)
    for clip_norm in (None, 1.0):
        model = FineTuneModel(small_backbone(), 1.0)
        with pytest.raises(InputError, match="training diverged"):
            train(
                model,
                [Phase(3, 4)],
                optimizer=wild,
                steps=StepOptions(8, seed=1, clip_norm=clip_norm),
            )


def test_a_schedule_restarts_with_every_phase() -> None:
    history: list[EpochResult] = []
    phases = [Phase(2, 0), Phase(2, 2, 0.04, 0.02)]
    train(FineTuneModel(small_backbone(), 0.5), phases, schedule=cosine, on_epoch=history.append)
    assert [epoch.lr_head for epoch in history] == pytest.approx([0.01, 0.005, 0.04, 0.02])
    assert [epoch.lr_backbone for epoch in history] == [
        None,
        None,
        *map(pytest.approx, (0.02, 0.01)),
    ]


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (cosine, {"warmup": 1.0}),
        (one_cycle, {"rising": 0}),
        (one_cycle, {"start": 0.5}),
        (plateau, {"patience": -1}),
    ],
)
def test_schedule_options_out_of_range_are_named(make: Any, wrong: dict[str, float]) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], 1.0)
    with pytest.raises(InputError, match=f"scheduler.{next(iter(wrong))}="):
        make_schedule(partial(make, **wrong), optimizer, 3, 2)


def test_a_custom_schedule_chooses_when_it_is_stepped() -> None:
    def custom(optimizer: torch.optim.Optimizer, epochs: int, batches: int) -> Schedule:
        return Schedule(StepLR(optimizer, batches, 0.5), every_batch=True)

    assert _rates(custom, 2, 2) == [1, 1, 0.5, 0.5]
