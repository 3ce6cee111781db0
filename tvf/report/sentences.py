"""Sentences about a comparison: what its intervals cover, and the test score of its choice."""

import math
from collections.abc import Sequence
from statistics import fmean

from tvf.report.comparison import Comparison

VIEWS_SEED = "augment.seed"
# Parts that vary with the seed only if their key follows it; otherwise all seeds share them.
SEED_KEYS = {
    "data.split_seed": "the division into training, validation and test images",
    VIEWS_SEED: "their augmented views",
}


def about_seeds(comparison: Comparison) -> str:
    """What differs between seeds, what they share, and therefore what the intervals cover."""
    varied, shared = ["the new head's initial weights", "the order of the images", "dropout"], []
    for key, what in SEED_KEYS.items():
        if key in comparison.keys:  # augment=none has no views
            (varied if key in comparison.following else shared).append(f"{what} ({key})")
    sentences = [f"A seed decides {_enumerate(varied)}."]
    if shared:
        sentences.append(f"All seeds share {_enumerate(shared)}.")
    if VIEWS_SEED in comparison.keys - comparison.following:
        sentences.append("Set augment.seed=${seed} to vary the views too.")
    images = _count_validation_images(comparison)
    if images and "data.split_seed" not in comparison.following:
        sentences.append(_about_other_images(comparison, images))
    return " ".join(sentences)


def _count_validation_images(comparison: Comparison) -> int:
    matrices = (
        job["summary"].get("val_confusion")
        for group in comparison.configurations
        for job in group.done
    )
    return next((sum(map(sum, matrix)) for matrix in matrices if matrix), 0)


def _about_other_images(comparison: Comparison, images: int) -> str:
    text = f"The intervals do not cover how scores would differ on images other than these {images}"
    if comparison.metric == "accuracy":
        mean = fmean(group.val.mean for group in comparison.configurations if group.val)
        error = math.sqrt(mean * (1 - mean) / images)
        text += f" (about ±{error:.3f}: one standard error of an accuracy over {images} images)"
    return f"{text}."


def describe_test_score(comparison: Comparison) -> str:
    """The test score of the chosen configuration.

    Empty if validation chose none, or if the test images were used for validation.
    """
    chosen = comparison.choice.chosen
    if chosen is None or chosen.test is None:
        return ""
    if chosen.done[0]["config"]["data"].get("validate_on") == "test":
        return ""
    test, interval = chosen.test, ""
    if test.low is not None and test.high is not None:
        interval = f" (95 % interval {test.low:.3f} to {test.high:.3f}, {test.n} seeds)"
    return (
        f"On the test images, which played no part in any choice, {chosen} has a test "
        f"{comparison.word} of {test.mean:.3f}{interval}."
    )


def _enumerate(items: Sequence[str]) -> str:
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)
