"""Colours and shapes of fractions: a fraction looks the same in every chart and table."""

from collections.abc import Iterable, Sequence
from typing import Any

# More than 20 apart in CIELAB for normal, deuteranopic, protanopic and tritanopic sight, with a
# contrast of at least 2.4:1 against both white and near-black.
COLOURS = {0.0: "#3caa96", 0.25: "#ad8bf2", 0.5: "#873ac6", 0.75: "#d19013", 1.0: "#b63036"}
# For other fractions, which also differ in shape.
MORE_COLOURS = ("#5c683e", "#55a5c6", "#a23985", "#b5996e", "#802bfc")
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross")
SHAPES += ("triangle-right", "triangle-left")


def colours(fractions: Iterable[float]) -> dict[float, str]:
    """Assign a colour to each fraction; the usual fractions always have the same one."""
    distinct = sorted({*fractions})
    others = [fraction for fraction in distinct if fraction not in COLOURS]
    if len(others) > len(MORE_COLOURS):
        return {fraction: _interpolate(fraction) for fraction in distinct}
    more = dict(zip(others, MORE_COLOURS, strict=False))
    return {fraction: COLOURS.get(fraction) or more[fraction] for fraction in distinct}


def _interpolate(fraction: float) -> str:
    """Mix the two nearest COLOURS, so that many fractions all have different colours."""
    low = max(known for known in COLOURS if known <= fraction)
    high = min(known for known in COLOURS if known >= fraction)
    weight = (fraction - low) / (high - low) if high > low else 0.0
    channels = zip(_channels(COLOURS[low]), _channels(COLOURS[high]), strict=True)
    return "#" + "".join(f"{round(a + weight * (b - a)):02x}" for a, b in channels)


def _channels(colour: str) -> list[int]:
    return [int(colour[start : start + 2], 16) for start in (1, 3, 5)]


def shapes(values: Sequence[Any]) -> list[str]:
    """A shape for each value, repeated if there are more values than shapes."""
    return [SHAPES[index % len(SHAPES)] for index in range(len(values))]
