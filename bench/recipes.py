"""What each option of docs/recipes.md did on the default data: a sweep of all options over seeds, as a Markdown table.

Differences are paired by seed with `direct`, the job without any option. Two cores: about 15 minutes with its defaults.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tvf.records.rows import read_jobs
from tvf.report.statistics import estimate, paired_difference

ROOT = Path(__file__).parent.parent
BASE = ("model.pct_unfreeze=0.25", "epochs=6", "tracker=none")
# Each option: what it chooses from groups, and its values.
OPTIONS: dict[str, tuple[dict[str, str], dict[str, object]]] = {
    "direct": ({}, {}),
    "recipe=lp_ft": ({"recipe": "lp_ft"}, {}),
    "recipe=lp_ft recipe.head_epochs=1": ({"recipe": "lp_ft"}, {"recipe.head_epochs": 1}),
    "recipe=gradual": ({"recipe": "gradual"}, {}),
    "optimizer.layer_decay=0.4": ({}, {"optimizer.layer_decay": 0.4}),
    "model.direction=bottom": ({}, {"model.direction": "bottom"}),
    "model.direction=block:blocks.6": ({}, {"model.direction": "block:blocks.6"}),
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
    """One YAML for each option, which Hydra sweeps over like an experiment; their names, in order."""
    names = []
    for number, (groups, values) in enumerate(OPTIONS.values()):
        lines = ["# @package _global_", *(["defaults:"] if groups else [])]
        lines += [f"  - override /{group}: {option}" for group, option in groups.items()]
        for key, value in values.items():
            node, name = key.split(".")
            lines += [
                f"{node}:",
                f"  {name}: {str(value).lower() if isinstance(value, bool) else value}",
            ]
        names.append(f"o{number:02d}")
        (folder / f"{names[-1]}.yaml").write_text("\n".join([*lines, ""]))
    return names


def main() -> None:
    """Run the sweep and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", default="1,2,3,4,5")
    parser.add_argument(
        "--folder",
        default="outputs/sweeps/recipes",
        help="of the sweep, which goes on where it was",
    )
    parser.add_argument(
        "overrides", nargs="*", help="data.limit=64 data.image_size=32, for a quick look"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tvf-recipes-") as name:
        folder = Path(name, "option")
        folder.mkdir()
        names = write_options(folder)
        sweep = [
            f"+option={','.join(names)}",
            f"seed={options.seeds}",
            f"hydra.sweep.dir={options.folder}",
        ]
        command = [
            sys.executable,
            str(ROOT / "train.py"),
            "-m",
            "--config-dir",
            name,
            *BASE,
            *sweep,
        ]
        subprocess.run([*command, *options.overrides], check=True, env=os.environ)
    rows = {name: {} for name in names}
    for row in read_jobs(Path(options.folder)):
        chosen = next(
            each.partition("=")[2] for each in row["overrides"] if each.startswith("+option=")
        )
        rows[chosen][row["seed"]] = row
    accuracies = {
        name: {seed: row["val_acc"] for seed, row in found.items()} for name, found in rows.items()
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
        found = list(rows[name].values())
        val, test = (estimate([row[key] for row in found]) for key in ("val_acc", "test_acc"))
        seconds = estimate([row["train_seconds"] - row["prefix_seconds"] for row in found]).mean
        paired = paired_difference(name, names[0], accuracies) if name != names[0] else None
        told = ""
        if paired and paired.estimate.low is not None and paired.estimate.high is not None:
            told = f"{paired.estimate.mean:+.3f} ({paired.estimate.low:+.3f} to {paired.estimate.high:+.3f})"
        scores = " | ".join(
            [f"{val.mean:.3f} ± {val.sd or 0:.3f}", told, f"{test.mean:.3f} ± {test.sd or 0:.3f}"]
        )
        print(f"| `{option}` | {scores} | {seconds:.1f} |")


if __name__ == "__main__":
    main()
