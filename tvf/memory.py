"""What glibc does with memory that has been freed. Values never change."""

import ctypes
import platform
from functools import cache

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD in malloc.h


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next training step, not return it to the kernel.

    Without this, steps on a CPU spend a tenth of their time on page faults.
    """
    if libc := _glibc():
        libc.mallopt(MMAP_THRESHOLD, 2**30)
        libc.mallopt(TRIM_THRESHOLD, 2**31 - 1)


def return_large_blocks() -> None:
    """Make glibc return each large block to the kernel as soon as it is freed.

    For jobs that decode very many images: what `keep_freed_memory` keeps falls into pieces between
    them, so that it would grow by some kB with each image. Page faults take 0.5 ms an image.
    """
    if libc := _glibc():
        libc.mallopt(MMAP_THRESHOLD, 2**22)


def return_freed_memory() -> None:
    """Return the memory kept by `keep_freed_memory` to the kernel.

    For the next job to have it; and after large blocks of several sizes, between which kept memory
    falls into pieces that none of the next blocks fits into, so that it would grow with each.
    """
    if libc := _glibc():
        libc.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
