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
from lightning_fabric import Fabric
from torch import Tensor, nn

FORMAT = 1  # raise it when what is kept under a key changes its meaning
# Code that changes only with its package's version, which `circumstances` in a key cover. Of any other the file counts.
KNOWN = ("torch", "torchvision", "timm", "builtins", "_operator", "operator", "math", "numpy")


PLUMBING = frozenset(
    nn.Module().__dict__
)  # what every module has: mode, hooks, and the tables of its parts


class FingerprintError(TypeError):
    """Something whose content cannot be told: no key can promise that it is the same next time."""


def fingerprint(value: Any) -> str:
    """A digest of `value`: plain data, arrays, tensors, modules with their weights, dataclasses, code.

    Code counts by the file that it stands in; what it imports from other files does not. Raises Unkeyable for anything
    else.
    """
    digest = hashlib.blake2b(digest_size=16)
    _add(value, digest.update, ())
    return digest.hexdigest()


def fingerprint_files(paths: Sequence[Path]) -> str:
    """A digest of the files' bytes, in this order."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        content = path.read_bytes()
        digest.update(len(content).to_bytes(8))
        digest.update(content)
    return digest.hexdigest()


def numeric_environment(fabric: Fabric, model: nn.Module) -> list[Any]:
    """What the last digits of a network's values depend on besides its layers, as far as it is known.

    The processor, precision, memory format, and the versions of those who compute.
    """
    processor = torch.backends.cpu.get_cpu_capability()
    if fabric.device.type == "cuda":
        processor = torch.cuda.get_device_name(fabric.device)
    memory_format = [parameter.is_contiguous() for parameter in model.parameters()]
    versions = {name: version(name) for name in ("torch", "torchvision", "timm", "numpy")}
    return [FORMAT, processor, fabric.strategy.precision.precision, memory_format, versions]


def _add(value: Any, add: Callable[[Any], None], above: tuple[int, ...]) -> None:
    if id(value) in above:
        raise FingerprintError("it contains itself")
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
    elif isinstance(
        value, (torch.dtype, torch.device, torch.memory_format, torch.layout, np.dtype)
    ):
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
        parts("set", *sorted(map(fingerprint, value)))
    elif isinstance(value, (list, tuple, torch.Size)):
        parts("sequence", *value)
    elif isinstance(value, slice):
        parts("slice", value.start, value.stop, value.step)
    elif isinstance(value, partial):
        parts("partial", value.func, value.args, value.keywords)
    elif isinstance(
        value, type | FunctionType | BuiltinFunctionType | MethodDescriptorType | ModuleType
    ):
        parts("code", *_code(value))
        if isinstance(value, FunctionType):
            try:
                cells = [cell.cell_contents for cell in value.__closure__ or ()]
            except ValueError as error:
                raise FingerprintError(
                    f"{value.__qualname__} refers to a name that has no value yet"
                ) from error
            parts(
                "function",
                list(value.__code__.co_positions()),
                value.__defaults__,
                value.__kwdefaults__,
                cells,
            )
    elif isinstance(value, nn.Module):
        parts(
            "module",
            *_code(kind),
            *(part for item in sorted(_state(value).items()) for part in item),
        )
    elif is_dataclass(value):
        named = {field.name: getattr(value, field.name) for field in fields(value)}
        parts("dataclass", *_code(kind), named | getattr(value, "__dict__", {}))
    elif (
        callable(value)
        and hasattr(value, "__qualname__")
        and _is_known(getattr(value, "__module__", None) or "")
    ):
        parts("builtin", value.__module__, value.__qualname__)
    elif callable(value) and _is_known(kind.__module__):  # torch's overload packets and the like
        parts("callable", kind.__qualname__, str(value))
    else:
        raise FingerprintError(
            f"what a {kind.__module__}.{kind.__qualname__} does cannot be told from its content"
        )


def _code(value: Any) -> tuple[str, str, list[str]]:
    """Where code lives and, unless a version tells, what is in its file; of a class also in those of its bases."""
    module = getattr(value, "__module__", None) or getattr(value, "__name__", "")
    name = getattr(value, "__qualname__", "")
    if isinstance(value, (BuiltinFunctionType, MethodDescriptorType)):
        return module, name, []
    try:
        files = {
            inspect.getfile(each)
            for each in (inspect.getmro(value) if isinstance(value, type) else [value])
            if not _is_known(getattr(each, "__module__", None) or getattr(each, "__name__", ""))
        }
        return module, name, [fingerprint_files([Path(file)]) for file in sorted(files)]
    except (TypeError, OSError) as error:
        raise FingerprintError(
            f"the code of {module}.{name} cannot be read: put it into a file"
        ) from error


def _is_known(module: str) -> bool:
    return module.split(".")[0] in KNOWN


def fingerprint_layers(module: nn.Module, without: str) -> str:
    """A digest of all layers of `module`, by name, and what they compute with, but for those in the part `without`."""
    layers = [
        (
            name,
            _code(type(layer)),
            {key: value for key, value in _state(layer).items() if key not in layer._modules},
        )
        for name, layer in module.named_modules()
        if name != without and not name.startswith(f"{without}.")
    ]
    return fingerprint(layers)


def _state(module: nn.Module) -> dict[str, Any]:
    """What a module computes with: its attributes, weights and children, but not its mode or what is frozen."""
    if any(value for name, value in module.__dict__.items() if name.endswith("_hooks") and value):
        raise FingerprintError(f"{type(module).__qualname__} has hooks")
    own = {name: value for name, value in module.__dict__.items() if name not in PLUMBING}
    return own | module._parameters | module._buffers | module._modules
