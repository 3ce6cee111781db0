"""A checkpoint of the user's own: any file of weights for a backbone, however they are wrapped.

Nothing in the file is executed: it is safetensors, or tensors that torch unpickles by themselves.
"""

import pickle
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from tvf.errors import InputError
from tvf.files import printable
from tvf.models.groups import is_below
from tvf.models.positions import describe_resampling, resample_positions
from tvf.models.weights import shorten

ENDINGS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar")
# What training scripts call the weights in a file with more in it, the likeliest first.
USUAL = ("state_dict", "model", "model_state_dict", "module", "net", "network", "backbone")
NOT_FINITE = "with NaN or infinite values"
PREFIXES = 3  # that are tried for a table: a file may hold a student and a teacher
# Numbers that layers count with; they change nothing that a network computes.
COUNTERS = ("num_batches_tracked",)
# Tables that earlier versions of networks saved, and that follow from their shapes.
DERIVED = ("attn_mask", "relative_coords_table", "relative_position_index")


@dataclass(frozen=True)
class _Match:
    """Tensors of a file that a network takes: `where` they are in it, and the prefix of names.

    `unfit` describes those of the right name that cannot be taken, `resampled` those that were for
    images of another size.
    """

    where: str
    prefix: str
    tensors: Mapping[str, Tensor]
    unfit: Mapping[str, str]
    unexpected: tuple[str, ...]
    resampled: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """Where its tensors are in the file, in words; empty if they are the whole of it."""
        names = f"names that begin with {self.prefix}" if self.prefix else ""
        return ", ".join(part for part in (self.where, names) if part)


def check_checkpoint(path: object) -> Path:
    """The file of `backbone.checkpoint`; InputError unless it is there, with a known ending."""
    given = f"backbone.checkpoint={path!r}"
    if not isinstance(path, str) or not path:
        raise InputError(f"{given} must be the path of a file of weights, or null.")
    file = Path(path).expanduser()
    if file.is_dir():
        raise InputError(
            f"backbone.checkpoint={printable(path)} is a folder: name a file of weights. A job's "
            "folder goes to model.init_from."
        )
    if not file.is_file():
        raise InputError(
            f"backbone.checkpoint={printable(path)} does not exist: name a file of weights."
        )
    if file.suffix.lower() not in ENDINGS:
        raise InputError(
            f"backbone.checkpoint={printable(path)} must end with one of {', '.join(ENDINGS)}."
        )
    return file


def load_checkpoint(module: nn.Module, heads: tuple[str, ...], path: str) -> str:
    """Load the weights in `path` into `module`, except into its `heads`; say what was loaded.

    The file may hold the weights under a usual name (state_dict, model, ...), and their names may
    begin with anything (module., backbone., ...). A head in it is ignored; position embeddings for
    images of another size are resampled, where they are a square's. Raises InputError, with
    the tensors that are missing and those that are left over, unless all others are there, and if
    the file has further layers inside the modules of the backbone: then it is of a larger network.
    """
    wanted = {
        name: tensor for name, tensor in module.state_dict().items() if not is_below(name, heads)
    }
    shown = f"backbone.checkpoint={printable(path)}"
    tables = _tables(_read(check_checkpoint(path), shown), "", set())
    matches = [match for where, found in tables for match in _match(where, found, wanted, module)]
    if not matches:
        raise InputError(f"{shown} holds no table of tensors by name, as state_dict() is.")
    best = max(matches, key=lambda match: len(match.tensors))  # the first of equal ones
    missing = [n for n in wanted if n not in best.tensors and not n.endswith(COUNTERS)]
    further = _further_layers(best, wanted, heads)
    if missing or further:
        raise InputError(_explain(shown, best, missing, further, len(wanted)))
    with torch.no_grad():
        for name, tensor in best.tensors.items():
            wanted[name].copy_(tensor)
    said = f"all {len(wanted)} tensors of the backbone are from {printable(path)}"
    said += f" ({best.place})" if best.place else ""
    if best.resampled:
        said += f"; position embeddings resampled from {shorten([*best.resampled])}"
    others = [m.place for m in matches if m is not best and len(m.tensors) == len(best.tensors)]
    if others:
        said += f"; not used, but as fitting: {'; '.join(others)}: to use it, save it alone"
    elif best.unexpected:
        said += f"; not used: {shorten([*best.unexpected])}"
    return said


