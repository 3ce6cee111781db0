"""The statistics against their published tables and their definitions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvf.report.statistics import holm, pareto_front, t_quantile


def test_the_quantile_is_that_of_printed_tables() -> None:
    assert t_quantile(2) == pytest.approx(4.303, abs=5e-4)
    assert t_quantile(30) == pytest.approx(2.042, abs=5e-4)


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
