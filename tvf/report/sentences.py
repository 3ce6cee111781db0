"""Sentences about a comparison, the same in every format: conclusions, and what errors cover."""

from collections.abc import Sequence

from tvf.report.comparison import Comparison
from tvf.report.configuration import Training
from tvf.report.data_sentences import DATA_HEADING, describe_data
from tvf.report.notes import count_unfinished
from tvf.report.searched import describe_search_errors
from tvf.report.words import enumerate_words

VIEWS_SEED = "augment.seed"


def conclusions(comparison: Comparison) -> list[str]:
    """The paragraphs: the recommendation with its test score, and what its confirmation found."""
    first = f"{comparison.choice.text} {describe_test_score(comparison)}".rstrip()
    return [first, *([comparison.confirmation.text] if comparison.confirmation else [])]


def summarise(comparisons: Sequence[Comparison], listed: Sequence[str]) -> list[str]:
    """Lines about these comparisons, each once, however many it is true of.

    Jobs in the states `listed` are not counted: the reader finds them elsewhere.
    """
    titles: dict[str, list[str]] = {}
    for comparison in comparisons:
        text = "\n".join(_lines_about(comparison, listed))
        titles.setdefault(text, []).append(comparison.title)
    texts = (f"{'; '.join(alike)}: {text}".removeprefix(": ") for text, alike in titles.items())
    return [*dict.fromkeys(line for text in texts for line in text.splitlines())]


def _lines_about(comparison: Comparison, listed: Sequence[str]) -> list[str]:
    """What is concluded and noted; where nothing is scored yet, nothing about errors."""
    lines = conclusions(comparison)
    if any(group.val for group in comparison.configurations):
        lines.append(describe_errors(comparison))
    if comparison.data:
        data = describe_data(comparison.data, comparison.word)
        lines.append(f"{DATA_HEADING} {' '.join(data)}")
    jobs = [job for group in comparison.configurations for job in group.jobs]
    counted = count_unfinished(jobs, listed)
    return [*lines, *(f"note: {note}" for note in comparison.notes if note not in counted)]


def describe_errors(comparison: Comparison) -> str:
    """What differs between trainings, what they share, and what the errors cover."""
    configurations = comparison.configurations
    trainings = [each for group in configurations for each in group.scores]
    sentences = [_describe_divisions(trainings)]
    if any(score.errors for group in configurations for score in (group.val, group.test) if score):
        sentences.append("± is half of a 95 % interval.")
    if len(set(trainings)) > len({training.division for training in trainings}):
        sentences.append(_describe_seeds(comparison))
    groups = comparison.evidence.groups if comparison.evidence else None
    if groups is not None:
        sentences.append(
            f"Other images: how far the score may be from that on images of other groups like "
            f"these {groups}."
        )
    elif any(group.val and group.val.images is not None for group in configurations):
        sentences.append(
            "Other images: how far the score may be from that on other images like these."
        )
    else:
        sentences.append("How scores would differ on other images is not known.")
    return " ".join([*sentences, *describe_search_errors(configurations)])


def _describe_seeds(comparison: Comparison) -> str:
    varied, shared = ["the new head's initial weights", "the order of the images", "dropout"], ""
    if VIEWS_SEED in comparison.following:
        varied.append(f"the images' augmented views ({VIEWS_SEED})")
    elif VIEWS_SEED in comparison.keys:  # augment=none has no views
        shared = f"; all seeds share the images' augmented views ({VIEWS_SEED})"
    return (
        "Retraining: how far the score may be from the mean of many trainings on these images, "
        f"by the spread between seeds, which decide {enumerate_words(varied)}{shared}."
    )


def _describe_divisions(trainings: Sequence[Training]) -> str:
    divisions = {training.division for training in trainings}
    if len(divisions) < 2:
        return (
            "All trainings share one division into training, validation and test images: "
            "everything said here is about these validation images."
        )
    varied = [
        f"data.{name}"
        for name in ("split_seed", "outer_fold", "fold")
        if len({getattr(training, name) for training in trainings}) > 1
    ]
    if "data.fold" in varied:
        return (
            f"There are {len(divisions)} divisions ({', '.join(varied)}): images are scored by "
            "trainings that did not see them."
        )
    return f"There are {len(divisions)} divisions into training, validation and test images."


def describe_test_score(comparison: Comparison) -> str:
    """The test score of the chosen configuration; empty if validation chose none or it has none."""
    chosen = comparison.choice.chosen
    if chosen is None or chosen.test is None:
        return ""
    errors = f" ({chosen.test.errors})" if chosen.test.errors else ""
    about = "which played no part in any choice"
    if comparison.evidence and comparison.evidence.test_validated:
        about = "some of which validated other trainings and so took part in the choice"
    return (
        f"On the test images, {about}, {chosen} has a test {comparison.word} of "
        f"{chosen.test.mean:.3f}{errors}."
    )