def _read(file: Path, shown: str) -> Any:
    """What is in a file of weights, without executing anything; InputError if it cannot be read."""
    try:
        if file.suffix.lower() == ".safetensors":
            return safetensors.torch.load_file(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of TorchScript, which is refused
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        reason = f"it is damaged, or no file of weights ({type(error).__name__}): copy it again"
        if isinstance(error, pickle.UnpicklingError) or "TorchScript" in str(error):
            reason = (
                "it is damaged, or holds more than tensors, which only its own code can read. Save "
                "the weights alone: torch.save(network.state_dict(), 'weights.pt')"
            )
        raise InputError(f"{shown} cannot be read as weights: {reason}.") from error


def _tables(found: Any, where: str, seen: set[int]) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """The tables of tensors by name in what a file holds, with where each is; usual ones first."""
    if not isinstance(found, Mapping) or id(found) in seen:
        return
    seen.add(id(found))
    tensors = {str(key): value for key, value in found.items() if isinstance(value, Tensor)}
    if tensors:
        yield where, tensors
    inside = [key for key, value in found.items() if isinstance(value, Mapping)]
    for key in sorted(inside, key=lambda k: USUAL.index(k) if k in USUAL else len(USUAL)):
        yield from _tables(found[key], f"{where}.{key}" if where else str(key), seen)


def _match(
    where: str, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], module: nn.Module
) -> Iterator[_Match]:
    """Match names after each of the prefixes that most of the table's names have."""
    prefixes = Counter(
        key[: -len(name)]
        for name in wanted
        for key in found
        if key.endswith(name) and key[: -len(name)][-1:] in ("", ".")
    )
    for prefix, _ in prefixes.most_common(PREFIXES) or [("", 0)]:
        named = {name: found[prefix + name] for name in wanted if prefix + name in found}
        resampled: dict[str, str] = {}
        for name, tensor in [*named.items()]:
            own = wanted[name]
            if tensor.shape == own.shape:
                continue
            new = resample_positions(module, name, tensor, own)
            if new is not None:
                named[name] = new
                resampled[name] = describe_resampling(module, name, tensor, own)
        unfit = {name: fault for name, t in named.items() if (fault := _fault(t, wanted[name]))}
        taken = {name: tensor for name, tensor in named.items() if name not in unfit}
        unexpected = tuple(key for key in found if key.removeprefix(prefix) not in named)
        described = {name: f"{name} {fault}" for name, fault in unfit.items()}
        grids = tuple(dict.fromkeys(resampled.values()))
        yield _Match(where, prefix, taken, described, unexpected, grids)


def _fault(tensor: Tensor, own: Tensor) -> str | None:
    """Why a tensor cannot be taken for `own`; None if it can."""
    if tensor.shape != own.shape:
        return f"{[*tensor.shape]} instead of {[*own.shape]}"
    if tensor.is_meta or tensor.layout != torch.strided:
        return "without plain values"
    if tensor.is_floating_point() != own.is_floating_point():
        return f"of {str(tensor.dtype).removeprefix('torch.')}"
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        return NOT_FINITE
    return None


def _further_layers(best: _Match, wanted: Mapping[str, Tensor], heads: Sequence[str]) -> list[str]:
    """The layers that the file has inside modules of this backbone, which has not got them."""
    tops = {name.partition(".")[0] for name in wanted if "." in name}
    names = [key[len(best.prefix) :] for key in best.unexpected if key.startswith(best.prefix)]
    return [
        name
        for name in names
        if name.partition(".")[0] in tops
        and name.count(".") > 1
        and not is_below(name, heads)
        and not is_below(name, {head.rpartition(".")[0] for head in heads} - {""})
        and not name.endswith((*COUNTERS, *DERIVED))
    ]


def _explain(
    shown: str, best: _Match, missing: Sequence[str], further: Sequence[str], count: int
) -> str:
    """The error for a file that does not fit."""
    lacking = [name for name in missing if name not in best.unfit]
    parts = [f"Missing: {shorten(lacking)}."] * bool(lacking)
    if best.unfit:
        parts.append(f"Not as they must be: {shorten([*best.unfit.values()])}.")
    if further:
        parts.append(f"It has further layers: {shorten([*further])}.")
    elif best.unexpected:
        parts.append(f"Only in the file: {shorten([*best.unexpected])}.")
    remedy = (
        "Name the backbone that the file was saved from, and its options; all of it but the head "
        "must be in the file."
    )
    if best.unfit and all(fault.endswith(NOT_FINITE) for fault in best.unfit.values()):
        remedy = "Training had failed when it was saved: name an earlier file."
    if any("pos_embed" in name for name in best.unfit):
        remedy = (
            "Position embeddings are for images of one size: set data.image_size to that of the "
            "checkpoint, and the network's own size to the same one (timm: "
            "+backbone.options.img_size=..., unless it is its usual size)."
        )
    return (
        f"{shown} does not fit: it has {count - len(missing)} of the {count} tensors of this "
        f"backbone. {' '.join(parts)} {remedy}"
    )
