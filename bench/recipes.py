"""Measures every option of docs/recipes.md: a sweep over options and seeds, as a Markdown table.

Differences from `direct`, the job without any option, are paired by seed. With its defaults it
takes about 15 minutes on two cores.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import fmean, stdev

from scipy.stats import ttest_rel

from tvf.records import Row, read_jobs

ROOT = Path(__file__).parent.parent
BASE = ("model.pct_unfreeze=0.25", "epochs=6", "tracker=none")
# Per option: the choices it makes in config groups, and the values it sets.
OPTIONS: dict[str, tuple[dict[str, str], dict[str, object]]] = {
    "direct": ({}, {}),
    "recipe=lp_ft": ({"recipe": "lp_ft"}, {}),
    "recipe=lp_ft recipe.head_epochs=1": ({"recipe": "lp_ft"}, {"recipe.head_epochs": 1}),
    "recipe=gradual": ({"recipe": "gradual"}, {}),
    "optimizer.layer_decay=0.4": ({}, {"optimizer.layer_decay": 0.4}),
    "model.direction=bottom": ({}, {"model.direction": "bottom"}),
    "model.groups=[blocks.6]": ({}, {"model.groups": ["blocks.6"]}),
    "model.train=bn": ({}, {"model.train": "bn"}),
    "model.head_dropout=0.2": ({}, {"model.head_dropout": 0.2}),
    "early_stopping=patience": ({"early_stopping": "patience"}, {}),
    "scheduler=cosine": ({"scheduler": "cosine"}, {}),
    "scheduler=warmup_cosine": ({"scheduler": "warmup_cosine"}, {}),
    "scheduler=one_cycle": ({"scheduler": "one_cycle"}, {}),
    "scheduler=plateau": ({"scheduler": "plateau"}, {}),
    "loss=smoothed": ({"loss": "smoothed"}, {}),
    "data.class_weights=balanced": ({}, {"data.class_weights": "balanced"}),
    "mix=mixup": ({"mix": "mixup"}, {}),
    "mix=cutmix": ({"mix": "cutmix"}, {}),
    "average=ema": ({"average": "ema"}, {}),
    "optimizer.decay_all=false": ({}, {"optimizer.decay_all": False}),
    "optimizer.clip_norm=1": ({}, {"optimizer.clip_norm": 1.0}),
    "fabric.precision=bf16-mixed": ({}, {"fabric.precision": "bf16-mixed"}),
}


def write_options(folder: Path) -> list[str]:
    """Write one YAML per option for Hydra to sweep over, like experiments; return their names."""
    names = []
    for number, (groups, values) in enumerate(OPTIONS.values()):
        lines = ["# @package _global_"]
        if groups:
            lines.append("defaults:")
        lines += [f"  - override /{group}: {option}" for group, option in groups.items()]
        for key, value in values.items():
            node, name = key.split(".")
            text = str(value).lower() if isinstance(value, bool) else value
            lines += [f"{node}:", f"  {name}: {text}"]
        names.append(f"o{number:02d}")
        (folder / f"{names[-1]}.yaml").write_text("\n".join([*lines, ""]))
    return names


def run_sweep(options: argparse.Namespace) -> list[str]:
    """Sweep all options over the seeds; return the names of the options' YAML files."""
    with tempfile.TemporaryDirectory(prefix="tvf-recipes-") as config_dir:
        folder = Path(config_dir, "option")
        folder.mkdir()
        names = write_options(folder)
        command = [
            sys.executable,
            str(ROOT / "train.py"),
            "-m",
            "--config-dir",
            config_dir,
            *BASE,
            f"+option={','.join(names)}",
            f"seed={options.seeds}",
            f"hydra.sweep.dir={options.folder}",
            *options.overrides,
        ]
        subprocess.run(command, check=True, env=os.environ)
    return names


def read_rows(folder: Path, names: list[str]) -> dict[str, dict[int, Row]]:
    """The sweep's jobs, by option and seed."""
    rows: dict[str, dict[int, Row]] = {name: {} for name in names}
    prefix = "+option="
    for row in read_jobs(folder):
        name = next(text for text in row["overrides"] if text.startswith(prefix))
        rows[name.removeprefix(prefix)][row["seed"]] = row
    return rows


def print_table(names: list[str], rows: dict[str, dict[int, Row]]) -> None:
    """Print means over seeds, and the differences from the first option."""
    accuracies = {
        name: {seed: row["val_acc"] for seed, row in jobs.items()} for name, jobs in rows.items()
    }
    titles = [
        "option",
        "validation accuracy",
        "minus direct (95 % interval)",
        "test accuracy",
        "seconds",
    ]
    print(f"| {' | '.join(titles)} |", "|---" * len(titles) + "|", sep="\n")
    for name, option in zip(names, OPTIONS, strict=True):
        jobs = list(rows[name].values())
        val_text, test_text = (
            f"{fmean(row[key] for row in jobs):.3f} ± {stdev([row[key] for row in jobs]):.3f}"
            for key in ("val_acc", "test_acc")
        )
        seconds = fmean(row["train_seconds"] - row["prefix_seconds"] for row in jobs)
        difference = ""
        seeds = sorted(accuracies[name].keys() & accuracies[names[0]].keys())
        if name != names[0] and len(seeds) > 1:
            own, direct = ([accuracies[each][seed] for seed in seeds] for each in (name, names[0]))
            interval = ttest_rel(own, direct).confidence_interval()
            mean = fmean(own) - fmean(direct)
            difference = f"{mean:+.3f} ({interval.low:+.3f} to {interval.high:+.3f})"
        print(f"| `{option}` | {val_text} | {difference} | {test_text} | {seconds:.1f} |")


def main() -> None:
    """Run the sweep and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", default="1,2,3,4,5")
    parser.add_argument(
        "--folder",
        default="outputs/sweeps/recipes",
        help="the sweep's folder; an interrupted sweep is resumed",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        help="for all jobs, such as data.limit=64 data.image_size=32 for a quick trial",
    )
    options = parser.parse_args()
    names = run_sweep(options)
    print_table(names, read_rows(Path(options.folder), names))


if __name__ == "__main__":
    main()
