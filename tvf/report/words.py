"""How numbers and lists are written in sentences."""

from collections.abc import Sequence


def percent(probability: float) -> str:
    """A probability: 4 %."""
    if probability < 0.005:
        return "below 1 %"
    if probability > 0.995:
        return "above 99 %"
    return f"{probability:.0%}".replace("%", " %")


def signed(value: float) -> str:
    """A difference of scores: +0.010."""
    text = f"{value:+.3f}"
    return "0.000" if float(text) == 0 else text


def enumerate_words(items: Sequence[str]) -> str:
    """A list: a, b and c."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)
