"""A checkpoint of the user's own: any file of weights for a backbone, however they are wrapped.

Nothing in the file is executed: it is safetensors, or tensors that torch unpickles by themselves.
"""

import pickle
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from tvf.errors import InputError
from tvf.files import printable
from tvf.models.groups import is_below
from tvf.models.weights import shorten

ENDINGS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar")
# What training scripts call the weights in a file with more in it, the likeliest first.
USUAL = ("state_dict", "model", "model_state_dict", "module", "net", "network", "backbone")
PICKLED = (
    "it holds more than tensors, which only its own code can read. Save the weights alone: "
    "torch.save(network.state_dict(), 'weights.pt')"
)
# Numbers that layers count with; they change nothing that a network computes.
COUNTERS = ("num_batches_tracked",)


@dataclass(frozen=True)
class _Match:
    """Tensors of a file that a network takes: `where` they are in it, and the prefix of names.

    `other_shapes` describes those of the right name and another shape.
    """

    where: str
    prefix: str
    tensors: Mapping[str, Tensor]
    other_shapes: Mapping[str, str]
    unexpected: tuple[str, ...]


def check_checkpoint(path: object) -> Path:
    """The file of `backbone.checkpoint`; InputError unless it is there, with a known ending."""
    given = f"backbone.checkpoint={path!r}"
    if not isinstance(path, str) or not path:
        raise InputError(f"{given} must be the path of a file of weights, or null.")
    file = Path(path).expanduser()
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise InputError(f"backbone.checkpoint={printable(path)} {what}: name a file of weights.")
    if file.suffix.lower() not in ENDINGS:
        raise InputError(
            f"backbone.checkpoint={printable(path)} must end with one of {', '.join(ENDINGS)}."
        )
    return file


def load_checkpoint(module: nn.Module, heads: tuple[str, ...], path: str) -> str:
    """Load the weights in `path` into `module`, except into its `heads`; say what was loaded.

    The file may hold the weights under a usual name (state_dict, model, ...), and their names may
    begin with anything (module., backbone., ...). A head in it is ignored. Raises InputError, with
    the tensors that are missing and those that are left over, unless all others are there.
    """
    wanted = {
        name: tensor for name, tensor in module.state_dict().items() if not is_below(name, heads)
    }
    file = check_checkpoint(path)
    matches = [_match(where, found, wanted) for where, found in _tables(_read(file), "")]
    shown = f"backbone.checkpoint={printable(path)}"
    if not matches:
        raise InputError(f"{shown} holds no table of tensors by name, as state_dict() is.")
    best = max(matches, key=lambda match: len(match.tensors))  # the first of equal ones
    missing = [n for n in wanted if n not in best.tensors and not n.endswith(COUNTERS)]
    if missing:
        raise InputError(_explain(shown, best, missing, len(wanted)))
    with torch.no_grad():
        for name, tensor in best.tensors.items():
            wanted[name].copy_(tensor)
    said = f"all {len(wanted)} tensors of the backbone are from {printable(path)}"
    if best.where:
        said += f", {best.where}"
    if best.prefix:
        said += f", where their names begin with {best.prefix}"
    others = [m.where for m in matches if m is not best and len(m.tensors) == len(best.tensors)]
    if others:
        said += f"; it also holds {shorten(others)}, which is not used"
    if best.unexpected:
        said += f"; not used: {shorten([*best.unexpected])}"
    return said


def _read(file: Path) -> Any:
    """What is in a file of weights, without executing anything; InputError if it cannot be read."""
    shown = f"backbone.checkpoint={printable(file)}"
    try:
        if file.suffix.lower() == ".safetensors":
            return safetensors.torch.load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(f"{shown}: {PICKLED} ({str(error).splitlines()[0][:120]}).") from error
    except (OSError, EOFError, SafetensorError, RuntimeError, ValueError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        if "TorchScript" in str(error):
            reason = PICKLED
        raise InputError(f"{shown} cannot be read as weights: {reason}.") from error


def _tables(found: Any, where: str) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """The tables of tensors by name in what a file holds, with where each is; usual ones first."""
    if not isinstance(found, Mapping):
        return
    tensors = {str(key): value for key, value in found.items() if isinstance(value, Tensor)}
    if tensors:
        yield where, tensors
    inside = [key for key, value in found.items() if isinstance(value, Mapping)]
    for key in sorted(inside, key=lambda k: USUAL.index(k) if k in USUAL else len(USUAL)):
        yield from _tables(found[key], f"{where}.{key}" if where else str(key))


def _match(where: str, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> _Match:
    """Match names after the prefix that most of the file's names have."""
    prefixes = Counter(
        key[: -len(name)]
        for name in wanted
        for key in found
        if key.endswith(name) and key[: -len(name)][-1:] in ("", ".")
    )
    ((prefix, _),) = prefixes.most_common(1) or [("", 0)]
    named = {name: found[prefix + name] for name in wanted if prefix + name in found}
    tensors = {name: value for name, value in named.items() if value.shape == wanted[name].shape}
    others = {
        name: f"{name} {[*value.shape]} instead of {[*wanted[name].shape]}"
        for name, value in named.items()
        if name not in tensors
    }
    unexpected = tuple(key for key in found if key.removeprefix(prefix) not in named)
    return _Match(where, prefix, tensors, others, unexpected)


def _explain(shown: str, best: _Match, missing: list[str], count: int) -> str:
    lacking = [name for name in missing if name not in best.other_shapes]
    parts = [f"Missing: {shorten(lacking)}."] * bool(lacking)
    if best.other_shapes:
        parts.append(f"Of other shapes: {shorten([*best.other_shapes.values()])}.")
    if best.unexpected:
        parts.append(f"Only in the file: {shorten([*best.unexpected])}.")
    return (
        f"{shown} does not fit: it has {count - len(missing)} of the {count} tensors of this "
        f"backbone. {' '.join(parts)} Name the backbone that the file was saved from, and its "
        "options."
    )
