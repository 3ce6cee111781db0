"""tvf report: the output formats, and its errors for folders that it cannot compare."""

import csv
import json
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from helpers import ROOT
from helpers.sweeps import add_job
from tvf import cli
from tvf.lease import Lease
from tvf.records.job import LEASE
from tvf.records.rows import read_sweep
from tvf.report import compare, terminal
from tvf.report.formats import FORMATS, render_report
from tvf.report.html import render_html
from tvf.report.palette import COLOURS, MORE_COLOURS, colours
from tvf.report.pictures import _specification, draw_figure


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three fractions with three seeds each, and one job that failed."""
    folder = tmp_path_factory.mktemp("original")
    for fraction, scores in {
        0.0: [0.8, 0.81, 0.82],
        0.5: [0.88, 0.9, 0.92],
        1.0: [0.85, 0.87, 0.86],
    }.items():
        for seed, score in enumerate(scores, 1):
            add_job(folder, fraction, seed, [score - 0.1, score])
    add_job(folder, 1.0, 4, [0.5], state="failed", epochs=2)
    return folder


@pytest.fixture
def sweep(original: Path, tmp_path: Path) -> Path:
    """A copy of `original` that a test may change."""
    return shutil.copytree(original, tmp_path / "sweep")


def tvf(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["tvf", *arguments])
    cli.main()


def test_the_page_is_written_into_the_sweep(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tvf(monkeypatch, "report", str(sweep))
    page = (sweep / "report.html").read_text()
    for words in (
        "train pct_unfreeze=0.5",
        "RuntimeError: broke",
        "tvf train -m seed=1,2",
        "vegaEmbed",
    ):
        assert words in page


def test_markdown_has_the_recommendation_and_a_row_per_configuration(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tvf(monkeypatch, "report", str(sweep), "--format", "md", "--output", "-")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("By a single validation split: train pct_unfreeze=0.5")
    # Retraining: 4.303 * 0.02 / sqrt(3); other images: 1.96 * sqrt(0.9 * 0.1 / 393), 656 in test.
    assert "| 0.5 | 3 | 0.900 | ±0.050 | ±0.030 | 0.880 | ±0.025 | 52.0 | 502,562 |" in lines
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    assert "- failed: 1 of 10 jobs." in lines


def test_a_single_epoch_makes_no_curve_and_jobs_without_a_tracker_have_no_runs(
    sweep: Path, tmp_path: Path
) -> None:
    said = "There are no learning curves, as every job has a single epoch."
    page = render_report([sweep], read_sweep(sweep), "html")["report.html"].decode()
    assert said not in page and '"part0-curves"' in page and "W&amp;B run" not in page
    add_job(tmp_path / "short", 0.5, 1, [0.8], wandb_url="https://wandb.example/runs/1")
    rows = read_sweep(tmp_path / "short")
    page = render_report([tmp_path / "short"], rows, "html")["report.html"].decode()
    assert said in page and '"part0-curves"' not in page and "W&amp;B run" in page
    assert terminal.jobs_table(rows).columns[-1].header == "W&B name"


def test_the_end_of_an_interrupted_sweep_says_each_thing_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_job(tmp_path, 0.5, 1)
    names = {
        add_job(tmp_path, share, 1, state="waiting", changes={"data.val_fraction": share}).name
        for share in (0.1, 0.3, 0.4)
    }
    terminal.print_result(tmp_path, frozenset(names))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len({*lines})
    nothing = [line for line in lines if "No job has finished yet" in line]
    assert len(nothing) == 1 and nothing[0].count("data.val_fraction=0.") == 3
    assert "\n".join(lines).count("All trainings share one division") == 1
    assert not [line for line in lines if "note: waiting" in line]
    assert sum("never started: " in line for line in lines) == 1
    add_job(tmp_path, 0.25, 1, state="waiting")  # of another command
    terminal.print_result(tmp_path, frozenset(names))
    assert "note: waiting: 1 of 2 jobs." in capsys.readouterr().out


def test_csv_has_one_row_per_job_and_one_row_per_epoch(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tvf(monkeypatch, "report", str(sweep), "--format", "csv", "--output", "-")
    printed = capsys.readouterr().out
    tvf(monkeypatch, "report", str(sweep), "--format", "csv", "--output", str(sweep / "out"))
    assert printed == (sweep / "out" / "results.csv").read_bytes().decode()
    jobs = list(csv.DictReader((sweep / "out" / "results.csv").read_text().splitlines()))
    epochs = list(csv.DictReader((sweep / "out" / "epochs.csv").read_text().splitlines()))
    assert len(jobs) == 10 and len(epochs) == 9 * 2 + 1
    assert {row["folder"] for row in epochs} == {row["folder"] for row in jobs}
    for row in jobs:
        if row["state"] == "done":
            own = [float(e["val_acc"]) for e in epochs if e["folder"] == row["folder"]]
            assert float(row["val_acc"]) == max(own)


@pytest.mark.slow
def test_json_has_what_the_page_has(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tvf(monkeypatch, "report", str(sweep), "--format", "json")
    (comparison,) = json.loads((sweep / "report.json").read_text())["comparisons"]
    assert comparison["chosen"] == comparison["best"] == "0.5"
    assert comparison["configurations"][1]["scores"] == {"1": 0.88, "2": 0.9, "3": 0.92}
    assert len(comparison["differences"]) == 3 and comparison["pareto_front"] == ["0", "0.5"]
    documented = (Path(__file__).parents[2] / "docs" / "results.md").read_text()
    assert [key for key in comparison if f"`{key}`" not in documented] == []


@pytest.mark.slow
def test_the_figure_is_a_png_and_an_svg(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tvf(monkeypatch, "report", str(sweep), "--format", "png")
    with Image.open(sweep / "report.png") as picture:
        assert picture.width > 1500 and len(picture.convert("RGB").getcolors(2**24) or []) > 50
    drawing = (sweep / "report.svg").read_text()
    xml.etree.ElementTree.fromstring(drawing)
    for expected in ("validation accuracy", "pct_unfreeze", COLOURS[0.5], COLOURS[1.0]):
        assert expected in drawing
    assert "<text" in drawing and "currentColor" not in drawing


def test_the_figure_is_reproducible(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvf.report.pictures.PPI", 50)  # fewer pixels, drawn in the same way
    comparisons = compare(read_sweep(sweep))
    for kind in ("png", "svg"):
        assert draw_figure(comparisons, kind) == draw_figure(comparisons, kind)


def test_the_figure_says_if_no_job_has_finished(tmp_path: Path) -> None:
    add_job(tmp_path, 0.5, 1, state="waiting")
    for comparisons in (compare(read_sweep(tmp_path)), []):
        assert "No" in draw_figure(comparisons, "svg").decode()


def test_several_sweeps_are_compared_in_the_current_folder(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for seed in (1, 2, 3):
        add_job(other, 0.5, seed, [0.7, 0.95], changes={"optimizer.lr": 0.1})
    monkeypatch.chdir(tmp_path)
    tvf(monkeypatch, "report", "sweep", "other")
    page = (tmp_path / "report.html").read_text()
    assert "train pct_unfreeze=0.5, optimizer.lr=0.1" in page and '<td data-value="other">' in page
    parts = json.loads(
        render_report([sweep, other], [*read_sweep(sweep), *read_sweep(other)], "json")[
            "report.json"
        ]
    )
    assert len(parts["comparisons"]) == 1 and len(parts["sweeps"]) == 2


def test_different_data_are_compared_in_separate_sections_of_one_page(sweep: Path) -> None:
    for seed in (1, 2):
        add_job(sweep, 0.5, seed, [0.7, 0.75], changes={"data.limit": 100})
    page = render_report([sweep], read_sweep(sweep), "html")["report.html"].decode()
    assert "<h2>data.limit=None</h2>" in page and "<h2>data.limit=100</h2>" in page


def test_missing_numbers_and_torn_epochs_affect_nothing_else(sweep: Path) -> None:
    broken = add_job(sweep, 0.0, 9, [0.8], epochs=2, val_acc=float("nan"), train_seconds=None)
    (broken / "metrics.jsonl").write_text('{"epoch": 1, "val_acc": NaN, "val_loss": 1.0}\n{"epo')
    page = render_report([sweep], read_sweep(sweep), "html")["report.html"].decode()
    assert (
        "does not count: its scores are not finite" in page
        and "NaN" not in page.partition('id="charts"')[2].partition("</script>")[0]
    )


@pytest.mark.slow
def test_500_jobs_take_seconds(tmp_path: Path) -> None:
    for number in range(500):
        fraction, seed = number % 100 / 99, 1 + number // 100
        scores = [0.5 + (number * 37 % 100) / 250] * 10
        add_job(tmp_path, round(fraction, 3), seed, scores, manifest=False)
    start = time.monotonic()
    page = render_report([tmp_path], read_sweep(tmp_path), "html")["report.html"]
    assert time.monotonic() - start < 20 and len(page) < 20_000_000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["empty"], "empty is not the folder of a sweep: it has no sweep.json"),
        (["nowhere"], "/nowhere is not a folder"),
        (["."], "It contains sweeps; the newest is .*/bare"),
        (["sweep", "empty"], "empty is not the folder of a sweep"),
        (["bare"], "bare: no job has started"),
        (["sweep", "--output", "-"], "--output - must be used with md, csv or json; html needs"),
        (["sweep", "--output", "/dev/null/x"], "/dev/null/x"),
    ],
    ids=str,
)
def test_what_cannot_be_compared_is_an_error_with_a_reason(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "sweep.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=said):
        tvf(monkeypatch, "report", *arguments)
    assert not (sweep / "report.html").exists()


def test_an_unknown_format_is_an_error(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        tvf(monkeypatch, "report", str(sweep), "--format", "pdf")
    assert "is not one of" in capsys.readouterr().err


def test_the_page_says_how_many_jobs_without_a_config_it_skips(sweep: Path) -> None:
    for path in sweep.glob("*/config.json"):
        path.write_text("{}")
    assert "10 of 10 jobs are not shown: their config is unreadable" in render_html(
        [sweep], read_sweep(sweep), []
    )


# Machado, Oliveira and Fernandes 2009: linear RGB as seen with one type of cone missing.
SIGHTS = {
    "deuteranopia": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.01182, 0.04294, 0.968881),
    ),
    "protanopia": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "tritanopia": (
        (1.255528, -0.076749, -0.178779),
        (-0.078411, 0.930809, 0.147602),
        (0.004733, 0.691367, 0.3039),
    ),
}


def linear(colour: str) -> list[float]:
    values = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]


def lab(rgb: list[float]) -> list[float]:
    """CIELAB of linear RGB, by its definition (D65)."""
    rows = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
    xyz = [sum(a * b for a, b in zip(row, rgb, strict=True)) / sum(row) for row in rows]
    f = [v ** (1 / 3) if v > 216 / 24389 else (24389 / 27 * v + 16) / 116 for v in xyz]
    return [116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])]


def test_colours_of_fractions_are_distinct_for_every_kind_of_sight_on_both_pages() -> None:
    for colour in (*COLOURS.values(), *MORE_COLOURS):
        luminance = sum(
            a * b for a, b in zip((0.2126, 0.7152, 0.0722), linear(colour), strict=True)
        )
        assert 1.05 / (luminance + 0.05) > 2.4 and (luminance + 0.05) / 0.058 > 2.4, colour
    for name, matrix in (SIGHTS | {"all cones": ((1, 0, 0), (0, 1, 0), (0, 0, 1))}).items():
        seen = []
        for colour in COLOURS.values():
            rgb = [sum(a * b for a, b in zip(row, linear(colour), strict=True)) for row in matrix]
            seen.append(lab([min(max(v, 0.0), 1.0) for v in rgb]))
        for i, one in enumerate(seen):
            for other in seen[:i]:
                assert sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) ** 0.5 > 20, name


def test_a_fraction_keeps_its_colour_beside_others() -> None:
    assert colours([0.5, 0.1]) == {0.1: MORE_COLOURS[0], 0.5: COLOURS[0.5]}
    assert len({*colours([0, 0.25, 0.5, 0.75, 1, 0.1, 0.2, 0.3, 0.4, 0.6]).values()}) == 10


MALFORMED: list[tuple[str, dict[str, Any]]] = [
    ("config.json", {"store": None}),
    ("config.json", {"store": "text"}),
    ("config.json", {"model": []}),
    ("summary.json", {"metric": []}),
    ("summary.json", {"unfrozen_groups": 3, "seed": 1.5}),
    ("summary.json", {"versions": "text", "machine": 1, "approximations": 3}),
    ("summary.json", {"val_confusion": "text", "test_confusion": [[1], "a"]}),
    ("summary.json", {"val_recall": [0.5, 0.5, 0.5], "val_confusion": [[1, 2, 3]] * 3}),
    ("summary.json", {"classes": ["a", 3]}),
    ("status.json", {"name": None}),
    ("status.json", {"name": "[/red]"}),
    ("metrics.jsonl", {"epoch": 1, "val_acc": "text"}),
    ("metrics.jsonl", {"epoch": 1}),
]


def damage(job: Path, file: str, content: dict[str, Any]) -> None:
    held = {} if file == "metrics.jsonl" else json.loads((job / file).read_text())
    (job / file).write_text(json.dumps(held | content))


@pytest.mark.parametrize(("file", "content"), MALFORMED, ids=str)
def test_a_malformed_record_affects_nothing_else(
    sweep: Path, capsys: pytest.CaptureFixture[str], file: str, content: dict[str, Any]
) -> None:
    """Neither the end of a sweep nor any report format fails because of it."""
    damage(next(sweep.glob("*0.5-seed2*")), file, content)
    terminal.print_result(sweep, frozenset())
    assert "no report" not in capsys.readouterr().out and (sweep / "report.html").exists()
    rows = read_sweep(sweep)
    for kind in {*FORMATS} - {"html", "png"}:
        render_report([sweep], rows, kind)
    # What is drawn; drawing it takes longer than everything else, and is tested below.
    assert "vconcat" in json.loads(_specification(compare(rows)))


def test_figures_are_drawn_whatever_is_malformed(sweep: Path) -> None:
    for seed in (11, 12, 13, 14):
        add_job(sweep, 0.5, seed)
    done = [path.parent for path in sweep.glob("*/summary.json")]
    for job, (file, content) in zip(done, MALFORMED, strict=True):
        damage(job, file, content)
    files = render_report([sweep], read_sweep(sweep), "png")
    assert files["report.png"] and files["report.svg"]


def test_many_fractions_have_distinct_colours() -> None:
    assert len({*colours([number / 20 for number in range(21)]).values()}) == 21


def test_an_unreadable_sweep_json_is_reported(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (sweep / "sweep.json").write_text("{")
    tvf(monkeypatch, "report", str(sweep), "--format", "json", "--output", "-")
    printed = capsys.readouterr()
    assert "sweep.json cannot be read" in printed.err and json.loads(printed.out)["comparisons"]


def test_a_failing_tracker_does_not_change_the_exit_code(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(folder: Path) -> None:
        raise RuntimeError("the tracker broke")

    monkeypatch.setattr("tvf.report.terminal.log_summary", fail)
    assert terminal.print_result(sweep, frozenset(), track=True) is False
    assert "the sweep's summary was not logged: the tracker broke" in capsys.readouterr().out


def test_a_running_sweep_has_a_page_of_its_results_so_far(sweep: Path) -> None:
    running = add_job(sweep, 0.5, 7, [0.6, 0.7], state="running", epochs=5)
    add_job(sweep, 1.0, 7, state="waiting", epochs=5)
    with Lease(running / LEASE):  # as the process that trains it holds it
        rows = read_sweep(sweep)
    assert sorted(row["state"] for row in rows if row["seed"] == 7) == ["running", "waiting"]
    page = render_report([sweep], rows, "html")["report.html"].decode()
    for words in ("running: 1 of 12 jobs.", "waiting: 1 of 12 jobs.", "train pct_unfreeze=0.5"):
        assert words in page


@pytest.mark.slow
def test_the_page_of_50_jobs_is_under_5_megabytes(tmp_path: Path) -> None:
    for number in range(50):
        scores = [0.5 + number / 200 + epoch / 400 for epoch in range(30)]
        add_job(tmp_path, number % 10 / 9, number // 10, scores, manifest=False)
    assert len(render_report([tmp_path], read_sweep(tmp_path), "html")["report.html"]) < 5_000_000


def test_the_terminals_table_does_not_load_what_charts_and_statistics_need() -> None:
    slow = ("altair", "jinja2", "matplotlib", "scipy", "torch", "vl_convert", "wandb")
    code = f"import sys, tvf.report; print(*[name for name in {slow} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == []
