"""The values that image files use, and whether they are too few for what is made of them.

Files of 16 bits often hold values of 10 to 14 bits. Shown with 65535 as white they are nearly
black, and of 8 bits few are left; a network then learns from noise, and nothing else says so.
"""

import numpy as np

DEEP = 65535  # the largest value of 16 bits
USED = 0.5  # of the range of 16 bits: the least that the typical image should use
DARKEST = 32  # of 256: images of 8 bits whose brightest value is below this hold no photographs


def describe_lost_range(ranges: np.ndarray | None) -> str | None:
    """Say which values the images have if most of the range is not used; None if it is.

    `ranges`, int [N, 3], has for each image its lowest value, its highest one, and the one that is
    shown as white: of files of 16 bits the values in the file, of others those that were read.
    """
    if ranges is None or not len(ranges):
        return None
    deep = (ranges[:, 2] != 255) | (ranges[:, 1] > 255)  # of 8 bits, 255 is always white
    return _describe_deep(ranges[deep]) or _describe_flat(ranges[~deep])


def _describe_deep(ranges: np.ndarray) -> str | None:
    if not len(ranges):
        return None
    low, white = int(ranges[:, 0].min()), int(ranges[0, 2])
    high, typical = int(ranges[:, 1].max()), int(np.median(ranges[:, 1]))
    found = f"{len(ranges):,} images of 16 bits have values from {low} to {high}"
    if typical > white:
        return (
            f"{found}, and most of them have some above data.white_point={white}, which are cut: "
            f"raise it to {high}."
        )
    if typical - low >= USED * white:
        return None
    levels = round((typical - low) / white * 255) + 1
    found += f" (most of them none above {typical})" if typical < high else ""
    left = f"{found} of {white}, so about {levels} of 256 grey values are left"
    point = _all_ones(high if high < DEEP * USED else typical)
    if point >= white:
        return f"{left}. Rescale them to the whole range of their bits."
    return f"{left}. data.white_point={point} shows {point} as white."


def _describe_flat(ranges: np.ndarray) -> str | None:
    if not len(ranges) or (high := int(ranges[:, 1].max())) >= DARKEST:
        return None
    low, point = int(ranges[:, 0].min()), _all_ones(high)
    return (
        f"{len(ranges):,} images have values from {low} to {high} of 255, so they are nearly black."
        f" data.white_point={point} shows {point} as white."
    )


def _all_ones(value: int) -> int:
    """The largest value of as many bits as `value` has: 4095 for 3000."""
    return (1 << max(value, 1).bit_length()) - 1
