"""The model card of a trained job, in Markdown, with the header that the Hugging Face Hub reads.

After Mitchell et al. 2019, "Model Cards for Model Reporting".
"""

import shlex
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import yaml

from tvf.config import is_probe, method_of
from tvf.files import MODEL_CARD, encode_text, printable, write_whole
from tvf.metrics import METRICS, WORDS
from tvf.records import Row, read_job, read_sweep
from tvf.report.calibration import KINDS, SPLITS, calibration_of
from tvf.report.commands import sweep_commands
from tvf.report.comparison import Comparison, compare
from tvf.report.configuration import Configuration
from tvf.report.sentences import describe_errors

MANY_CLASSES = 20  # more are not shown one by one
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
        *_scores(job, comparison, configuration),
        "## Calibration",
        *_calibration(job),
        "## Confusion",
        *_confusion(job),
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
    named = ", ".join(map(_name, classes[:MANY_CLASSES]))
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
        "pad": f"padded with {_name(data.get('pad_color'))} to a square of",
    }.get(str(data.get("resize")), "become their central square of")
    method = data.get("interpolation", "bilinear")
    by = "" if method == "bilinear" else f", by {_name(method)} interpolation"
    window = (job["summary"].get("images") or {}).get("window") or data.get("window")
    if isinstance(window, list):
        by += f", with values from {' to '.join(map(_name, window))} as black to white"
    if (channels := data.get("channels", "auto")) != "auto":
        shown = channels if isinstance(channels, str) else ", ".join(map(str, channels))
        by += f", in {_name(shown)}" if isinstance(channels, str) else f", of bands {_name(shown)}"
    return f"{how} {data.get('image_size')}×{data.get('image_size')} pixels{by}"


def _data(job: Row) -> Iterator[str]:
    data, images = job["config"].get("data") or {}, job["summary"].get("images") or {}
    target = str(data.get("_target_"))
    path, root = data.get("path"), data.get("root")
    source = f"the folder `{_name(Path(str(root)).name)}`" if root else target.split(".")[-1]
    if path:
        kind = "data set" if target.endswith("HfDataset") else "table"
        source = f"the {kind} `{_name(Path(str(path)).name)}`"
    yield f"Source: {source}. Licence: {LICENCES.get(target, UNKNOWN)}."
    by_class, classes = images.get("by_class") or {}, job["summary"].get("classes") or []
    if not by_class:
        return
    splits = list(by_class)
    rows = [[_name(name), *(by_class[s][i] for s in splits)] for i, name in enumerate(classes)]
    total = ["all", *(images.get(split, "") for split in splits)]
    if len(rows) > MANY_CLASSES:
        rows = []
    yield _table(["class", *splits], [*rows, total])
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
        f"fraction of {_number(summary.get('pct_unfreeze'), 'g')}, "
        f"{_number(summary.get('trainable_params'))} of "
        f"{_number(summary.get('total_params'))} parameters. The weights are those of epoch "
        f"{summary.get('best_epoch')} of {summary.get('epochs')}, {_why_epoch(job)}."
    )
    machine = summary.get("machine") or {}
    device = machine.get("gpu") or f"{machine.get('cores')} cores of {machine.get('processor')}"
    yield (
        f"Cost: {_number(summary.get('train_seconds'), ',.0f')} seconds of training, without what "
        "frozen layers had already computed for other jobs, and "
        f"{_number(summary.get('peak_memory_mb'), ',.0f')} MB of memory, on {device}."
    )
    yield f"To repeat it:\n\n```sh\n{_command(job)}\n```"


def _refit(job: Row) -> dict[str, Any] | None:
    """What the sweep knows about a job that trained on train + validation; None for others."""
    if not job["config"].get("refit_epochs"):
        return None
    unknown = {"best_epochs": [], "sweep": "?", "configuration": "it", "estimate": "not recorded"}
    return unknown | (job["summary"].get("refit") or {})


def _why_epoch(job: Row) -> str:
    if (refit := _refit(job)) is None:
        return "the best on validation images"
    epochs = ", ".join(map(str, sorted(refit["best_epochs"])))
    return f"chosen by the best epochs of the sweep's jobs ({epochs})"


