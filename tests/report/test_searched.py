"""What reports say about configurations that a search found."""

import json
from pathlib import Path

import pytest

from helpers.sweeps import add_job, add_training
from tvf.records.job import best_score
from tvf.records.rows import read_sweep
from tvf.records.sweep import note_search
from tvf.report.charts import score_by_choice
from tvf.report.comparison import compare
from tvf.report.encodings import to_vega_lite
from tvf.report.formats import render_report
from tvf.report.terminal import jobs_table, print_result

FOUND = "found by a search of {} trials on the same validation images"
INTERVALS = "Intervals and p-values take the configurations as given, but they were searched"


@pytest.mark.slow
def searched(folder: Path, jobs: dict[str, str], n_trials: int | None = None) -> None:
    """Note a search whose trials have a job each: states by the jobs' folders."""
    trials = [
        {"state": state, "jobs": [name], "epochs": 1 if state == "pruned" else None}
        for name, state in jobs.items()
    ]
    note_search(folder, {"n_trials": n_trials or len(trials), "trials": trials})


def test_every_format_says_that_the_configurations_were_searched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [
        add_training(
            tmp_path,
            fraction,
            [True] * (70 + 10 * number) + [False] * (30 - 10 * number),
            seed=seed,
            changes={"optimizer.lr": 0.001 * (number + 1)},
        ).name
        for number, fraction in enumerate((0.25, 0.5, 1.0))
        for seed in (1, 2)
    ]
    rows = read_sweep(tmp_path)
    before = render_report([tmp_path], rows, "json")["report.json"].decode()
    assert "search" not in before
    searched(tmp_path, dict.fromkeys(names, "complete"))
    rows = read_sweep(tmp_path)
    for kind, name in {"html": "report.html", "md": "report.md", "json": "report.json"}.items():
        text = render_report([tmp_path], rows, kind)[name].decode()
        assert FOUND.format(6) in text and INTERVALS in text, kind
    assert not print_result(tmp_path, frozenset(names))
    printed = capsys.readouterr().out
    assert FOUND.format(6) in printed and INTERVALS in printed
    assert "tvf resume" not in printed


def test_single_trainings_are_declined_with_the_search_named(tmp_path: Path) -> None:
    names = [
        add_job(tmp_path, 0.5, 1, (0.6, 0.7 + rate), changes={"optimizer.lr": rate}).name
        for rate in (0.01, 0.02)
    ]
    searched(tmp_path, dict.fromkeys(names, "complete"))
    (comparison,) = compare(read_sweep(tmp_path))
    assert "nothing is recommended" in comparison.choice.text
    assert FOUND.format(2) in comparison.choice.text


def test_pruned_configurations_are_told_from_unfinished_ones(tmp_path: Path) -> None:
    kept = add_job(tmp_path, 0.5, 1, (0.6, 0.7)).name
    dropped = [
        add_job(
            tmp_path, 0.5, 1, (0.5,), epochs=2, state="paused", changes={"optimizer.lr": rate}
        ).name
        for rate in (0.01, 0.02)
    ]
    searched(tmp_path, {kept: "complete"} | dict.fromkeys(dropped, "pruned"))
    rows = read_sweep(tmp_path)
    assert [row["state"] for row in rows].count("pruned") == 2
    (comparison,) = compare(rows)
    text = comparison.choice.text
    assert "the only configuration that the search kept" in text and FOUND.format(3) in text
    assert "pruned: 2 of 3 jobs." in comparison.notes
    (note,) = [note for note in comparison.notes if "The search pruned" in note]
    assert note.startswith("The search pruned 2 of 3 configurations after 1 of 2 epochs")
    assert not any("halving" in each for each in [text, *comparison.notes])
    page = render_report([tmp_path], rows, "html")["report.html"].decode()
    assert "pruned" in page and "tvf resume" not in page


def test_a_search_with_trials_left_can_be_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [add_job(tmp_path, fraction, 1).name for fraction in (0.25, 0.5)]
    searched(tmp_path, dict.fromkeys(names, "complete"), n_trials=3)
    print_result(tmp_path, frozenset(names))
    assert "to finish the sweep: tvf resume" in capsys.readouterr().out


def test_a_job_that_several_trials_drew_is_that_of_the_complete_one(tmp_path: Path) -> None:
    name = add_job(tmp_path, 0.5, 1).name
    trials = [{"state": state, "jobs": [name]} for state in ("pruned", "complete", "failed")]
    note_search(tmp_path, {"n_trials": 3, "trials": trials})
    (row,) = read_sweep(tmp_path)
    assert row["trial"] == "complete" and row["trials"] == 3 and row["state"] == "done"


def test_a_damaged_record_of_a_search_is_none(tmp_path: Path) -> None:
    add_job(tmp_path, 0.5, 1)
    manifest = json.loads((tmp_path / "sweep.json").read_text())
    for damaged in (3, {"trials": 3}, {"trials": [3, {}], "n_trials": "x"}):
        (tmp_path / "sweep.json").write_text(json.dumps(manifest | {"search": damaged}))
        (row,) = read_sweep(tmp_path)
        assert row["trials"] is None
        assert not print_result(tmp_path, frozenset([row["folder"]]))


def test_thirty_configurations_of_one_job_each_fit_a_line(tmp_path: Path) -> None:
    names = [
        add_job(
            tmp_path,
            (0.25, 0.5, 1.0)[number % 3],
            1,
            (0.6, 0.7 + number / 1000),
            changes={"optimizer.lr": 0.000123 * (number + 1), "recipe.lr": 0.0456},
        ).name
        for number in range(30)
    ]
    searched(tmp_path, dict.fromkeys(names, "complete"))
    rows = read_sweep(tmp_path)
    assert len(jobs_table(rows).rows) == 30
    (comparison,) = compare(rows)
    assert comparison.choice.text.count("optimizer.lr") <= 4  # it names few of them
    labels = [group.label for group in comparison.configurations]
    assert len({*labels}) == 30 and max(map(len, labels)) < 60
    chart = score_by_choice(comparison, dict.fromkeys((0.25, 0.5, 1.0), "#000"))
    assert "other settings" not in str(to_vega_lite(chart))
    (note,) = [note for note in comparison.notes if "Each fraction at its best" in note]
    assert note.count("(best of 10)") == 3


def test_what_a_sweeper_is_told_of_a_job_is_its_score_by_the_metric(tmp_path: Path) -> None:
    done = add_job(tmp_path, 0.5, 1, (0.6, 0.7))
    by_auroc = add_job(tmp_path, 0.5, 2, (0.6, 0.7), changes={"data.metric": "auroc"})
    broken = add_job(tmp_path, 0.5, 3, (0.6, 0.7), val_acc=float("nan"))
    paused = add_job(tmp_path, 0.5, 4, (0.6,), state="paused")
    scores = [best_score(folder) for folder in (done, by_auroc, broken, paused)]
    assert scores == [0.7, 0.75, None, None]
