"""The model card of a trained job, in Markdown, with the header that the Hugging Face Hub reads.

After Mitchell et al. 2019, "Model Cards for Model Reporting".
"""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from tvf.config import is_probe, method_of
from tvf.files import MODEL_CARD, encode_text, write_whole
from tvf.records import Row, read_job, read_sweep
from tvf.report.card_scores import (
    MANY_CLASSES,
    describe_calibration,
    describe_confusion,
    describe_scores,
    escaped,
    formatted,
    markdown_table,
    refit_of,
)
from tvf.report.commands import sweep_commands
from tvf.report.comparison import Comparison, compare

# What is known about the licences of data and weights that come with tvf.
LICENCES = {
    "tvf.data.Elpv": "CC-BY-NC-SA-4.0 (Deitsch et al. 2019)",
    "tvf.models.efficientnet_lite0": "Apache-2.0",
    "tvf.models.efficientnet_lite1": "Apache-2.0",
    "tvf.models.efficientnet_lite2": "Apache-2.0",
}
UNKNOWN = "not known to tvf"


def jobs_of_choice(comparison: Comparison) -> list[Row]:
    """The finished jobs of what is recommended, or else best so far; the best first."""
    choice = comparison.choice
    configuration = choice.chosen or choice.best
    if configuration is None:
        return []
    return sorted(configuration.done, key=lambda job: -job[comparison.score_key])


def write_cards(folder: Path, comparisons: Sequence[Comparison]) -> list[Path]:
    """Write the card of each comparison's best job beside its weights; remove other cards.

    Raises OSError.
    """
    for earlier in folder.glob(f"*/{MODEL_CARD}"):
        earlier.unlink()
    paths = []
    for comparison in comparisons:
        for job in jobs_of_choice(comparison)[:1]:
            path = Path(job["path"]) / MODEL_CARD
            if path.parent.is_dir():
                write_whole(path, encode_text(render_card(job, comparison)))
                paths.append(path)
    return paths


def write_card(folder: Path) -> None:
    """Write the card of the job in `folder` beside its weights; raises OSError."""
    write_whole(folder / MODEL_CARD, encode_text(describe_job(folder)))


def describe_job(folder: Path) -> str:
    """The card of the job in `folder`, as a part of its sweep if it is in one."""
    job = read_job(folder)
    if job is None:
        return ""
    if (folder.parent / "sweep.json").is_file():
        for comparison in compare(read_sweep(folder.parent)):
            for each in (job for group in comparison.configurations for job in group.done):
                if each["folder"] == folder.name:
                    return render_card(each, comparison)
    return render_card(job)


def render_card(job: Row, comparison: Comparison | None = None) -> str:
    """The card of a finished job; with a comparison, its scores have intervals."""
    groups = comparison.configurations if comparison else []
    configuration = next((each for each in groups if job in each.done), None)
    sections = [
        f"---\n{yaml.safe_dump(_header(job), sort_keys=False, allow_unicode=True)}---",
        f"# {job['name']}",
        _summary(job),
        "## Use",
        _usage(job),
        "## Data",
        *_data(job),
        "## Training",
        *_training(job),
        "## Scores",
        *describe_scores(job, comparison, configuration),
        "## Calibration",
        *describe_calibration(job),
        "## Confusion",
        *describe_confusion(job),
        "## Limits",
        _limits(job, comparison),
    ]
    return "\n\n".join(sections) + "\n"


def _header(job: Row) -> dict[str, Any]:
    """The YAML at the top: https://huggingface.co/docs/hub/model-cards"""
    summary, config = job["summary"], job["config"]
    backbone = config.get("backbone") or {}
    header: dict[str, Any] = {
        "library_name": "tvf",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "transfer-learning", str(summary.get("backbone"))],
    }
    name, from_timm = str(backbone.get("name")), "timm_backbone" in str(backbone.get("_target_"))
    published = backbone.get("pretrained", True) and backbone.get("checkpoint") is None
    if from_timm and published and not name.startswith("local-dir:"):
        header["base_model"] = name.removeprefix("hf-hub:") if ":" in name else f"timm/{name}"
    metrics = [
        {"type": hub, "value": round(summary[key], 4), "name": f"test {word}"}
        for hub, key, word in (
            ("accuracy", "test_acc", "accuracy"),
            ("f1", "test_macro_f1", "macro F1"),
            ("roc_auc", "test_auroc", "AUROC"),
        )
        if isinstance(summary.get(key), float)
    ]
    if not metrics:
        return header
    data = str(summary.get("data"))
    header["model-index"] = [
        {
            "name": job["name"],
            "results": [
                {
                    "task": {"type": "image-classification"},
                    "dataset": {"name": data, "type": data, "split": "test"},
                    "metrics": metrics,
                }
            ],
        }
    ]
    return header


def _summary(job: Row) -> str:
    summary = job["summary"]
    classes = summary.get("classes") or []
    named = ", ".join(map(escaped, classes[:MANY_CLASSES]))
    more = f" and {len(classes) - MANY_CLASSES:,} more" if len(classes) > MANY_CLASSES else ""
    versions = summary.get("versions") or {}
    commit = f", commit {summary['commit'][:12]}" if summary.get("commit") else ""
    return (
        f"Classifies images into {len(classes):,} classes: {named}{more}. Trained by tvf "
        f"{versions.get('tvf', '')}{commit}, with torch {versions.get('torch', '')}."
    )


def _usage(job: Row) -> str:
    return f"""```python
import tvf

model = tvf.load({Path(job["path"]).name!r})  # the job's folder, or an exported file
model.predict(["photo.jpg"])
```

Images of any size are turned upright and {_resizing(job)};
the model scales and normalises them itself."""


