"""Probes of pooled features, against fits by the definition."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from tvf.advise.probes import classify_by_neighbours, join_depths
from tvf.models.ridge import PENALTIES, best_scale, fit_ridge

CLASSES = 3


def _features(number: int, width: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(number + width)
    labels = torch.arange(number) % CLASSES
    return torch.randn(number, width, generator=rng) + labels[:, None], labels


def _solve(x: Tensor, labels: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Weight and bias by the normal equations; `penalty` is that of the sum of squares."""
    targets = one_hot(labels, CLASSES).double()
    centred, level = x - x.mean(0), targets.mean(0)
    inner = centred.T @ centred + penalty * torch.eye(x.shape[1], dtype=x.dtype)
    weight = torch.linalg.solve(inner, centred.T @ (targets - level))
    return weight, level - x.mean(0) @ weight


@pytest.mark.parametrize(("number", "width"), [(30, 5), (12, 40)])
def test_the_ridge_is_the_solution_of_the_normal_equations(number: int, width: int) -> None:
    features, labels = _features(number, width)
    found = fit_ridge(features, labels, CLASSES, standardise=False)
    x = features.double()
    weight, bias = _solve(x, labels, found.penalty * number)
    torch.testing.assert_close(found.weight, weight, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found(features), x @ weight + bias, rtol=1e-6, atol=1e-9)


def test_leaving_out_equals_fitting_again_without_the_image() -> None:
    features, labels = _features(15, 4)
    found = fit_ridge(features, labels, CLASSES, standardise=False)
    assert found.penalty in PENALTIES
    for image in range(15):
        kept = torch.arange(15) != image
        weight, bias = _solve(features[kept].double(), labels[kept], found.penalty * 15)
        expected = features[image].double() @ weight + bias
        torch.testing.assert_close(found.left_out[image], expected, rtol=1e-6, atol=1e-9)


def test_the_penalty_is_large_where_features_say_nothing() -> None:
    features, labels = _features(60, 20)
    noise = torch.randn(60, 20, generator=torch.Generator().manual_seed(0))
    assert fit_ridge(features, labels, CLASSES).penalty < fit_ridge(noise, labels, CLASSES).penalty


def test_a_constant_feature_changes_nothing() -> None:
    features, labels = _features(30, 5)
    wider = torch.cat([features, torch.full((30, 1), 7.0)], dim=1)
    torch.testing.assert_close(
        fit_ridge(wider, labels, CLASSES)(wider), fit_ridge(features, labels, CLASSES)(features)
    )


def test_neighbours_vote_and_the_nearer_decide_a_tie() -> None:
    # Centred on (0, 0); directions alone count.
    train = torch.tensor([[1.0, 0.0], [1.0, 1.0], [-1.0, 0.0], [-1.0, -1.0]])
    labels = torch.tensor([0, 1, 2, 2])
    val = torch.tensor([[5.0, 0.5], [0.1, 0.09], [-3.0, -1.0]])
    votes = classify_by_neighbours(train, labels, val, CLASSES, neighbours=2)
    assert votes.argmax(1).tolist() == [0, 1, 2]
    assert votes[2].tolist() == pytest.approx([0, 0, 1], abs=2e-3)


def test_all_depths_count_alike_whatever_their_width_and_scale() -> None:
    narrow, _ = _features(50, 3)
    wide, _ = _features(50, 12)
    joined = join_depths([narrow * 1000, wide], [narrow * 1000, wide])
    assert joined.shape == (50, 15)
    for part in (joined[:, :3], joined[:, 3:]):
        assert float(part.square().sum(1).mean()) == pytest.approx(1, rel=1e-4)


def test_the_scale_of_timid_logits_is_raised() -> None:
    labels = torch.arange(CLASSES).repeat(4)
    timid = 0.1 * one_hot(labels, CLASSES).double()
    assert best_scale(timid, labels) > 50
    assert best_scale(100 * timid[torch.from_numpy(np.arange(12)[::-1].copy())], labels) == 1
