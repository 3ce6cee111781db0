"""Position embeddings of weights that were trained on images of another size, resampled.

As in Dosovitskiy et al. 2021 (arXiv 2010.11929, section 3.2), by timm's own functions.
"""

import math
import warnings
from collections.abc import Sequence

from torch import Tensor, nn

ABSOLUTE = ("pos_embed", "pos_embedding")  # timm's and torchvision's name of the parameter
RELATIVE = "relative_position_bias_table"


def resample_positions(module: nn.Module, name: str, found: Tensor, own: Tensor) -> Tensor | None:
    """`found` for the places that `module` has for its tensor `name`, `own`; None if it cannot be.

    Absolute embeddings [1, tokens, channels] of a square of patches, and tables [offsets, heads] of
    a square window; others, such as those of another width, are left to the error.
    """
    last = name.rpartition(".")[2]
    if not found.is_floating_point() or found.is_meta or found.dim() != own.dim():
        return None
    if last in ABSOLUTE and own.dim() == 3 and found.shape[::2] == own.shape[::2]:
        return _resample_absolute(module, found, own)
    if last == RELATIVE and own.dim() == 2 and found.shape[1] == own.shape[1]:
        from timm.layers.pos_embed_rel import resize_rel_pos_bias_table

        window = getattr(module.get_submodule(name.rpartition(".")[0]), "window_size", None)
        if window is None or math.isqrt(len(found)) ** 2 != len(found):
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own code's speed
            return resize_rel_pos_bias_table(found, tuple(window), tuple(own.shape))
    return None


def describe_resampling(module: nn.Module, name: str, found: Tensor, own: Tensor) -> str:
    """From which grid to which a tensor is resampled, such as 14×14 to 16×16."""
    if name.endswith(RELATIVE):
        before, after = ((math.isqrt(len(each)) + 1) // 2 for each in (found, own))
        return f"windows of {before}×{before} to {after}×{after}"
    grid = _grid(module)
    assert grid is not None
    side = math.isqrt(found.shape[1] - own.shape[1] + math.prod(grid))
    return f"{side}×{side} to {grid[0]}×{grid[1]}"


def _resample_absolute(module: nn.Module, found: Tensor, own: Tensor) -> Tensor | None:
    from timm.layers.pos_embed import resample_abs_pos_embed

    grid = _grid(module)
    if grid is None:
        return None
    others = own.shape[1] - math.prod(grid)  # class and register tokens, which come first
    patches = found.shape[1] - others
    if others < 0 or patches < 1 or math.isqrt(patches) ** 2 != patches:
        return None
    return resample_abs_pos_embed(found, [*grid], num_prefix_tokens=others)


def _grid(module: nn.Module) -> Sequence[int] | None:
    """How many patches, down and across, a transformer of timm or torchvision has."""
    grid = getattr(getattr(module, "patch_embed", None), "grid_size", None)
    if grid is not None:
        return grid
    size, patch = (getattr(module, name, None) for name in ("image_size", "patch_size"))
    if not isinstance(size, int) or not isinstance(patch, int):
        return None
    return (size // patch, size // patch)
