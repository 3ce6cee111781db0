"""How numbers and lists are written in sentences, and how texts with numbers are sorted."""

import re
from collections.abc import Sequence

_NUMBER = re.compile(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)")


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


def numerically(text: str) -> list[tuple[str, float]]:
    """A key that sorts texts by the numbers in them: lr=1e-05, lr=0.001, lr=0.01."""
    words, numbers = _NUMBER.split(text)[::2], map(float, _NUMBER.findall(text))
    return [*zip(words, [*numbers, 0.0], strict=True)]


def enumerate_words(items: Sequence[str]) -> str:
    """A list: a, b and c."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)
