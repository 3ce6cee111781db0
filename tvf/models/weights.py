"""A model's weights as safetensors: saved, loaded, and copied from another job.

Reading these files executes no code from them.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from tvf.errors import InputError
from tvf.files import BEST_WEIGHTS, read_json, write_whole
from tvf.models.finetune import FineTuneModel
from tvf.models.groups import is_below


def save_weights(model: nn.Module, path: Path, epoch: int) -> None:
    """Write every parameter and buffer of `model`, without adapters, and their epoch."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, _serialize(model, epoch))


class HeadFile:
    """Writes what `save_weights` does, for models of which only the head changes.

    The rest is serialized once, which takes longer than writing it.
    """

    def __init__(self) -> None:
        self._headers: dict[int, bytes] = {}  # by epoch, which they hold
        self._data = bytearray()

    def save(self, model: nn.Module, head: Mapping[str, Tensor], path: Path, epoch: int) -> None:
        """Write the weights of `model` with those of `head`, by their names in its state."""
        if epoch not in self._headers:
            content = _serialize(model, epoch)
            start = 8 + int.from_bytes(content[:8], "little")
            self._headers[epoch], self._data = content[:start], bytearray(content[start:])
        places = json.loads(self._headers[epoch][8:])
        for name, value in head.items():
            begin, end = places[name]["data_offsets"]
            plain = value.cpu().contiguous().reshape(-1)
            self._data[begin:end] = plain.view(torch.uint8).numpy().data
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, self._headers[epoch], memoryview(self._data))


def _serialize(model: nn.Module, epoch: int) -> bytes:
    plain = isinstance(model, FineTuneModel)
    state = model.plain_state_dict() if plain else model.state_dict()
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    seen: set[int] = set()  # layers that share a weight: the file has it under each of their names
    for name, tensor in state.items():
        place = tensor.data_ptr()
        state[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return safetensors.torch.save(state, {"epoch": str(epoch)})


def load_weights(model: nn.Module, path: Path, epoch: int) -> None:
    """Load the weights in `path` into `model`.

    Raises InputError if names, shapes or epoch do not match.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            found = (file.metadata() or {}).get("epoch")
        if found != str(epoch):
            raise InputError(
                f"{path} is from epoch {found}, not {epoch}: delete the job's folder to train it "
                "again."
            )
        plain = isinstance(model, FineTuneModel)
        load = model.load_plain_state_dict if plain else model.load_state_dict
        load(safetensors.torch.load_file(path))
    except (OSError, safetensors.SafetensorError, RuntimeError) as error:
        raise InputError(
            f"{path} does not hold this model's weights: {str(error).splitlines()[0]}"
        ) from error


def is_readable(path: Path) -> bool:
    """Whether `path` is an intact file of weights."""
    try:
        safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError):
        return False
    return True


def is_tvf_file(path: Path) -> bool:
    """Whether a readable file of weights is one that `save_weights` has written."""
    if path.suffix != ".safetensors":
        return False
    with safetensors.safe_open(path, "pt") as file:
        return {"mean", "std"} < set(file.keys()) and "epoch" in (file.metadata() or {})


def find_weights(init_from: object) -> Path:
    """The file that `model.init_from` names: itself, or the best weights of a job's folder.

    Raises InputError if there is none.
    """
    remedy = "name a finished job's folder, or a .safetensors file."
    if not isinstance(init_from, str) or not init_from:
        raise InputError(f"model.init_from={init_from!r} must be a path: {remedy}")
    path = Path(init_from).expanduser()
    if path.is_dir():
        if not (path / BEST_WEIGHTS).is_file():
            has = f"it has no {BEST_WEIGHTS}"
            if jobs := sorted(job.parent.parent.name for job in path.glob(f"*/{BEST_WEIGHTS}")):
                has = f"it is a sweep; name one of its jobs, such as {path / jobs[0]}"
            raise InputError(f"model.init_from={init_from} must be a job's folder: {has}.")
        if not read_json(path / "summary.json"):
            raise InputError(
                f"model.init_from={init_from} must be a finished job: the best weights of this one "
                f"may still change. Resume it first, or name the file {path / BEST_WEIGHTS}."
            )
        return path / BEST_WEIGHTS
    if not path.is_file():
        raise InputError(f"model.init_from={init_from} does not exist: {remedy}")
    return path


def check_not_own_weights(init_from: str | None, folder: Path) -> None:
    """Raise InputError if a job in `folder` would start from weights that it overwrites."""
    if init_from is not None and find_weights(init_from).resolve().is_relative_to(folder.resolve()):
        raise InputError(
            f"model.init_from={init_from} must be outside this job's own folder: choose another "
            "hydra.run.dir."
        )


def load_initial_weights(model: FineTuneModel, init_from: str, *heads: str) -> str:
    """Load the weights that `model.init_from` names, including the head's; return a description.

    `heads` are the names of the head's layers in the model. Raises InputError unless the tensors'
    names and shapes match.
    """
    path = find_weights(init_from)
    try:
        found = safetensors.torch.load_file(path)
        with safetensors.safe_open(path, "pt") as file:
            epoch = (file.metadata() or {}).get("epoch")
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(
            f"model.init_from={init_from} is not a file of weights ({str(error).splitlines()[0]})."
        ) from error
    if difference := _difference(found, model.plain_state_dict(), heads):
        raise InputError(f"model.init_from={init_from} does not fit: {difference}.")
    model.load_plain_state_dict(found)
    return f"{path}, epoch {epoch}" if epoch else str(path)


def _difference(
    found: dict[str, torch.Tensor], own: dict[str, torch.Tensor], heads: Sequence[str]
) -> str | None:
    """How the tensors in a file differ from a model's in names and shapes; None if they do not."""
    if _is_of_probe(found, own) or _is_of_probe(own, found):
        return "model=probe starts from a probe's weights, and no other model does"
    if lacking := own.keys() - found.keys():
        return f"its weights are from another backbone, without {shorten(sorted(lacking))}"
    if extra := found.keys() - own.keys():
        return f"its weights are from another backbone, with {shorten(sorted(extra))} as well"
    shapes = {name: (tuple(found[name].shape), tuple(own[name].shape)) for name in own}
    differing = {name: pair for name, pair in shapes.items() if pair[0] != pair[1]}
    if not differing:
        return None
    details = shorten(
        [f"{name} is {theirs}, expected {ours}" for name, (theirs, ours) in differing.items()]
    )
    if all(is_below(name, heads) for name in differing):
        theirs, ours = next(iter(differing.values()))
        theirs, ours = (shape[0] if shape else 1 for shape in (theirs, ours))
        return f"its head is for {theirs} classes, this one for {ours} ({details})"
    return f"its weights are from another backbone: {details}"


def _is_of_probe(probe: dict[str, torch.Tensor], plain: dict[str, torch.Tensor]) -> bool:
    """Whether `probe` has the tensors of a probe of the network whose own are `plain`."""
    start = "module.features."
    inner = {"module." + name.removeprefix(start) for name in probe if name.startswith(start)}
    return bool(inner) and inner <= plain.keys()


def shorten(values: object) -> str:
    """The first five of a list, and how many there are."""
    listed = list(map(str, values)) if isinstance(values, list | tuple) else [str(values)]
    return ", ".join(listed[:5]) + (f" ({len(listed)} in all)" if len(listed) > 5 else "")
