"""Fingerprints: equal contents have equal names, in every process.

A fingerprint covers everything that a value consists of, down to the source files of code, so that
a result stored under the fingerprint of its inputs is valid for every job that finds it.
"""

import enum
import hashlib
import inspect
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodDescriptorType, ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, fx, nn

if TYPE_CHECKING:  # its import takes as long as torch's, and reports need none
    from lightning_fabric import Fabric

FORMAT = 1  # increase it when the meaning of stored values changes
# Packages whose code changes only with their version, which `numeric_environment` contains. Other
# code is fingerprinted by the content of its file.
VERSIONED = ("torch", "torchvision", "timm", "builtins", "_operator", "operator", "math", "numpy")
# Attributes that every module has: its mode, hooks, and the tables of its children.
MODULE_INTERNALS = frozenset(nn.Module().__dict__)


class FingerprintError(TypeError):
    """A value without a fingerprint, because its behaviour does not follow from its content."""


def fingerprint(value: Any) -> str:
    """Fingerprint plain data, arrays, tensors, modules with their weights, dataclasses, or code.

    Code includes the file that defines it, but not the files that it imports. Raises
    FingerprintError for anything else.
    """
    digest = hashlib.blake2b(digest_size=16)
    _add(value, digest.update, ())
    return digest.hexdigest()


