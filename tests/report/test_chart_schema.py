"""Every chart of the report is valid Vega-Lite; the report itself does not check its charts."""

import json
import re
from pathlib import Path

import altair as alt
import pytest
from jsonschema import ValidationError

from helpers.sweeps import add_curves, add_job, add_predictions
from tvf.records import read_sweep
from tvf.report.comparison import Comparison, compare
from tvf.report.html import render_html
from tvf.report.pictures import _specification

CHARTS = {"score", "cost", "curves", "losses", "differences", "data", "confusion", "reliability"}


def compared(sweep: Path) -> Comparison:
    (comparison,) = compare(read_sweep(sweep))
    return comparison


@pytest.mark.slow
def test_every_chart_keeps_to_the_schema(tmp_path: Path) -> None:
    curves, judged, rates = (tmp_path / name for name in ("curves", "judged", "rates"))
    laws = {0.0: lambda n: 0.6 + n / 1e4, 1.0: lambda n: 0.5 + n / 5e3}
    add_curves(curves, laws, (100, 200, 400))
    for seed in (1, 2, 3):
        for fraction, score in ((0.0, 0.7), (0.5, 0.9)):
            folder = add_job(judged, fraction, seed, [score - 0.1, score + seed / 100])
            add_predictions(folder, {"a": (0, [0.2, 0.8]), "b": (1, [0.4, 0.6])})
    for rate in (0.001, 0.01):
        add_job(rates, 0.5, 1, [0.5, 0.6 + rate], changes={"optimizer.lr": rate})
    seen, chart = set[str](), {}
    for sweep in (curves, judged, rates):
        comparison = compared(sweep)
        page = render_html([sweep], read_sweep(sweep), [comparison])
        found = re.search(r'id="charts">(.*?)</script>', page, re.DOTALL)
        assert found
        for name, chart in json.loads(found[1]).items():
            seen.add(name.removeprefix("part0-"))
            alt.Root.validate(chart)
        alt.Root.validate(json.loads(_specification([comparison])))
    assert seen == CHARTS
    with pytest.raises(ValidationError, match="no mark"):
        alt.Root.validate(chart | {"layer": [{"mark": "no mark"}]})