def _command(job: Row) -> str:
    sweep = Path(job["path"]).parent
    if "refit" in job["summary"]:
        return shlex.join(["tvf", "refit", sweep.parent.name, f"seed={job['seed']}"])
    commands = sweep_commands(sweep) if (sweep / "sweep.json").is_file() else []
    return "\n".join(commands) or shlex.join(["python", "train.py", *job["overrides"]])


def _scores(
    job: Row, comparison: Comparison | None, configuration: Configuration | None
) -> Iterator[str]:
    summary = job["summary"]
    if refit := _refit(job):
        yield (
            "Not measured: it was trained on its validation images too. What to expect is the "
            f"estimate of the sweep {_name(refit['sweep'])} for {refit['configuration']}, whose "
            f"jobs trained on fewer images: {refit['estimate']}."
        )
        return
    metric = comparison.metric if comparison else job["metric"]
    key, word = METRICS[metric], WORDS[metric]
    names = [(key, word), *((k, WORDS[m]) for m, k in METRICS.items() if m != metric)]
    rows = []
    for split, of_all in _means(configuration):
        for name, label in names:
            if isinstance(value := summary.get(f"{split}_{name}"), float):
                mean = of_all if name == key else ""
                rows.append([f"{SPLITS[split]} {label}", f"{value:.3f}", mean])
    heading = "mean of its configuration's trainings"
    if any(row[2] for row in rows):
        yield _table(["score", "this model", heading], rows)
    else:
        yield _table(["score", "this model"], [row[:2] for row in rows])
    if comparison and configuration:
        yield describe_errors(comparison)
        yield (
            "This is the best of its configuration's trainings by validation, so its own "
            "validation score is too high: the mean says more about what to expect."
            if len(configuration.done) > 1
            else "Validation images chose its epoch, so its validation score is too high."
        )


def _means(configuration: Configuration | None) -> Iterator[tuple[str, str]]:
    """For each split the mean over the configuration's trainings in words; empty without one."""
    for split in SPLITS:
        score = getattr(configuration, split, None)
        yield split, str(score) if score else ""


def _calibration(job: Row) -> Iterator[str]:
    if _refit(job):
        yield (
            f"Temperature {_number(_temperature(job), '.3f')}, by which logits are divided: the "
            "median of those of the sweep's jobs (Guo et al. 2017). Not measured for this model."
        )
        return
    found = calibration_of(job)
    if found is None:
        yield "Not known: a logit is not finite, or the predictions are missing."
        return
    rows = [
        [
            f"{SPLITS[split]}{', scaled' if how == 'scaled' else ''}",
            *(f"{found[split][how][key]:.3f}" for key in ("nll", "brier", "ece")),
        ]
        for split in SPLITS
        if split in found
        for how in KINDS
    ]
    test = found.get("test")
    worse = test is not None and test["scaled"]["nll"] > test["raw"]["nll"]
    yield (
        f"Temperature {found['temperature']:.3f}, fitted on the validation images (Guo et al. "
        "2017), by which logits are divided; predictions stay the same. ECE has 15 bins of equal "
        "size." + (" On the test images it makes probabilities worse." if worse else "")
    )
    yield _table(["images", "negative log-likelihood", "Brier score", "ECE"], rows)


def _temperature(job: Row) -> Any:
    return (job["summary"].get("calibration") or {}).get("temperature")


def _confusion(job: Row) -> Iterator[str]:
    if _refit(job):
        yield "Not measured."
        return
    classes, matrix = job["summary"].get("classes") or [], job["summary"].get("test_confusion")
    if not matrix or len(classes) > MANY_CLASSES:
        yield "Not shown: there are many classes, or the record lacks it. See `summary.json`."
        return
    yield "Test images, by their class (rows) and by the predicted one (columns)."
    names = [*map(_name, classes)]
    rows = [[name, *row] for name, row in zip(names, matrix, strict=True)]
    yield _table(["", *names], rows)


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


def _name(name: object) -> str:
    """A name that Markdown shows as it is."""
    return escape(printable(name), quote=False)


def _number(value: Any, form: str = ",") -> str:
    return format(value, form) if isinstance(value, int | float) else "unknown"


def _table(headings: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    lines = [_line(headings), "|" + "---|" * len(headings), *map(_line, rows)]
    return "\n".join(lines)


def _line(cells: Sequence[object]) -> str:
    texts = [f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in cells]
    return f"| {' | '.join(text.replace('|', chr(92) + '|') for text in texts)} |"
