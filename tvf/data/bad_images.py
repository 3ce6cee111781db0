"""Files that cannot be read as images: one error, or one that names all of them."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from PIL import Image, UnidentifiedImageError

from tvf.data.encoded import ImageFile, content_of, name_of
from tvf.errors import InputError
from tvf.files import printable

UNKNOWN = "it is none that Pillow knows"
BANDS = (
    "; for a TIFF file of other values or bands, choose its bands with data.channels=[1], or "
    "[1,2,3], and, unless they have 8 or 16 bits, what is black and white with "
    "data.window=[low,high]"
)
CANNOT_BE_READ, REPAIR = "cannot be read as an image: ", "Repair or remove it."
NAMED = 3  # files that cannot be read for one reason, in one message
EMPTY = "the file is empty"
TRUNCATED = "it is truncated"
POINTER = "it is a git-lfs pointer, which git lfs pull replaces by the image"
WEB_PAGE = "it is a web page (HTML)"
DRAWING = "it is an SVG drawing, not pixels"
TEXT = "it is text"
HEAD = 512  # bytes, to tell what a file is that is no image


class BadImageError(InputError):
    """A file that cannot be read as an image, for this `reason`."""

    def __init__(
        self,
        file: ImageFile,
        reason: str,
        verdict: str = CANNOT_BE_READ,
        remedy: str = REPAIR,
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
        reason = _what_it_is(file) or UNKNOWN + BANDS * is_tiff
        raise BadImageError(file, reason) from error
    except Exception as error:  # Pillow raises anything for a damaged file
        # Of an OSError its reason alone: its text has the path, which is said already.
        text = (isinstance(error, OSError) and error.strerror) or str(error).strip()
        reason = TRUNCATED if "truncated" in text.lower() else text or type(error).__name__
        raise BadImageError(file, printable(reason)) from error


def _what_it_is(file: ImageFile) -> str | None:
    """What a file is that Pillow does not know, from its first bytes; None if they do not say."""
    try:
        head = content_of(file, HEAD)
    except OSError:
        return None
    if not head:
        return EMPTY
    if head.startswith(b"version https://git-lfs"):
        return POINTER
    if head.startswith(b"GIF8"):
        return None
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head")):
        return WEB_PAGE
    if text.startswith((b"<svg", b"<?xml")) and b"<svg" in text:
        return DRAWING
    try:
        decoded = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # not a character that the end cuts
            return None
        decoded = head[: error.start].decode()
    return TEXT if all(c.isprintable() or c.isspace() for c in decoded) else None


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
    faults = [(each.reason, printable(os.path.relpath(each.path, folder))) for each in bad]
    return InputError(
        f"{len(bad):,} of {len(files):,} images cannot be read, in {printable(folder)}: "
        f"{'; '.join(count_by_reason(faults))}. Repair or remove them."
    )


def count_by_reason(faults: Sequence[tuple[str, str]]) -> list[str]:
    """A line for each reason of (reason, name), most frequent first, with the first few names."""
    by_reason: dict[str, list[str]] = {}
    for reason, name in faults:
        by_reason.setdefault(reason, []).append(name)
    return [
        f"{len(names):,}: {reason} ({', '.join(names[:NAMED])}{', ...' * (len(names) > NAMED)})"
        for reason, names in sorted(by_reason.items(), key=lambda item: -len(item[1]))
    ]


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
