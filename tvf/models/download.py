"""Weights that a library downloads or reads: what it says when it cannot, and the remedy."""

import pickle
from collections.abc import Callable
from typing import Any

import torch
from safetensors import SafetensorError

from tvf.errors import InputError
from tvf.hub import cache_alone_if_offline

OFFLINE = "backbone=efficientnet_lite0 needs no download"
LOCAL = "local-dir:"
LOCAL_HOLDS = "config.json and the weights (model.safetensors or pytorch_model.bin)"


def download(name: str, create: Callable[[], Any]) -> Any:
    """Call `create`, which may download weights; InputError with the reason if it cannot get them.

    Without a network, or for a truncated file, libraries raise different errors.
    """
    try:
        with cache_alone_if_offline():
            return create()
    except RuntimeError as error:
        raise InputError(_explain_weights(name, error)) from error
    except (OSError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        remedy = (
            f"Weights are downloaded on first use, into {torch.hub.get_dir()} or the hub's cache: "
            "connect to the internet once and delete any damaged file there, or choose a backbone "
            f"that is available offline: {OFFLINE}."
        )
        if name.startswith(LOCAL):
            remedy = f"Such a folder holds {LOCAL_HOLDS}, as timm.models.save_for_hf writes them."
        raise InputError(
            f"cannot load the weights of {name} ({type(error).__name__}: {first_lines(error)}). "
            f"{remedy}"
        ) from error


def _explain_weights(name: str, error: RuntimeError) -> str:
    text = first_lines(error)
    if "size mismatch" in text:
        remedy = (
            "The checkpoint is of another network, or of other classes: say how many classes it "
            "has (+backbone.options.num_classes=10); the head is made anew either way"
        )
    elif "key(s) in state_dict" in text:
        remedy = "The checkpoint is of another network: name the one that it was saved from"
    elif (
        "hash value" in text
        or "Invalid magic" in text
        or "PytorchStreamReader" in text
        or "zip" in text
    ):
        remedy = f"Delete the damaged file, in {torch.hub.get_dir()} or the hub's cache"
    elif name.startswith(LOCAL):
        remedy = f"Such a folder holds {LOCAL_HOLDS}, as timm.models.save_for_hf writes them"
    else:
        remedy = f"Choose other weights, or backbone.pretrained=false; {OFFLINE}"
    return f"cannot load the weights of {name} ({type(error).__name__}: {text}). {remedy}."


def first_lines(error: Exception, number: int = 8) -> str:
    """The text of a library's error in one line, without its end if it is long."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    more = f" ({len(lines)} lines in all)" if len(lines) > number else ""
    return (" ".join(lines[:number]) + more).rstrip(".") or type(error).__name__
