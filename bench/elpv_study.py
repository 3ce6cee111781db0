"""Prints the tables of docs/elpv.md from the sweeps of `+experiment=elpv_study`.

Each division into train, val and test is one split of the protocol. In each, the configuration with
the best validation accuracy is chosen; its test images have chosen nothing. Where the test images
of the splits do not overlap (outer folds), intervals are over modules, else ± is the standard
deviation over splits.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, stdev

import elpv_dataset
import numpy as np
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    f1_score,
    matthews_corrcoef,
)

from tvf.records import Predictions, Row, read_jobs, read_predictions
from tvf.report.bootstrap import bootstrap_scores, percentile_interval

Metric = Callable[[np.ndarray, np.ndarray], float]
METRICS: dict[str, Metric] = {
    "accuracy": accuracy_score,
    "macro F1": partial(f1_score, average="macro"),
    "balanced accuracy": balanced_accuracy_score,
    "MCC": matthews_corrcoef,
}
KINDS = {"all": "mono poly", "mono": "mono", "poly": "poly"}
CHOSEN = "chosen in each split"


@dataclass(frozen=True)
class Trained:
    """One configuration in one split: validation accuracy, test predictions, seconds of training.

    Several jobs (inner folds) count as one: scores are means, and so are the logits of test images.
    """

    val_accuracy: float
    test: Predictions
    seconds: float


def read_study(folders: Sequence[Path]) -> dict[tuple[int, int], dict[str, Trained]]:
    """The trained configurations by split (split seed, outer fold) and by name."""
    jobs: dict[tuple[int, int], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for folder in folders:
        for row in read_jobs(folder):
            data = row["config"]["data"]
            if row["state"] == "done":
                jobs[data["split_seed"], data["outer_fold"]][_name(row)].append(row)
    return {
        split: {name: _combine(rows) for name, rows in sorted(by_name.items())}
        for split, by_name in sorted(jobs.items())
    }


def _name(row: Row) -> str:
    config = row["config"]
    network = config["backbone"]["_target_"].rpartition("_")[2].capitalize()
    return f"{network}, {config['data']['image_size']} px, {row['pct_unfreeze']:g}"


def _combine(rows: Sequence[Row]) -> Trained:
    predictions = [read_predictions(Path(row["path"]))["test"] for row in rows]
    logits = np.mean([each.logits for each in predictions], axis=0)
    first = predictions[0]
    return Trained(
        fmean(row["val_acc"] for row in rows),
        Predictions(first.ids, first.names, first.labels, logits, first.groups),
        sum(row["train_seconds"] for row in rows),
    )


def read_kinds() -> dict[str, str]:
    """The kind of each cell, mono or poly, by the name of its image."""
    lines = (Path(elpv_dataset.__file__).parent / "data" / "labels.csv").read_text().splitlines()
    return {path: kind for path, _, kind in map(str.split, filter(None, lines))}


def choose(study: Mapping[tuple[int, int], Mapping[str, Trained]]) -> dict[str, list[Trained]]:
    """Each configuration's trainings, one for each split, and those of the chosen ones."""
    by_name: dict[str, list[Trained]] = defaultdict(list)
    for trained in study.values():
        for name, each in trained.items():
            by_name[name].append(each)
        by_name[CHOSEN].append(max(trained.values(), key=lambda each: each.val_accuracy))
    return dict(by_name)


def score(trained: Sequence[Trained], metric: Metric, kinds: str, by_name: dict[str, str]) -> str:
    """A metric over the test images of these kinds: over splits, or over modules."""
    tests = [each.test for each in trained]
    shown = [np.isin([by_name[name] for name in test.names], kinds.split()) for test in tests]
    labels = [test.labels[mask] for test, mask in zip(tests, shown, strict=True)]
    classes = [test.logits[mask].argmax(1) for test, mask in zip(tests, shown, strict=True)]
    if len({*np.concatenate([test.ids for test in tests]).tolist()}) < sum(map(len, tests)):
        values = [metric(*pair) for pair in zip(labels, classes, strict=True)]
        return f"{fmean(values):.4f} ± {stdev(values):.4f}"
    groups = None
    if all(test.groups is not None for test in tests):
        groups = np.concatenate([t.groups[mask] for t, mask in zip(tests, shown, strict=True)])  # pyright: ignore[reportOptionalSubscript]
    true, predicted = np.concatenate(labels), np.concatenate(classes)
    value = metric(true, predicted)
    draws = bootstrap_scores(lambda drawn: metric(true[drawn], predicted[drawn]), len(true), groups)
    interval = percentile_interval(value, draws)
    return f"{value:.4f} ({interval.low:.4f} to {interval.high:.4f})"


def print_tables(study: Mapping[tuple[int, int], Mapping[str, Trained]]) -> None:
    """Print one table of all configurations, and one of the chosen ones by kind of cell."""
    kinds = read_kinds()
    by_name = choose(study)
    print(f"{len(study)} splits\n")
    titles = ["configuration", "chosen", "validation accuracy", *METRICS, "minutes a job"]
    print(f"| {' | '.join(titles)} |", "|---" * len(titles) + "|", sep="\n")
    for name, trained in by_name.items():
        chosen = sum(any(each is other for other in by_name[CHOSEN]) for each in trained)
        cells = [name, f"{chosen} of {len(study)}", f"{fmean(t.val_accuracy for t in trained):.4f}"]
        cells += [score(trained, metric, KINDS["all"], kinds) for metric in METRICS.values()]
        print(f"| {' | '.join(cells)} | {fmean(t.seconds for t in trained) / 60:.1f} |")
    print(f"\n| {CHOSEN} | {' | '.join(METRICS)} |", "|---" * (len(METRICS) + 1) + "|", sep="\n")
    for kind, which in KINDS.items():
        cells = [score(by_name[CHOSEN], metric, which, kinds) for metric in METRICS.values()]
        print(f"| {kind} | {' | '.join(cells)} |")


def main() -> None:
    """Print the tables of one protocol."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, help="sweep folders of one protocol")
    print_tables(read_study(parser.parse_args().folders))


if __name__ == "__main__":
    main()
