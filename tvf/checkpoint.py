"""A model's weights as a safetensors file: it holds numbers only, and reading it runs no code."""

from pathlib import Path

import safetensors.torch
from torch import nn

from tvf.files import write_whole


def save_weights(model: nn.Module, path: Path) -> None:
    """Write every parameter and buffer of `model`."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, safetensors.torch.save(state))


def load_weights(model: nn.Module, path: Path) -> None:
    """Put the weights in `path` into `model`, which must have the same names and shapes."""
    model.load_state_dict(safetensors.torch.load_file(path))
