"""Configurations that differ in how their groups train: labels, notes and sentences."""

from pathlib import Path
from typing import Any

import pytest

from helpers.sweeps import add_job
from tvf.config import METHODS
from tvf.records import read_sweep
from tvf.report.comparison import Comparison, compare
from tvf.report.encodings import series_of
from tvf.report.model_card import describe_job
from tvf.report.terminal import jobs_table

TARGETS = {method.choice: target for target, method in METHODS.items()}


def _changes(method: str, **more: Any) -> dict[str, Any]:
    return {"model._target_": TARGETS[method], **more}


def _compared(folder: Path) -> Comparison:
    (comparison,) = compare(read_sweep(folder))
    return comparison


def _add(folder: Path, method: str, fraction: float, score: float = 0.8, **changes: Any) -> None:
    for seed in (1, 2, 3):
        own = 0.001 * (seed * len(method) % 5)
        scores = [score - 0.1, score + own]
        add_job(folder, fraction, seed, scores, changes=_changes(method, **changes), model=method)


def test_a_label_is_the_fraction_and_how_it_trains(tmp_path: Path) -> None:
    for method in ("finetune", "lora", "bitfit", "norm"):
        _add(tmp_path, method, 0.5, 0.9 if method == "lora" else 0.7)
    comparison = _compared(tmp_path)
    assert [group.label for group in comparison.configurations] == [
        "0.5",
        "0.5 with BitFit",
        "0.5 with LoRA",
        "0.5 with normalisation alone",
    ]
    assert "rain pct_unfreeze=0.5 with LoRA, with a validation accuracy" in comparison.choice.text
    assert not [note for note in comparison.notes if "differ in more" in note]


def test_a_probe_is_no_other_name_of_transfer_learning(tmp_path: Path) -> None:
    for method in ("transfer", "probe"):
        _add(tmp_path, method, 0.0, 0.9 if method == "probe" else 0.7)
    comparison = _compared(tmp_path)
    labels = [group.label for group in comparison.configurations]
    assert sorted(labels) == ["0", "0 with a probe of all depths"]
    assert "rain pct_unfreeze=0 with a probe of all depths" in comparison.choice.text
    assert not [note for note in comparison.notes if "train the same layers" in note]


def test_the_table_of_jobs_says_how_they_train_if_the_fraction_does_not(tmp_path: Path) -> None:
    for method in ("transfer", "finetune"):
        _add(tmp_path, method, 0.0)
    assert "model" not in [column.header for column in jobs_table(read_sweep(tmp_path)).columns]
    _add(tmp_path, "probe", 0.0)
    columns = jobs_table(read_sweep(tmp_path)).columns
    (model,) = [column for column in columns if column.header == "model"]
    assert {*model.cells} == {"transfer", "finetune", "probe"}


def test_ranks_are_told_apart_and_only_where_there_are_adapters(tmp_path: Path) -> None:
    _add(tmp_path, "finetune", 0.5)
    for rank in (4, 8):
        _add(tmp_path, "lora", 0.5, **{"model.rank": rank})
    labels = [group.label for group in _compared(tmp_path).configurations]
    assert labels == ["0.5", "0.5 with LoRA, model.rank=4", "0.5 with LoRA, model.rank=8"]
    assert [*map(series_of, labels)] == [
        "default",
        "with LoRA, model.rank=4",
        "with LoRA, model.rank=8",
    ]


@pytest.mark.parametrize(
    ("methods", "text"),
    [
        (["transfer", "finetune"], "model=transfer and model.pct_unfreeze=0 train"),
        (["transfer", "lora"], "model=transfer and model.pct_unfreeze=0 of model=lora train"),
        (
            ["finetune", "lora", "norm"],
            "model.pct_unfreeze=0 of model=finetune, model=lora and model=norm train the same "
            "layers in the same way: they count as 3 configurations",
        ),
    ],
)
def test_one_training_under_several_names_is_noted(
    tmp_path: Path, methods: list[str], text: str
) -> None:
    for method in methods:
        _add(tmp_path, method, 0.0)
    assert any(note.startswith(text) for note in _compared(tmp_path).notes)


def test_the_model_card_says_how_the_groups_trained(tmp_path: Path) -> None:
    folder = add_job(tmp_path, 0.5, 1, changes=_changes("lora"), model="lora")
    assert "groups trained by low-rank adapters (LoRA): " in describe_job(folder)


def test_a_waiting_job_has_the_model_of_its_config(tmp_path: Path) -> None:
    add_job(tmp_path, 0.5, 1, changes=_changes("norm"), state="waiting")
    (row,) = read_sweep(tmp_path)
    assert (row["model"], row["pct_unfreeze"]) == ("norm", 0.5)
