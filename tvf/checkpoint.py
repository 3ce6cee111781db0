"""What a job keeps of itself: its weights, and all that it needs to go on after it was stopped at any moment.

Nothing in these files is executed by reading them: weights are safetensors, checkpoints are loaded `weights_only`.
"""

import hashlib
import io
import logging
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import nn

from tvf.errors import InputError, require_number
from tvf.files import read_json, write_whole
from tvf.record import BEST_WEIGHTS, LAST_CHECKPOINT

log = logging.getLogger(__name__)

MAGIC = b"tvf checkpoint 1\n"
DIGEST = 16  # bytes
DIVIDING = ("split_seed", "val_fraction", "test_fraction", "validate_on")  # images into parts, of data


class Checkpoints:
    """The last two states of a job in `folder`; the older one is for when the newer one is damaged.

    `of` names the configuration: states of another one are as good as none. `every_minutes`: how long an epoch may
    train until its middle is saved too.
    """

    def __init__(self, folder: Path, of: str, every_minutes: float = 10.0) -> None:
        require_number("checkpoint.every_minutes", every_minutes, 0, above=True)
        self.last, self.previous = folder / Path(LAST_CHECKPOINT).name, folder / "previous.pt"
        self._of, self._seconds, self._saved = of, 60 * every_minutes, time.monotonic()
        self._warned = False

    def due(self) -> bool:
        """Whether the last save is longer ago than it should be."""
        return time.monotonic() - self._saved >= self._seconds

    def save(self, state: dict[str, Any]) -> None:
        """Keep `state`: tensors, numbers, strings, and lists, tuples and dicts of them. Where it cannot: a warning."""
        self._saved = time.monotonic()
        buffer = io.BytesIO()
        torch.save({"of": self._of, "state": state}, buffer)
        content, new = buffer.getbuffer(), self.last.with_suffix(".new")
        try:
            self.last.parent.mkdir(parents=True, exist_ok=True)
            write_whole(new, MAGIC, hashlib.blake2b(content, digest_size=DIGEST).digest(), content)
            if self.last.exists():
                self.last.replace(self.previous)
            new.replace(self.last)
        except OSError as error:
            if not self._warned:
                self._warned = True
                log.warning("%s cannot be written (%s): the job goes on without it.", self.last, error.strerror)

    def load(self) -> dict[str, Any] | None:
        """The last state that is whole and of this configuration; None if there is none."""
        damaged = False
        for path in (self.last, self.previous):
            try:
                held = _read(path)
            except FileNotFoundError:
                continue
            except (OSError, ValueError) as error:
                log.warning("%s is damaged (%s): going on from the one before it, if there is one.", path, error)
                damaged = True
                with suppress(OSError):
                    path.unlink()  # else it would be the one before the next
                continue
            return held["state"] if held["of"] == self._of else None
        if damaged:
            log.warning("No checkpoint is whole: the job starts anew.")
        return None

    def finish(self) -> None:
        """The job is done: nothing has to go on from here."""
        for path in (self.last, self.previous):
            path.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    start = len(MAGIC) + DIGEST
    if not content.startswith(MAGIC):
        raise ValueError("it is not a checkpoint of tvf")
    if hashlib.blake2b(content[start:], digest_size=DIGEST).digest() != content[len(MAGIC) : start]:
        raise ValueError("its checksum is wrong")
    try:
        held = torch.load(io.BytesIO(content[start:]), map_location="cpu", weights_only=True)
        return {"of": held["of"], "state": dict(held["state"])}
    except Exception as error:  # what torch makes of a file that was made to look like one of ours
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(reason) from error


def random_states() -> dict[str, Any]:
    """The states of all generators that training may draw from: torch's, Python's and numpy's."""
    numpy: Any = np.random.get_state()
    states = {"torch": torch.get_rng_state(), "python": random.getstate()}
    states["numpy"] = (numpy[0], torch.from_numpy(numpy[1].astype(np.int64)), *numpy[2:])
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: dict[str, Any]) -> None:
    """Put all generators where they were."""
    torch.set_rng_state(states["torch"])
    random.setstate(states["python"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])


def save_weights(model: nn.Module, path: Path, epoch: int) -> None:
    """Write every parameter and buffer of `model`, and of which epoch they are."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, safetensors.torch.save(state, {"epoch": str(epoch)}))


def load_weights(model: nn.Module, path: Path, epoch: int) -> None:
    """Put the weights in `path` into `model`; InputError if they are not this model's by names, shapes and epoch."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            found = (file.metadata() or {}).get("epoch")
        if found != str(epoch):
            raise InputError(f"{path} is of epoch {found}, not of {epoch}: remove the job's folder to train it anew.")
        model.load_state_dict(safetensors.torch.load_file(path))
    except (OSError, safetensors.SafetensorError, RuntimeError) as error:
        raise InputError(f"{path} does not hold this model's weights: {str(error).splitlines()[0]}") from error


def can_load(path: Path) -> bool:
    """Whether `path` is a whole file of weights."""
    try:
        safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError):
        return False
    return True


def find_weights(init_from: object) -> Path:
    """The file that `model.init_from` means: itself, or the best weights of a job's folder. InputError if not there."""
    if not isinstance(init_from, str) or not init_from:
        raise InputError(f"model.init_from={init_from!r} is refused: name a job's folder, or a .safetensors file.")
    path = Path(init_from).expanduser()
    if path.is_dir():
        if not (path / BEST_WEIGHTS).is_file():
            raise InputError(f"model.init_from={init_from} is refused: that folder holds no {BEST_WEIGHTS}.")
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


def refuse_own_weights(init_from: str | None, folder: Path) -> None:
    """InputError if a job in `folder` is to start from what it is going to write itself."""
    if init_from is not None and find_weights(init_from).resolve().is_relative_to(folder.resolve()):
        raise InputError(
            f"model.init_from={init_from} is refused: it lies in this job's own folder. Choose another hydra.run.dir."
        )


def start_from(
    model: nn.Module, init_from: str, backbone: str, classes: Sequence[str], head: str, data: Mapping[str, Any]
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
        log.warning("%s does not say which images it was trained on: validate and test on none of them.", path)
    try:
        found = safetensors.torch.load_file(path)
        with safetensors.safe_open(path, "pt") as file:
            epoch = (file.metadata() or {}).get("epoch")
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{refused}it is no file of weights ({str(error).splitlines()[0]}).") from error
    if difference := _difference(found, model.state_dict(), head):
        raise InputError(f"{refused}{difference}.")
    model.load_state_dict(found)
    return f"{path}, epoch {epoch}" if epoch else str(path)


def _difference(found: dict[str, torch.Tensor], own: dict[str, torch.Tensor], head: str) -> str | None:
    """How the tensors in a file differ from a model's in names and shapes; None if they do not."""
    if found.keys() != own.keys():
        told = [
            f"{word} {_listed(sorted(names))}"
            for word, names in (("lacks", own.keys() - found.keys()), ("has besides", found.keys() - own.keys()))
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
