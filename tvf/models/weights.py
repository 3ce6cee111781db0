"""What a job keeps of itself: its weights, and all that it needs to go on after it was stopped at any moment.

Nothing in these files is executed by reading them: weights are safetensors, checkpoints are loaded `weights_only`.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from tvf.errors import InputError
from tvf.files import BEST_WEIGHTS, read_json, write_whole

log = logging.getLogger(__name__)
DIVIDING = (
    "split_seed",
    "val_fraction",
    "test_fraction",
    "validate_on",
)  # images into parts, of data


def save_weights(model: nn.Module, path: Path, epoch: int) -> None:
    """Write every parameter and buffer of `model`, and of which epoch they are."""
    state = {
        name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, safetensors.torch.save(state, {"epoch": str(epoch)}))


def load_weights(model: nn.Module, path: Path, epoch: int) -> None:
    """Put the weights in `path` into `model`; InputError if they are not this model's by names, shapes and epoch."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            found = (file.metadata() or {}).get("epoch")
        if found != str(epoch):
            raise InputError(
                f"{path} is of epoch {found}, not of {epoch}: remove the job's folder to train it anew."
            )
        model.load_state_dict(safetensors.torch.load_file(path))
    except (OSError, safetensors.SafetensorError, RuntimeError) as error:
        raise InputError(
            f"{path} does not hold this model's weights: {str(error).splitlines()[0]}"
        ) from error


def is_readable(path: Path) -> bool:
    """Whether `path` is a whole file of weights."""
    try:
        safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError):
        return False
    return True


def find_weights(init_from: object) -> Path:
    """The file that `model.init_from` means: itself, or the best weights of a job's folder. InputError if not there."""
    if not isinstance(init_from, str) or not init_from:
        raise InputError(
            f"model.init_from={init_from!r} is refused: name a job's folder, or a .safetensors file."
        )
    path = Path(init_from).expanduser()
    if path.is_dir():
        if not (path / BEST_WEIGHTS).is_file():
            raise InputError(
                f"model.init_from={init_from} is refused: that folder holds no {BEST_WEIGHTS}."
            )
        if not read_json(path / "summary.json"):
            raise InputError(
                f"model.init_from={init_from} is refused: that job is not done, so its best weights may still change. "
                f"Let it go on first, or name the file {path / BEST_WEIGHTS}."
            )
        return path / BEST_WEIGHTS
    if not path.is_file():
        raise InputError(
            f"model.init_from={init_from} is refused: there is no such file or folder. Name a job's folder, or a "
            ".safetensors file."
        )
    return path


def check_not_own_weights(init_from: str | None, folder: Path) -> None:
    """InputError if a job in `folder` is to start from what it is going to write itself."""
    if init_from is not None and find_weights(init_from).resolve().is_relative_to(folder.resolve()):
        raise InputError(
            f"model.init_from={init_from} is refused: it lies in this job's own folder. Choose another hydra.run.dir."
        )


def load_initial_weights(
    model: nn.Module,
    init_from: str,
    backbone: str,
    classes: Sequence[str],
    head: str,
    data: Mapping[str, Any],
) -> str:
    """Put the weights that `model.init_from` means into `model`, its head's too; return which they are, for people.

    `head` is the head's name in the model, and `data` the config's node. InputError unless the weights are of the same
    backbone and the same classes: by what a job's summary.json says, and always by the names and shapes of the tensors;
    and if that job divided the same images otherwise, so that it may have trained on what is to validate or test.
    """
    path = find_weights(init_from)
    refused = f"model.init_from={init_from} is refused: "
    if Path(init_from).expanduser().is_dir():
        summary = read_json(Path(init_from).expanduser() / "summary.json")
        if summary.get("backbone") != backbone:
            theirs = summary.get("backbone")
            raise InputError(
                f"{refused}that job trained backbone={theirs}, this one has {backbone}: choose that or another job."
            )
        if summary.get("classes") != list(classes):
            raise InputError(
                f"{refused}that job's classes are {_listed(summary.get('classes'))}, here they are {_listed(classes)}."
            )
        theirs = read_json(Path(init_from).expanduser() / "config.json").get("data") or {}
        if all(theirs.get(key) == data.get(key) for key in ("_target_", "root")):
            for key in DIVIDING:
                if theirs.get(key) != data.get(key):
                    raise InputError(
                        f"{refused}that job had data.{key}={theirs.get(key)}, here it is {data.get(key)}: images that "
                        "it has trained on would validate and test this one. Choose the same."
                    )
    else:
        log.warning(
            "%s does not say which images it was trained on: validate and test on none of them.",
            path,
        )
    try:
        found = safetensors.torch.load_file(path)
        with safetensors.safe_open(path, "pt") as file:
            epoch = (file.metadata() or {}).get("epoch")
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(
            f"{refused}it is no file of weights ({str(error).splitlines()[0]})."
        ) from error
    if difference := _difference(found, model.state_dict(), head):
        raise InputError(f"{refused}{difference}.")
    model.load_state_dict(found)
    return f"{path}, epoch {epoch}" if epoch else str(path)


def _difference(
    found: dict[str, torch.Tensor], own: dict[str, torch.Tensor], head: str
) -> str | None:
    """How the tensors in a file differ from a model's in names and shapes; None if they do not."""
    if found.keys() != own.keys():
        told = [
            f"{word} {_listed(sorted(names))}"
            for word, names in (
                ("lacks", own.keys() - found.keys()),
                ("has besides", found.keys() - own.keys()),
            )
            if names
        ]
        return f"its weights are of another backbone: the file {' and '.join(told)}"
    shapes = {name: (tuple(found[name].shape), tuple(own[name].shape)) for name in own}
    differing = {name: pair for name, pair in shapes.items() if pair[0] != pair[1]}
    if not differing:
        return None
    told = _listed([f"{name} is {there}, here {here}" for name, (there, here) in differing.items()])
    if all(name.startswith(f"{head}.") for name in differing):
        there, here = (sizes[0] if sizes else 1 for sizes in next(iter(differing.values())))
        return f"its head is for {there} classes, here are {here} ({told})"
    return f"its weights are of another backbone: {told}"


def _listed(values: object) -> str:
    listed = list(map(str, values)) if isinstance(values, list | tuple) else [str(values)]
    return ", ".join(listed[:5]) + (f" ({len(listed)} in all)" if len(listed) > 5 else "")
