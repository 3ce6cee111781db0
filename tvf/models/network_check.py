"""The one check of a network before it trains: what does it return, in both of its modes?

Images of the right size are passed through it, and the answer must be logits. Everything else would
fail later, or train on the wrong numbers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tvf.errors import InputError
from tvf.models.backbones import Backbone, explain, run_black_images
from tvf.models.batchnorm import note_updates

NOISE = 2.0  # images of noise have values up to this, about as normalised photographs have


def check_network(backbone: Backbone, image_size: int, classes: int) -> None:
    """Raise InputError unless the network maps images to logits in eval and in training mode.

    Images are black, or noise if a network returns NaN for black ones, with `image_size` ×
    `image_size` pixels. Leaves the network and torch's random state unchanged. Layers whose own
    state the training mode changes are remembered: see `hold_frozen_batchnorm`.
    """
    with torch.random.fork_rng(devices=[]), _restored(backbone.module):
        for images in (1, 2):
            with torch.no_grad():
                logits = run_black_images(backbone, image_size, images)
            _check_logits(logits, backbone.name, "eval", (images, classes))
        batch = torch.zeros(2, 3, image_size, image_size)
        if not logits.isfinite().all():
            batch.uniform_(-NOISE, NOISE, generator=torch.Generator().manual_seed(0))
            with torch.no_grad():
                _check_finite(_run(backbone, batch, "eval"), backbone.name, "eval")
        backbone.module.train()
        before = _states(backbone.module)
        logits = _run(backbone, batch, "training")
        _check_logits(logits, backbone.name, "training", (2, classes))
        _check_finite(logits, backbone.name, "training")
        head = backbone.module.get_submodule(backbone.head)
        if not logits.requires_grad and any(p.requires_grad for p in head.parameters()):
            raise InputError(
                f"backbone {backbone.name}: in training mode its output has no gradient, so it "
                "cannot train. Leave out detach() and no_grad() in its forward."
            )
        after = _states(backbone.module)
        note_updates(layer for layer in before if before[layer] != after.get(layer))


def _run(backbone: Backbone, batch: Tensor, mode: str) -> Any:
    """What the network returns; InputError with its own reason if it raises an error."""
    try:
        return backbone.module(batch)
    except Exception as error:  # a network's code can raise anything
        raise InputError(
            f"backbone {backbone.name} fails in {mode} mode: {explain(error)} It must take "
            f"{len(batch)} images {list(batch.shape)} and return their logits in both modes. "
            "TVF_DEBUG=1 shows the traceback."
        ) from error


def _check_finite(logits: Tensor, name: str, mode: str) -> None:
    if not (finite := logits.detach().isfinite()).all():
        found = logits.detach()[~finite][0].item()
        raise InputError(
            f"backbone {name} returns {found} for finite images in {mode} mode "
            f"({int((~finite).sum())} of {finite.numel()} logits): its weights or its code are at "
            "fault, such as a division by zero or a logarithm of what is not positive."
        )


def _check_logits(output: Any, name: str, mode: str, shape: tuple[int, int]) -> None:
    wanted = f"logits, a float tensor [images, classes] = {list(shape)}"
    if found := _find_fault(output, shape):
        what, remedy = found
        raise InputError(
            f"backbone {name} must return {wanted}: in {mode} mode it {what}. {remedy}"
        )


def _find_fault(output: Any, shape: tuple[int, int]) -> tuple[str, str] | None:
    """What is wrong with a network's output, and the remedy; None if it is logits."""
    if not isinstance(output, Tensor):
        alone = "Return the logits alone (auxiliary outputs off, or `.logits` of the output)."
        return f"returns {_describe(output)}", alone
    found = f"returns {_describe(output)}"
    if output.is_complex():
        return found, "Return real numbers, such as the real part: output.real."
    if not output.is_floating_point():
        return found, "Return the scores of the classes, before argmax or a threshold."
    if tuple(output.shape) != shape:
        images, classes = shape
        if output.dim() == 2 and len(output) == images:
            last = f"Replace its last layer by one with num_classes={classes} outputs."
            return f"has {output.shape[1]} outputs for {classes} classes", last
        if images > 1 and tuple(output.shape) == (1, classes):
            return f"{found} for {images} images", "Return one row for each image of the batch."
        if output.numel() == images * classes:
            return found, "Keep the batch as first dimension and flatten the rest: flatten(1)."
        return found, f"Pool and flatten it, and end with a layer of num_classes={classes} outputs."
    total = output.detach().double().sum(1)
    if shape[1] > 1 and bool((output >= 0).all()) and torch.allclose(total, torch.ones_like(total)):
        softmax = "Return the values before the softmax, which the loss contains."
        return "returns probabilities, which add up to 1", softmax
    return None


def _describe(output: Any) -> str:
    """The type and shapes of a network's output."""
    if isinstance(output, Tensor):
        return f"a tensor {list(output.shape)} of {str(output.dtype).removeprefix('torch.')}"
    if isinstance(output, dict):
        parts = [f"{key}: {_describe(value)}" for key, value in output.items()]
    elif names := getattr(output, "_fields", None):  # a namedtuple
        parts = [f"{name}: {_describe(getattr(output, name))}" for name in names]
    elif isinstance(output, list | tuple):
        parts = [_describe(value) for value in output]
    elif is_dataclass(output):
        parts = [
            f"{field.name}: {_describe(getattr(output, field.name))}" for field in fields(output)
        ]
    else:
        return "nothing" if output is None else f"a {type(output).__name__}"
    return f"a {type(output).__name__} ({', '.join(parts)})"


State = dict[str, Any]
OWN = ("_parameters", "_buffers", "_modules")  # where a layer keeps what is registered in it


def _states(module: nn.Module) -> dict[nn.Module, State]:
    """What identifies the own state of each layer: its buffers' versions, tensors and numbers."""
    states = {}
    for layer in module.modules():
        own = {name: (id(b), b._version) for name, b in layer._buffers.items() if b is not None}
        states[layer] = own | {
            name: id(value) if isinstance(value, Tensor) else value
            for name, value in vars(layer).items()
            if isinstance(value, Tensor | int | float) and name != "training"
        }
    return states


@contextmanager
def _restored(module: nn.Module) -> Iterator[None]:
    """Restore the members, own attributes and modes of all layers when the context ends."""
    attributes = [
        (layer, dict(vars(layer)), [dict(getattr(layer, name)) for name in OWN])
        for layer in module.modules()
    ]
    values = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        for layer, own, registered in attributes:
            for name in vars(layer).keys() - own.keys():
                del vars(layer)[name]
            vars(layer).update(own)
            for name, members in zip(OWN, registered, strict=True):
                getattr(layer, name).clear()
                getattr(layer, name).update(members)
        with torch.no_grad():
            for buffer, value in values:
                buffer.copy_(value)
