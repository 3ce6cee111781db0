"""The statistics against their published tables, their definitions, and scipy's own tests."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from tvf.report.statistics import estimate, holm, paired_difference, pareto_front, within_one_error

SCORES = st.lists(st.floats(0, 1).map(lambda value: round(value, 4)), min_size=2, max_size=8)


def test_the_interval_is_students_t() -> None:
    """t(2) = 4.303 in printed tables."""
    found = estimate([0.80, 0.82, 0.87])
    assert found.mean == pytest.approx(0.83) and found.sd == pytest.approx(0.0360555)
    assert found.error == pytest.approx(0.0360555 / math.sqrt(3), rel=1e-5)
    assert found.high == pytest.approx(0.83 + 4.30265 * 0.0208167, rel=1e-5)
    assert found.low == pytest.approx(0.83 - 4.30265 * 0.0208167, rel=1e-5)


def test_one_seed_has_a_mean_and_no_uncertainty() -> None:
    found = estimate([0.5])
    assert (found.n, found.mean) == (1, 0.5)
    assert {found.sd, found.error, found.low, found.high} == {None}


def test_the_interval_covers_the_truth_in_95_of_100_samples() -> None:
    samples = np.random.default_rng(0).normal(0.8, 0.01, (4000, 3))
    covered = [e.low <= 0.8 <= e.high for e in map(estimate, samples.tolist()) if e.low and e.high]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.012)


@given(a=SCORES, seed=st.integers(0, 99))
def test_the_paired_test_is_scipys_and_that_of_the_definition(a: list[float], seed: int) -> None:
    b = np.random.default_rng(seed).uniform(0, 1, len(a)).tolist()
    found = paired_difference("a", "b", {"a": dict(enumerate(a)), "b": dict(enumerate(b))})
    assert found is not None and found.p is not None
    expected = scipy.stats.ttest_rel(a, b)
    interval = expected.confidence_interval()
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6)
    assert found.estimate.error is not None
    t = abs(found.estimate.mean) / found.estimate.error
    assert found.p == pytest.approx(2 * scipy.stats.t.sf(t, len(a) - 1), rel=1e-9)
    assert (found.estimate.low, found.estimate.high) == pytest.approx(
        (interval.low, interval.high), rel=1e-6, abs=1e-9
    )


def test_pairs_are_the_shared_seeds() -> None:
    scores = {"a": {1: 0.9, 2: 0.8, 3: 0.1}, "b": {2: 0.7, 1: 0.5, 4: 0.0}, "c": {9: 0.5}}
    found = paired_difference("a", "b", scores)
    assert found is not None and found.estimate.n == 2
    assert found.estimate.mean == pytest.approx(0.25)
    assert paired_difference("a", "c", scores) is None


def test_a_difference_that_is_the_same_for_every_seed_has_no_p_value() -> None:
    scores = {"a": {1: 0.9, 2: 0.8, 3: 0.7}, "b": {1: 0.8, 2: 0.7, 3: 0.6}}
    found = paired_difference("a", "b", scores)
    assert found is not None and found.p is None and found.estimate.mean == pytest.approx(0.1)


def test_holm_gives_the_values_of_r() -> None:
    """0.01, 0.04, 0.03, 0.005: R's p.adjust(method="holm") gives 0.03, 0.06, 0.06, 0.02."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=12), st.sampled_from([0.01, 0.05, 0.2]))
def test_holm_rejects_what_its_step_down_procedure_rejects(
    values: list[float], level: float
) -> None:
    rejected: set[int] = set()
    for rank, index in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        if (len(values) - rank) * values[index] > level:
            break
        rejected.add(index)
    assert {index for index, value in enumerate(holm(values)) if value <= level} == rejected


def test_the_rule_uses_the_standard_error_of_the_best() -> None:
    scores = {
        "best": estimate([0.90, 0.92, 0.94]),  # standard error 0.0115
        "near": estimate([0.90, 0.91, 0.92]),
        "noisy": estimate([0.80, 0.85, 0.99]),  # its own error is larger: that does not count
        "far": estimate([0.89, 0.90, 0.91]),
    }
    best, near = within_one_error(scores)
    assert (best, near) == ("best", ["best", "near"])
    with pytest.raises(ValueError, match="one seed"):
        within_one_error({"a": estimate([0.5])})


def test_a_tie_with_the_best_is_within_its_error_even_if_that_is_zero() -> None:
    scores = {"a": estimate([0.1, 0.2, 0.3]), "b": estimate([0.3, 0.2, 0.1])}
    assert within_one_error({**scores, "c": estimate([0.2, 0.2, 0.2])})[1] == ["a", "b", "c"]
    assert within_one_error({"a": estimate([0.7, 0.7]), "b": estimate([0.69, 0.7])}) == ("a", ["a"])


POINTS = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    max_size=9,
)


@given(POINTS)
def test_the_pareto_front_is_what_no_point_dominates(points: dict[str, tuple[int, int]]) -> None:
    front = pareto_front(
        {name: (float(cost), float(score)) for name, (cost, score) in points.items()}
    )
    kept = {points[name] for name in front}
    undominated = {
        point
        for point in points.values()
        if not any(o != point and o[0] <= point[0] and o[1] >= point[1] for o in points.values())
    }
    assert kept == undominated
    assert [points[name][0] for name in front] == sorted(points[name][0] for name in front)
