"""Advice in words and tables for a terminal, and as numbers for scripts."""

from collections.abc import Sequence
from dataclasses import asdict
from math import isfinite
from typing import Any

from tvf.advise.advice import Advice
from tvf.advise.probes import NEIGHBOURS
from tvf.advise.trials import RUN_ERROR
from tvf.files import finite
from tvf.metrics import WORDS

INTERVAL = 1.96  # standard errors in half of a 95 % interval
ERRORS = (
    "± is half of a 95 % interval for other images (or groups of them), by a bootstrap of the "
    "validation images."
)


def tabulate_advice(advice: Advice, command: str) -> dict[str, Any]:
    """All numbers, for JSON; `command` is the one that would settle it."""
    total = sum(advice.seconds.values())
    return {
        **finite(asdict(advice)),
        "promising": advice.promising,
        "total_seconds": total,
        "command": command,
    }


def describe_advice(advice: Advice, command: str) -> str:
    """The evidence, signal by signal with its cost, the ranked fractions, and what settles it."""
    return "\n\n".join(
        [
            _describe_images(advice),
            *_describe_depths(advice),
            *_describe_gradients(advice),
            *_describe_fractions(advice),
            *_describe_probe(advice),
            *advice.notes,
            f"To settle it:\n\n  {command}",
        ]
    )


def _describe_images(advice: Advice) -> str:
    splits = advice.splits
    judged = "" if splits["judged"] == splits["val"] else f" (of {splits['val']:,})"
    return (
        f"Judged by {WORDS[advice.metric]} on {splits['judged']:,} validation images{judged} of "
        f"one split; the test images take no part. {_seconds(sum(advice.seconds.values()))} in "
        f"all: {advice.forward:,} images forward, {advice.trained:,} forward and backward, and "
        f"{_seconds(advice.seconds['setup'])} to read images and set up networks.\n"
        f"Baseline: always predicting the largest class of these images has "
        f"{WORDS[advice.metric]} {advice.baseline:.3f}."
    )


def _describe_depths(advice: Advice) -> list[str]:
    rows = [
        (
            each.name,
            f"{each.width:,}",
            f"{each.neighbours:.3f}",
            f"{each.probe:.3f}",
            _half_interval(each.error),
        )
        for each in advice.depths
    ]
    if advice.all_depths is not None:
        width = sum(each.width for each in advice.depths)
        rows.append(("all of them", f"{width:,}", "", f"{advice.all_depths:.3f}", ""))
    if not rows:
        return ["1. What the frozen network knows: no group's output could be read."]
    seconds = {key: advice.seconds[key] for key in ("pass", "neighbours", "probe", "all depths")}
    costs = ", ".join(f"{key} {_seconds(value)}" for key, value in seconds.items())
    table = _table(("output of", "width", f"{NEIGHBOURS} neighbours", "linear probe", "±"), rows)
    return [
        f"1. What the frozen network knows, by depth ({costs})",
        table,
        _sum_up_depths(advice),
    ]


def _sum_up_depths(advice: Advice) -> str:
    last, best = advice.depths[-1], max(advice.depths, key=lambda each: each.probe)
    if _differs(best.probe - last.probe, best.error_to_end, advice.margin):
        said = (
            f"The probe at {best.name} beats that at the end ({best.probe:.3f} against "
            f"{last.probe:.3f}): the deepest groups are made for other images, a sign that "
            "training them pays."
        )
    else:
        error = f" ({_half_interval(best.error_to_end)} for {best.name})" if best != last else ""
        said = (
            f"No depth beats the end ({last.probe:.3f}) by more than the margin, or the error of "
            f"the difference{error}: as far as this shows, the deepest features suit these images."
        )
    if advice.all_depths is not None and _differs(
        advice.all_depths - best.probe, advice.all_depths_error or 0.0, advice.margin
    ):
        said += f" All depths together know more ({advice.all_depths:.3f}) than any one alone."
    return f"{said} {ERRORS}"


def _half_interval(error: float) -> str:
    return f"±{INTERVAL * error:.3f}" if isfinite(error) else "unknown"


def _differs(difference: float, error: float, margin: float) -> bool:
    """Whether a difference matters, and is more than other images might make of none.

    Not if its error is not known.
    """
    return difference > margin and difference > INTERVAL * error


def _describe_gradients(advice: Advice) -> list[str]:
    largest = max(advice.gradients.values(), default=0.0)
    if not largest:
        return []
    rows = [
        (name, f"{value:.2e}", f"{value / largest:.2f}") for name, value in advice.gradients.items()
    ]
    name = max(advice.gradients, key=lambda each: advice.gradients[each])
    return [
        f"2. Where the labels pull ({_seconds(advice.seconds['gradients'])})",
        _table(("group", "gradient / weights", "of the largest"), rows),
        f"The labels would change {name} most, relative to its weights.",
    ]


def _describe_fractions(advice: Advice) -> list[str]:
    rows = [
        (
            f"{each.fraction:g}",
            str(len(each.groups)),
            f"{each.score:.3f}",
            _half_interval(each.error),
            _seconds(each.seconds),
            f"{each.probability:.0%}",
        )
        for each in advice.fractions
    ]
    heads = ("fraction", "groups", WORDS[advice.metric], "±", "cost", "within the margin")
    first, *others = advice.fractions
    near = [
        f"{each.fraction:g}"
        for each in others
        if not _differs(first.score - each.score, each.error_to_first, advice.margin)
    ]
    said = f"After these runs {first.fraction:g} is ahead."
    if near:
        *most, last = near
        listed = f"{', '.join(most)} and {last} are" if most else f"{last} is"
        said = (
            f"After these runs {first.fraction:g} is ahead; {listed} within the margin of it, or "
            "the error of the difference."
        )
    run = "A short run of each fraction, the start of an ordinary job,"
    if advice.splits["run"] >= advice.splits["job"]:
        run = "A run of each fraction, as long as a whole job,"
    return [
        f"3. {run} on the same "
        f"{advice.splits['run']:,} training images, once ({_seconds(advice.seconds['runs'])})",
        _table(heads, rows),
        f"{said} The last column is the probability that the fraction, properly trained, is at "
        f"most {advice.margin:g} below the best of them: from the differences over validation "
        f"images, with a standard error of {RUN_ERROR:g} added for each run. That is what a first "
        "epoch was off by on other data, so it says what to compare first, and decides nothing.",
    ]


def _describe_probe(advice: Advice) -> list[str]:
    if not advice.probe_leads:
        return []
    return [
        f"The probe of all depths has the highest score here ({advice.all_depths:.3f}). It is what "
        "model=probe trains, with the network frozen: compare that too."
    ]


def _seconds(value: float) -> str:
    return f"{value:.1f} s"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with the first column to the left and all others to the right."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return "  ".join(
            ["  " + first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        )

    return "\n".join([line(heads), *map(line, rows)])
