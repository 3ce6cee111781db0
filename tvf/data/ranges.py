"""The values that image files use, and whether they are too few for what is made of them.

Files of 16 bits often hold values of 10 to 14 bits. Shown with 65535 as white they are nearly
black, and of 8 bits few are left; a network then learns from noise, and nothing else says so.
"""

import numpy as np

DEEP = 65535  # the largest value of 16 bits
WINDOWED = 0  # stands for the value shown as white, if there is a window
USED = 0.5  # of the range of 16 bits: the least that the typical image should use
FEW = 0.1  # of all images: so many may use little of the range without a word
DARKEST = 32  # of 256: images of 8 bits whose brightest value is below this hold no photographs
# Of the shades in a window: more than half of a lively image differ from its brightest ones.
WINDOW_QUANTILES = (0.5, 0.95)


def describe_lost_range(ranges: np.ndarray | None) -> str | None:
    """Say which values the images have if most of the range is not used; None if it is.

    `ranges`, int [N, 3], has for each image its lowest value, its highest one, and the one that is
    shown as white: of files of 16 bits the values in the file, of others those that were read. If
    they were read through a window, the row has the WINDOW_QUANTILES of its shades, and WINDOWED.
    """
    if ranges is None or not len(ranges):
        return None
    if (ranges[:, 2] == WINDOWED).any():
        return _describe_window(ranges[ranges[:, 2] == WINDOWED])
    deep = (ranges[:, 2] != 255) | (ranges[:, 1] > 255)  # of 8 bits, 255 is always white
    return _describe_deep(ranges[deep]) or _describe_flat(ranges[~deep])


def _describe_deep(ranges: np.ndarray) -> str | None:
    if not len(ranges):
        return None
    low, high, white = int(ranges[:, 0].min()), int(ranges[:, 1].max()), int(ranges[0, 2])
    found = f"{len(ranges):,} images of 16 bits have values from {low} to {high}"
    cut, little = ranges[:, 1] > white, ranges[:, 1] - low < USED * white
    if cut.mean() > FEW:
        return (
            f"{found}, and {cut.sum():,} of them have some above data.white_point={white}, which "
            f"are cut: raise it to {high}."
        )
    if little.mean() <= FEW:
        return None
    darker = ranges[little, 1]
    if little.mean() < 1 - FEW:
        return (
            f"{found}, but {len(darker):,} of them have none above {darker.max()} of {white}: a "
            "network may learn which files are dark. Rescale all of them to one range."
        )
    typical = int(np.median(darker))
    levels = round((typical - low) / white * 255) + 1
    found += f" (most of them none above {typical})" if typical < high else ""
    left = f"{found} of {white}, so about {levels} of 256 values are left"
    point = _all_ones(high if high < DEEP * USED else typical)
    if point >= white:
        return f"{left}. Rescale them to the whole range of their bits."
    return f"{left}. data.white_point={point} shows {point} as white."


def _describe_window(ranges: np.ndarray) -> str | None:
    count = f"of {len(ranges):,} images are"
    if (flat := ranges[:, 0] == ranges[:, 1]).mean() > FEW:
        return (
            f"{flat.sum():,} {count} mostly a single shade in data.window: it holds few of their "
            "values. Choose another."
        )
    if (dark := ranges[:, 1] < DARKEST).mean() > USED:
        return (
            f"{dark.sum():,} {count} nearly black in data.window: few of their values come near "
            "its upper end. Lower it."
        )
    return None


def _describe_flat(ranges: np.ndarray) -> str | None:
    dark = ranges[:, 1] < DARKEST
    if not len(ranges) or dark.mean() <= USED:
        return None
    count = f"{len(ranges):,}" if dark.all() else f"{dark.sum():,} of {len(ranges):,}"
    low, high = int(ranges[dark, 0].min()), int(ranges[dark, 1].max())
    point = _all_ones(high)
    return (
        f"{count} images have values from {low} to {high} of 255, so they are nearly black."
        f" data.white_point={point} shows {point} as white."
    )


def _all_ones(value: int) -> int:
    """The largest value of as many bits as `value` has: 4095 for 3000."""
    return (1 << max(value, 1).bit_length()) - 1