def _resizing(job: Row) -> str:
    """How images are made square."""
    data = job["config"].get("data") or {}
    how = {
        "squash": "squashed, whatever their shape, to",
        "pad": f"padded with {escaped(data.get('pad_color'))} to a square of",
    }.get(str(data.get("resize")), "become their central square of")
    method = data.get("interpolation", "bilinear")
    by = "" if method == "bilinear" else f", by {escaped(method)} interpolation"
    window = (job["summary"].get("images") or {}).get("window") or data.get("window")
    if isinstance(window, list):
        by += f", with values from {' to '.join(map(escaped, window))} as black to white"
    if (channels := data.get("channels", "auto")) != "auto":
        shown = channels if isinstance(channels, str) else ", ".join(map(str, channels))
        by += (
            f", in {escaped(shown)}"
            if isinstance(channels, str)
            else f", of bands {escaped(shown)}"
        )
    return f"{how} {data.get('image_size')}×{data.get('image_size')} pixels{by}"


def _data(job: Row) -> Iterator[str]:
    data, images = job["config"].get("data") or {}, job["summary"].get("images") or {}
    target = str(data.get("_target_"))
    path, root = data.get("path"), data.get("root")
    source = f"the folder `{escaped(Path(str(root)).name)}`" if root else target.split(".")[-1]
    if path:
        kind = "data set" if target.endswith("HfDataset") else "table"
        source = f"the {kind} `{escaped(Path(str(path)).name)}`"
    yield f"Source: {source}. Licence: {LICENCES.get(target, UNKNOWN)}."
    by_class, classes = images.get("by_class") or {}, job["summary"].get("classes") or []
    if not by_class:
        return
    splits = list(by_class)
    rows = [[escaped(name), *(by_class[s][i] for s in splits)] for i, name in enumerate(classes)]
    total = ["all", *(images.get(split, "") for split in splits)]
    if len(rows) > MANY_CLASSES:
        rows = []
    yield markdown_table(["class", *splits], [*rows, total])
    if groups := images.get("groups"):
        each = ", ".join(f"{name} {count}" for name, count in groups.items())
        yield f"Images of a group are on one side of the division. Groups: {each}."
    if weights := images.get("weights"):
        yield (
            f"In training, images counted by weights from {weights['low']:g} to "
            f"{weights['high']:g}; scores are without weights."
        )
    if left_out := images.get("left_out"):
        number = sum(entry["count"] for entry in left_out)
        yield f"{number:,} files of the data's folder were not read."


def _training(job: Row) -> Iterator[str]:
    summary, config = job["summary"], job["config"]
    backbone = config.get("backbone") or {}
    licence = LICENCES.get(str(backbone.get("_target_")), UNKNOWN)
    if (checkpoint := backbone.get("checkpoint")) is not None:
        yield f"Backbone: {summary.get('backbone')}, with the weights in {checkpoint}."
    else:
        yield f"Backbone: {summary.get('backbone')} (licence of its weights: {licence})."
    if combination := summary.get("combination"):
        jobs = ", ".join(combination["jobs"])
        yield (
            f"Made without training ({combination['method']}: {combination['made_of']}) from these "
            f"jobs, chosen by validation images: {jobs}."
        )
        return
    groups = ", ".join(summary.get("unfrozen_groups") or []) or "none"
    model = config.get("model") or {}
    how = f" {how}" if (how := method_of(model).how) else ""
    if is_probe(model):
        yield "Its new head reads the outputs of all layer groups (a linear probe of all depths)."
    yield (
        f"Besides the new head, these of its layer groups trained{how}: {groups}. That is a "
        f"fraction of {formatted(summary.get('pct_unfreeze'), 'g')}, "
        f"{formatted(summary.get('trainable_params'))} of "
        f"{formatted(summary.get('total_params'))} parameters. The weights are those of epoch "
        f"{summary.get('best_epoch')} of {summary.get('epochs')}, {_why_epoch(job)}."
    )
    machine = summary.get("machine") or {}
    device = machine.get("gpu") or f"{machine.get('cores')} cores of {machine.get('processor')}"
    yield (
        f"Cost: {formatted(summary.get('train_seconds'), ',.0f')} seconds of training, without "
        "what frozen layers had already computed for other jobs, and "
        f"{formatted(summary.get('peak_memory_mb'), ',.0f')} MB of memory, on {device}."
    )
    yield f"To repeat it:\n\n```sh\n{_command(job)}\n```"


def _why_epoch(job: Row) -> str:
    if (refit := refit_of(job)) is None:
        return "the best on validation images"
    epochs = ", ".join(map(str, sorted(refit["best_epochs"])))
    return f"chosen by the best epochs of the sweep's jobs ({epochs})"


def _command(job: Row) -> str:
    sweep = Path(job["path"]).parent
    if "refit" in job["summary"]:
        return shlex.join(["tvf", "refit", sweep.parent.name, f"seed={job['seed']}"])
    commands = sweep_commands(sweep) if (sweep / "sweep.json").is_file() else []
    return "\n".join(commands) or shlex.join(["python", "train.py", *job["overrides"]])


def _limits(job: Row, comparison: Comparison | None) -> str:
    sentences = []
    if (job["config"].get("data") or {}).get("validate_on") == "test":
        sentences.append(
            "Its test images chose the epoch, so no score here is of images that played no part."
        )
    sentences += [
        "The scores hold for images like these, taken and labelled in the same way: other cameras, "
        "places, times or populations were not tested, and no interval covers them.",
        "Labels count as true; wrong ones are among the mistakes and among the hits.",
        "An image of none of the classes is assigned to one of them all the same.",
    ]
    if comparison and comparison.choice.chosen is None:
        sentences.append("The sweep could not say whether another configuration is as good.")
    return " ".join(sentences)