def fingerprint_files(paths: Sequence[Path]) -> str:
    """Fingerprint the files' bytes, in this order."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        content = path.read_bytes()
        digest.update(len(content).to_bytes(8))
        digest.update(content)
    return digest.hexdigest()


def fingerprint_layers(module: nn.Module, without: Sequence[str]) -> str:
    """Fingerprint the layers of `module`, by name, except the submodules `without` and their
    children.

    Covers the code, attributes, parameters and buffers of each layer.
    """
    layers = []
    for name, layer in module.named_modules():
        if not any(name == head or name.startswith(f"{head}.") for head in without):
            state = {key: v for key, v in _state(layer).items() if key not in layer._modules}
            layers.append((name, _code(type(layer)), state))
    return fingerprint(layers)


def numeric_environment(fabric: "Fabric", parameters: Iterable[Tensor]) -> list[Any]:
    """Everything known, besides the layers, that changes the last digits of activations.

    The model of the processor, the precision, the memory format of the network's `parameters`, and
    the versions of the numeric libraries; for a GPU also its generation, the versions of CUDA and
    cuDNN, and the switches of both.
    """
    processor: Any = [processor_model(), torch.backends.cpu.get_cpu_capability()]
    if fabric.device.type == "cuda":
        processor = _gpu_environment(fabric.device)
    memory_format = [parameter.is_contiguous() for parameter in parameters]
    versions = {name: version(name) for name in ("torch", "torchvision", "timm", "numpy")}
    return [FORMAT, processor, fabric.strategy.precision.precision, memory_format, versions]


@cache
def processor_model() -> str:
    """The model of this machine's processor, as it calls itself.

    Processors of one instruction set may differ in their caches, after which libraries divide sums.
    """
    with suppress(OSError, StopIteration):  # Linux has a better name here
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.partition(":")[2].strip() for line in lines if line.startswith("model name")
        )
    return platform.processor() or platform.machine()


def _gpu_environment(device: torch.device) -> list[Any]:
    cudnn = torch.backends.cudnn
    return [
        torch.cuda.get_device_name(device),
        torch.cuda.get_device_capability(device),
        torch.version.cuda,
        cudnn.version(),
        cudnn.allow_tf32,
        torch.backends.cuda.matmul.allow_tf32,
        cudnn.deterministic,
        cudnn.benchmark,
    ]


def _add(value: Any, add: Callable[[Any], None], parents: tuple[int, ...]) -> None:
    """Add the content of `value` to a digest; `parents` are the ids of the values it is part of."""
    if id(value) in parents:
        raise FingerprintError("it contains itself")
    parents = (*parents, id(value))
    kind = type(value)
    if value is None or value is Ellipsis or kind in (bool, int, float, complex, str, bytes):
        text = repr(value)
        add(f"{kind.__name__}:{len(text)}:{text}".encode())
    elif isinstance(
        value, torch.dtype | torch.device | torch.memory_format | torch.layout | np.dtype
    ):
        add(repr(value).encode())
    elif isinstance(value, np.ndarray | np.generic):
        array = np.ascontiguousarray(value)
        _add_items("array", (str(array.dtype), list(array.shape)), add, parents)
        add(array.tobytes())
    elif isinstance(value, Tensor):
        _add_items("tensor", (str(value.dtype), list(value.shape)), add, parents)
        add(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    else:
        for name, items in _decompose(value):
            _add_items(name, items, add, parents)


def _add_items(
    kind: str, items: Sequence[Any], add: Callable[[Any], None], parents: tuple[int, ...]
) -> None:
    add(f"{kind}({len(items)}".encode())
    for item in items:
        _add(item, add, parents)
    add(b")")


def _decompose(value: Any) -> list[tuple[str, Sequence[Any]]]:
    """What a compound value consists of: pairs of a kind and its items."""
    kind = type(value)
    if isinstance(value, enum.Enum):
        return [("enum", (kind.__qualname__, value.name))]
    if isinstance(value, Mapping):
        return [("mapping", _flatten_pairs(value.items()))]
    if isinstance(value, set | frozenset):
        return [("set", sorted(map(fingerprint, value)))]
    if isinstance(value, list | tuple | torch.Size):
        return [("sequence", value)]
    if isinstance(value, slice):
        return [("slice", (value.start, value.stop, value.step))]
    if isinstance(value, partial):
        return [("partial", (value.func, value.args, value.keywords))]
    if isinstance(value, FunctionType):
        return [("code", _code(value)), ("function", _function_state(value))]
    if isinstance(value, type | BuiltinFunctionType | MethodDescriptorType | ModuleType):
        return [("code", _code(value))]
    if isinstance(value, nn.Module):
        return [("module", (*_code(kind), *_flatten_pairs(sorted(_state(value).items()))))]
    if is_dataclass(value):
        named = {field.name: getattr(value, field.name) for field in fields(value)}
        return [("dataclass", (*_code(kind), named | getattr(value, "__dict__", {})))]
    if callable(value):
        module = getattr(value, "__module__", None) or ""
        if hasattr(value, "__qualname__") and _is_versioned(module):
            return [("builtin", (value.__module__, value.__qualname__))]
        if _is_versioned(kind.__module__):  # such as torch's overload packets
            return [("callable", (kind.__qualname__, str(value)))]
    raise FingerprintError(
        f"the behaviour of a {kind.__module__}.{kind.__qualname__} does not follow from its content"
    )


def _flatten_pairs(pairs: Iterable[tuple[Any, Any]]) -> list[Any]:
    return [item for pair in pairs for item in pair]


def _function_state(function: FunctionType) -> Sequence[Any]:
    """What defines a function besides its file: its position there, its defaults and closure."""
    try:
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
    except ValueError as error:
        raise FingerprintError(
            f"{function.__qualname__} refers to a name that has no value yet"
        ) from error
    positions = list(function.__code__.co_positions())
    return positions, function.__defaults__, function.__kwdefaults__, cells


def _code(value: Any) -> tuple[str, str, list[str]]:
    """The module and name of code, and a fingerprint of its file unless its package is versioned.

    For a class, the files of its base classes are included.
    """
    module = getattr(value, "__module__", None) or getattr(value, "__name__", "")
    name = getattr(value, "__qualname__", "")
    if isinstance(value, BuiltinFunctionType | MethodDescriptorType):
        return module, name, []
    definitions = inspect.getmro(value) if isinstance(value, type) else [value]
    try:
        files = {
            inspect.getfile(definition)
            for definition in definitions
            if not _is_versioned(
                getattr(definition, "__module__", None) or getattr(definition, "__name__", "")
            )
        }
        return module, name, [fingerprint_files([Path(file)]) for file in sorted(files)]
    except (TypeError, OSError) as error:
        raise FingerprintError(
            f"the code of {module}.{name} cannot be read: move it into a file"
        ) from error


def _is_versioned(module: str) -> bool:
    return module.split(".")[0] in VERSIONED


def _state(module: nn.Module) -> dict[str, Any]:
    """What a module computes with: attributes, weights and children, not its mode or freezing."""
    if any(value for name, value in module.__dict__.items() if name.endswith("_hooks") and value):
        raise FingerprintError(f"{type(module).__qualname__} has hooks")
    if isinstance(module, fx.GraphModule):  # computes what its code says, with these functions
        functions = [n.target for n in module.graph.nodes if n.op == "call_function"]
        own: dict[str, Any] = {"code": module.code, "functions": functions}
    else:
        own = {key: v for key, v in module.__dict__.items() if key not in MODULE_INTERNALS}
    return own | module._parameters | module._buffers | module._modules
