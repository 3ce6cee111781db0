"""Measures every option of docs/recipes.md: a sweep over options and folds, as a Markdown table.

Scores are those of the report: each image that does not test is scored once, and intervals are for
other modules. Differences from `direct`, the job without any option, are paired by image.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import fmean

from tvf.records import read_sweep
from tvf.report.comparison import compare
from tvf.report.images import compare_scores

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
    """Sweep all options over the folds; return the names of the options' YAML files."""
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
            f"data.folds={options.folds}",
            f"data.fold={','.join(map(str, range(options.folds)))}",
            f"hydra.sweep.dir={options.folder}",
            *options.overrides,
        ]
        subprocess.run(command, check=True, env=os.environ)
    return names


def print_table(folder: Path, names: list[str]) -> None:
    """Print each option's scores, and the differences from the first option."""
    (comparison,) = compare(read_sweep(folder))
    found = {}
    for configuration in comparison.configurations:
        overrides = configuration.done[0]["overrides"]
        (option,) = (text for text in overrides if text.startswith("+option="))
        found[option.removeprefix("+option=")] = configuration
    evidence = comparison.evidence
    assert evidence is not None, "every option has several folds"
    titles = [
        "option",
        "validation accuracy",
        "minus direct (95 % interval)",
        "test accuracy",
        "seconds",
    ]
    print(f"| {' | '.join(titles)} |", "|---" * len(titles) + "|", sep="\n")
    direct = evidence.configurations.index(found[names[0]])
    for name, option in zip(names, OPTIONS, strict=True):
        configuration = found[name]
        val, test = configuration.val, configuration.test
        assert val is not None and test is not None, "its jobs are done"
        seconds = fmean(j["train_seconds"] - j["prefix_seconds"] for j in configuration.done)
        difference = ""
        if name != names[0]:
            index = evidence.configurations.index(configuration)
            mean, _, low, high = compare_scores(evidence.scores, index, direct).interval
            known = low is not None and high is not None
            difference = f"{mean:+.3f}" + (f" ({low:+.3f} to {high:+.3f})" if known else "")
        scores = [f"{score.mean:.3f} ± {score.images or 0:.3f}" for score in (val, test)]
        print(f"| `{option}` | {scores[0]} | {difference} | {scores[1]} | {seconds:.1f} |")


def main() -> None:
    """Run the sweep and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folds", type=int, default=5)
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
    print_table(Path(options.folder), names)


if __name__ == "__main__":
    main()
