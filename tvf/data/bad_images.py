"""Files that cannot be read as images: one error, or one that names all of them."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from PIL import Image, UnidentifiedImageError

from tvf.data.encoded import ImageFile, name_of
from tvf.errors import InputError
from tvf.files import printable

UNKNOWN = "it is none that Pillow knows"
BANDS = (
    "; for a TIFF file of other values or bands, choose its bands with data.channels=[1], or "
    "[1,2,3], and, unless they have 8 or 16 bits, what is black and white with "
    "data.window=[low,high]"
)
NAMED = 10  # files that cannot be read, in one message


class BadImageError(InputError):
    """A file that cannot be read as an image, for this `reason`."""

    def __init__(
        self,
        file: ImageFile,
        reason: str,
        verdict: str = "cannot be read as an image: ",
        remedy: str = "Repair or remove it.",
    ) -> None:
        super().__init__(f"{printable(name_of(file))} {verdict}{reason}. {remedy}")
        self.path, self.reason = name_of(file), reason


@contextmanager
def naming(file: ImageFile) -> Iterator[None]:
    """Raise BadImageError for whatever is raised within the context."""
    try:
        yield
    except BadImageError:
        raise
    except UnidentifiedImageError as error:
        is_tiff = name_of(file).lower().endswith((".tif", ".tiff"))
        raise BadImageError(file, UNKNOWN + BANDS * is_tiff) from error
    except Exception as error:  # Pillow raises anything for a damaged file
        reason = str(error).strip() or type(error).__name__
        raise BadImageError(file, printable(reason)) from error


def explain_bad(
    files: Sequence[ImageFile], read: Callable[[ImageFile], object], error: BadImageError
) -> InputError:
    """The error for all files that `read` cannot read, after reading all; `error` is the first."""

    def find_fault(file: ImageFile) -> BadImageError | None:
        try:
            read(file)
        except BadImageError as fault:
            return fault
        return None

    with without_pillow_limit(), ThreadPoolExecutor(torch.get_num_threads()) as pool:
        bad = [found for found in pool.map(find_fault, files) if found is not None]
    if len(bad) < 2:
        return error
    folder = os.path.commonpath([os.path.dirname(each.path) for each in bad])
    by_reason: dict[str, list[str]] = {}
    for each in bad[:NAMED]:
        name = printable(os.path.relpath(each.path, folder))
        by_reason.setdefault(each.reason, []).append(name)
    named = "; ".join(f"{', '.join(names)} ({why})" for why, names in by_reason.items())
    more = f"; and {len(bad) - NAMED:,} more" if len(bad) > NAMED else ""
    return InputError(
        f"{len(bad):,} of {len(files):,} images cannot be read, in {printable(folder)}: "
        f"{named}{more}. Repair or remove them."
    )


@contextmanager
def without_pillow_limit() -> Iterator[None]:
    """Disable Pillow's limit of an image's size, and its log: ours are instead of them."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    pillow = logging.getLogger("PIL")
    level = pillow.level
    pillow.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit
        pillow.setLevel(level)
