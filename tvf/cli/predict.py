"""`tvf predict`, `tvf export` and `tvf combine`: a trained model outside its sweep."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tvf.data import CANNOT_BE_READ, REPAIR, count_by_reason
from tvf.errors import InputError
from tvf.files import printable, write_json_lines
from tvf.inference import (
    ENDINGS,
    FORMATS,
    Item,
    Model,
    ScoreKeeper,
    combine_jobs,
    count_trained_on,
    export_model,
    list_items,
    load,
    open_writer,
    rows_of,
)
from tvf.memory import keep_freed_memory
from tvf.metrics import WORDS
from tvf.progress import progress_bar

LISTED = 10  # unreadable images that are all named on the terminal


@dataclass(frozen=True)
class PredictOptions:
    """What `tvf predict` was asked for: see its help."""

    output: Path | None = None
    file_format: str | None = None
    top: int = 1
    every_class: bool = False
    raw: bool = False
    ensemble: bool = False
    trust_code: bool = False
    device: str = "cpu"
    max_megapixels: float | None = None


def run_predict(model_path: str, images: Sequence[str], options: PredictOptions) -> bool:
    """Write the predictions for `images`; return whether all of them could be read."""
    file_format = _format_of(options)
    model = _load(model_path, options.trust_code, options.device, options.ensemble)
    keep_freed_memory()  # this process only predicts
    top = min(options.top, len(model.classes))
    if options.max_megapixels is not None:
        reading = replace(model.reading, max_megapixels=options.max_megapixels)
        model = replace(model, reading=reading)
    items = list_items(images, model.classes)
    scores, failed = ScoreKeeper(), []
    with (
        open_writer(options.output, file_format) as write,
        progress_bar("predicting", len(items)) as advance,
    ):
        for chunk in model.stream(items, options.raw):
            write(rows_of(chunk, model.classes, top, options.every_class))
            scores.add(chunk)
            failed += chunk.failed
            advance(len(chunk))
    if scored := scores.describe():
        print(scored, file=sys.stderr)
        seen = count_trained_on(items, Path(model.source))
        if seen is None:
            print(
                "note: the model does not know which images it was trained on; on those, scores "
                "are too high.",
                file=sys.stderr,
            )
        elif seen:
            print(
                f"warning: {seen:,} of these images trained the model, so the scores are too high.",
                file=sys.stderr,
            )
    _report_failed(failed, len(items), options.output)
    return not failed


def run_export(
    model_path: str,
    file_format: str,
    output: Path | None,
    layout: str,
    raw: bool,
    trust_code: bool,
) -> None:
    """Export a model, and print the path and how far the file is from the original."""
    model = _load(model_path, trust_code)
    path = output or Path(f"{model.summary.get('name') or 'model'}{ENDINGS[file_format]}")
    done = export_model(model, file_format, path, layout, raw, trust_code)
    print(done.path)
    print(
        f"The largest difference from the original, on {done.checked_on}: {done.difference:.1e} in "
        "probability.",
        file=sys.stderr,
    )


def run_combine(sweep: Path, trust_code: bool, method: str | None) -> None:
    """Combine a sweep's jobs, and print what was tried and what validation chose."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("tvf.inference").setLevel(logging.INFO)  # progress, on stderr
    done = combine_jobs(sweep, trust_code, method)
    word = WORDS[done.metric]
    shown = [("", f"validation {word}", "made of")]
    shown += [(each.method, f"{each.score:.3f}", each.made_of) for each in done.candidates]
    widths = [max(len(row[column]) for row in shown) for column in range(2)]
    for name, score, made_of in shown:
        print(f"{name:{widths[0]}}  {score:>{widths[1]}}  {made_of}")
    for name, reason in done.absent.items():
        print(f"{name:{widths[0]}}  {'-':>{widths[1]}}  {reason}")
    best = done.best_job_test_score
    compared = f" (the best job: {best:.3f})" if best is not None else ""
    who = "--method" if method else "Validation"
    print(f"{who} chose: {done.chosen.method}. Its test {word} is {done.test_score:.3f}{compared}.")
    if not method:
        print(
            "Its validation score is the highest of several on the same images, so it is too high."
        )
    print(f"model: {done.folder}")


def _load(path: str, trust_code: bool, device: str = "cpu", ensemble: bool = False) -> Model:
    model = load(path, trust_code, device, ensemble)
    print(f"model: {model.source}", file=sys.stderr)
    return model


def _format_of(options: PredictOptions) -> str:
    """The format that was named, or else that of the output's ending; by default CSV."""
    if options.file_format or options.output is None:
        return options.file_format or "csv"
    for name, ending in FORMATS.items():
        if options.output.suffix == ending:
            return name
    raise InputError(
        f"{printable(options.output)} does not end in {', '.join(FORMATS.values())}: say which "
        "with --format."
    )


def _report_failed(failed: Sequence[tuple[Item, str]], images: int, output: Path | None) -> None:
    """Say what could not be read; of many files a few by reason, and all in a file by `output`."""
    is_file = output is not None and output.is_file()  # /dev/stdout is none
    listed = output.with_name(f"{output.name}.failed.jsonl") if output and is_file else None
    if listed:
        listed.unlink(missing_ok=True)  # of an earlier command
    if not failed:
        return
    print(f"{len(failed):,} of {images:,} images could not be read:", file=sys.stderr)
    names = [printable(item.name) for item, _ in failed]
    told = [why.removeprefix(name).strip() for name, (_, why) in zip(names, failed, strict=True)]
    reasons = [text.removeprefix(CANNOT_BE_READ).removesuffix(f". {REPAIR}") for text in told]
    lines = [f"{name}: {reason}" for name, reason in zip(names, reasons, strict=True)]
    if listed and len(failed) > LISTED:
        rows = [{"image": item.name, "reason": reason} for item, reason in failed]
        write_json_lines(listed, rows)
        lines = [*count_by_reason([*zip(reasons, names, strict=True)])]
        lines.append(f"all of them, with reasons: {printable(listed)}")
    for line in lines:
        print(f"  {line}", file=sys.stderr)
    if any(text.endswith(REPAIR) for text in told):
        print("Repair or remove them.", file=sys.stderr)
