"""Weights of models on disk: saving, loading, and starting a job from those of an earlier one.

They are safetensors files, so nothing in them is executed when they are read.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from tvf.errors import InputError
from tvf.files import BEST_WEIGHTS, read_json, write_whole


def save_weights(model: nn.Module, path: Path, epoch: int) -> None:
    """Write every parameter and buffer of `model`, and the epoch that they are from."""
    state = {
        name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, safetensors.torch.save(state, {"epoch": str(epoch)}))


def load_weights(model: nn.Module, path: Path, epoch: int) -> None:
    """Load the weights in `path` into `model`.

    InputError unless names, shapes and epoch are as expected.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            found = (file.metadata() or {}).get("epoch")
        if found != str(epoch):
            raise InputError(
                f"{path} must be from epoch {epoch}, but is from epoch {found}: remove the job's "
                "folder to train it again."
            )
        model.load_state_dict(safetensors.torch.load_file(path))
    except (OSError, safetensors.SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} does not hold this model's weights: {reason}") from error


def is_readable(path: Path) -> bool:
    """Whether `path` is an intact file of weights."""
    try:
        safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError):
        return False
    return True


def find_weights(init_from: object) -> Path:
    """Return the file that `model.init_from` names: itself, or the best weights in a job's folder.

    InputError if there is none.
    """
    if not isinstance(init_from, str) or not init_from:
        raise InputError(
            f"model.init_from={init_from!r} must name a job's folder or a .safetensors file."
        )
    path = Path(init_from).expanduser()
    if path.is_dir():
        if not (path / BEST_WEIGHTS).is_file():
            raise InputError(
                f"model.init_from={init_from} must be the folder of a finished job, but has no "
                f"{BEST_WEIGHTS}."
            )
        if not read_json(path / "summary.json"):
            raise InputError(
                f"model.init_from={init_from} must be a finished job: the best weights of this one "
                f"may still change. Resume it first, or name the file {path / BEST_WEIGHTS}."
            )
        return path / BEST_WEIGHTS
    if not path.is_file():
        raise InputError(
            f"model.init_from={init_from} does not exist. Name a job's folder or a .safetensors "
            "file."
        )
    return path


def check_not_own_weights(init_from: str | None, folder: Path) -> None:
    """Raise InputError if a job in `folder` would start from weights that it writes itself."""
    if init_from is not None and find_weights(init_from).resolve().is_relative_to(folder.resolve()):
        raise InputError(
            f"model.init_from={init_from} must not be in this job's own folder. Choose another "
            "hydra.run.dir."
        )


def load_initial_weights(model: nn.Module, init_from: str, head: str) -> str:
    """Load the weights that `model.init_from` names into `model`, including its head.

    `head` is the name of the head in `model`. Returns a phrase that says which weights they are.
    Raises InputError unless they have the names and shapes of the model's.
    """
    path = find_weights(init_from)
    try:
        found = safetensors.torch.load_file(path)
        with safetensors.safe_open(path, "pt") as file:
            epoch = (file.metadata() or {}).get("epoch")
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(
            f"model.init_from={init_from} must be a file of weights, but cannot be read "
            f"({str(error).splitlines()[0]})."
        ) from error
    if difference := _compare(found, model.state_dict(), head):
        raise InputError(f"model.init_from={init_from} does not fit this model: {difference}.")
    model.load_state_dict(found)
    return f"{path}, epoch {epoch}" if epoch else str(path)


def _compare(
    found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], head: str
) -> str | None:
    """How tensors in a file differ from a model's in names and shapes; None if they do not."""
    missing, surplus = expected.keys() - found.keys(), found.keys() - expected.keys()
    if missing or surplus:
        differences = []
        if missing:
            differences.append(f"lacks {_shorten(sorted(missing))}")
        if surplus:
            differences.append(f"also has {_shorten(sorted(surplus))}")
        return f"its weights are of another backbone: the file {' and '.join(differences)}"
    shapes = {
        name: (tuple(found[name].shape), tuple(tensor.shape))
        for name, tensor in expected.items()
        if found[name].shape != tensor.shape
    }
    if not shapes:
        return None
    listed = _shorten([f"{name} is {there}, here {here}" for name, (there, here) in shapes.items()])
    if all(name.startswith(f"{head}.") for name in shapes):
        there, here = (shape[0] if shape else 1 for shape in next(iter(shapes.values())))
        return f"its head is for {there} classes, here are {here} ({listed})"
    return f"its weights are of another backbone: {listed}"


def _shorten(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:5]) + (f" ({len(names)} in all)" if len(names) > 5 else "")
