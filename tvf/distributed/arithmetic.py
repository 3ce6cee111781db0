"""What a GPU's numbers and memory depend on beyond the network: switches, and its limit."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from tvf.errors import InputError

# What the messages of errors for lack of memory contain, other than torch's own kind of error.
NO_MEMORY = ("CUDA error: out of memory", "CUDA out of memory", "_STATUS_ALLOC_FAILED")


class DeviceMemoryError(InputError):
    """The device has too little memory for a job."""


def set_arithmetic(device: torch.device, *, tf32: bool, deterministic: bool) -> None:
    """Set how `device` computes, for all that this process trains. Does nothing on a CPU.

    With `tf32`, convolutions and matrix products round their float32 inputs to 10 bits of mantissa.
    With `deterministic`, operations use algorithms that give the same bits each time, or a warning
    names those that have none. cuDNN's search for the fastest algorithm stays off: its choice
    depends on timing, and so would the digits.
    """
    if device.type != "cuda":
        return
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = deterministic
    if deterministic:  # read when cuBLAS is first used
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic, warn_only=True)


@contextmanager
def memory_errors(remedies: Sequence[str]) -> Iterator[None]:
    """Raise DeviceMemoryError with the remedies if a device runs out of memory in this context."""
    try:
        yield
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0].partition(". ")[0].strip()
        advice = ", or ".join(remedies)
        raise DeviceMemoryError(
            f"the device has too little memory for this job ({reason}): {advice}."
        ) from error


def _is_out_of_memory(error: RuntimeError) -> bool:
    known = isinstance(error, torch.cuda.OutOfMemoryError)
    return known or any(text in str(error) for text in NO_MEMORY)
