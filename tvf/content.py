"""Content keys: a digest of all that a value is made of, so that equal things have equal names in every process."""

import enum
import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodDescriptorType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

FORMAT = 1  # raise it when what is kept under a key changes its meaning
# Code that changes only with its package's version, which `versions` in a key covers. Of any other the file counts.
KNOWN = ("torch", "torchvision", "timm", "builtins", "_operator", "operator", "math", "numpy", "einops")


PLUMBING = frozenset(nn.Module().__dict__)  # what every module has: mode, hooks, and the tables of its parts


class Unkeyable(TypeError):
    """Something whose content cannot be told: no key can promise that it is the same next time."""


def describe(value: Any) -> str:
    """A digest of `value`: plain data, arrays, tensors, modules with their weights, dataclasses, code by its file.

    Raises Unkeyable for anything else.
    """
    digest = hashlib.blake2b(digest_size=16)
    _add(value, digest.update, ())
    return digest.hexdigest()


def describe_files(paths: Sequence[Path]) -> str:
    """A digest of the files' bytes, in this order."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        content = path.read_bytes()
        digest.update(len(content).to_bytes(8))
        digest.update(content)
    return digest.hexdigest()


def circumstances(device: torch.device) -> list[str]:
    """What the last digits of a network's values depend on besides its graph: the processor and the versions."""
    processor = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return [processor, f"format {FORMAT}", *(f"{name} {version(name)}" for name in ("torch", "torchvision", "timm"))]


def _add(value: Any, add: Callable[[Any], None], above: tuple[int, ...]) -> None:
    if id(value) in above:
        raise Unkeyable("it contains itself")
    above = (*above, id(value))

    def parts(kind: str, *items: Any) -> None:
        add(f"{kind}({len(items)}".encode())
        for item in items:
            _add(item, add, above)
        add(b")")

    kind = type(value)
    if value is None or value is Ellipsis or kind in (bool, int, float, complex, str, bytes):
        text = repr(value)
        add(f"{kind.__name__}:{len(text)}:{text}".encode())
    elif isinstance(value, (torch.dtype, torch.device, torch.memory_format, torch.layout, np.dtype)):
        add(repr(value).encode())
    elif isinstance(value, enum.Enum):
        parts("enum", kind.__qualname__, value.name)
    elif isinstance(value, (np.ndarray, np.generic)):
        array = np.ascontiguousarray(value)
        parts("array", str(array.dtype), list(array.shape))
        add(array.tobytes())
    elif isinstance(value, Tensor):
        parts("tensor", str(value.dtype), list(value.shape))
        add(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, Mapping):
        parts("mapping", *(part for item in value.items() for part in item))
    elif isinstance(value, (set, frozenset)):
        parts("set", *sorted(map(describe, value)))
    elif isinstance(value, (list, tuple, torch.Size)):
        parts("sequence", *value)
    elif isinstance(value, slice):
        parts("slice", value.start, value.stop, value.step)
    elif isinstance(value, partial):
        parts("partial", value.func, value.args, value.keywords)
    elif isinstance(value, type | FunctionType | BuiltinFunctionType | MethodDescriptorType | ModuleType):
        parts("code", *_code(value))
    elif isinstance(value, nn.Module):
        parts("module", *_code(kind), *(part for item in sorted(_state(value).items()) for part in item))
    elif is_dataclass(value):
        parts("dataclass", *_code(kind), *((field.name, getattr(value, field.name)) for field in fields(value)))
    elif callable(value) and hasattr(value, "__qualname__") and getattr(value, "__module__", "").startswith(KNOWN):
        parts("builtin", value.__module__, value.__qualname__)
    elif callable(value) and kind.__module__.startswith(KNOWN):  # torch's overload packets and the like
        parts("callable", kind.__qualname__, str(value))
    else:
        raise Unkeyable(f"a {kind.__module__}.{kind.__qualname__} has no content key")


def _code(value: Any) -> tuple[str, str, str]:
    """Where code lives and, unless a version tells, what is in its file."""
    module = getattr(value, "__module__", None) or getattr(value, "__name__", "")
    name = getattr(value, "__qualname__", "")
    if module.split(".")[0] in KNOWN or isinstance(value, (BuiltinFunctionType, MethodDescriptorType)):
        return module, name, ""
    try:
        return module, name, describe_files([Path(inspect.getfile(value))])
    except (TypeError, OSError) as error:
        raise Unkeyable(f"the code of {module}.{name} cannot be read") from error


def _state(module: nn.Module) -> dict[str, Any]:
    """What a module computes with: its attributes, weights and children, but not its mode or what is frozen."""
    if any(value for name, value in module.__dict__.items() if name.endswith("_hooks") and value):
        raise Unkeyable(f"{type(module).__qualname__} has hooks")
    own = {name: value for name, value in module.__dict__.items() if name not in PLUMBING}
    return own | module._parameters | module._buffers | module._modules
