"""A trained model that classifies images: files, folders, arrays."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tvf.errors import InputError
from tvf.inference.images import Item, Reading, list_items
from tvf.inference.pipeline import Chunk, classify
from tvf.inference.table import PredictionTable
from tvf.progress import progress_bar
from tvf.records import softmax

# Probabilities, float64 [B, classes], of images, uint8 [B, 3, S, S]; with `raw` uncalibrated ones.
Runner = Callable[[Tensor, bool], np.ndarray]


@dataclass(frozen=True)
class Model:
    """A trained classifier, with all that it takes to use it.

    `classes` are in the order of the probabilities. `reading` turns an image into the pixels that
    the network was trained on. `run` maps these to probabilities; `temperature` is part of it.
    `source` says where the model is from, `make_card` describes it in Markdown, `summary` is the
    record of its job. `network` maps pixels to logits; None for a file that another runtime
    executes, and for an ensemble. `threads` is how many of torch's threads run a batch, several
    batches at once; None: all of them, one batch at a time.
    """

    classes: tuple[str, ...]
    reading: Reading
    run: Runner
    source: str
    temperature: float = 1.0
    batch_size: int = 32
    make_card: Callable[[], str] = field(default=str, repr=False)
    summary: dict[str, Any] = field(default_factory=dict, repr=False)
    network: nn.Module | None = field(default=None, repr=False)
    threads: int | None = None

    @cached_property
    def card(self) -> str:
        """The model card, in Markdown; empty if there is none."""
        return self.make_card()

    @property
    def module(self) -> nn.Module:
        """The network: pixels [N, 3, S, S], uint8 or floats from 0 to 255, to logits [N, classes].

        Its logits are uncalibrated: divide them by `temperature`. InputError if there is none.
        """
        if self.network is None:
            raise InputError(
                f"{self.source} has no module: load the folder of a job to get a network."
            )
        return self.network

    def predict(self, images: Any, raw: bool = False, progress: bool = False) -> PredictionTable:
        """Classify images, in their order.

        `images` is a path, an array, or a list of these. A path is a file, a folder with all images
        below it, a pattern such as "*.png", or a .txt file with one path per line. An array is
        uint8 [H, W], [H, W, 3] or [H, W, 4] in NumPy, [3, H, W] in torch, a batch of these, or a
        PIL image; with a window, also of other numbers, [H, W]. Probabilities are calibrated,
        unless `raw`. Raises InputError for what is not there; files that cannot be read are in the
        table's `failed`.
        """
        items = list_items(images, self.classes, self.reading.rules.window is not None)
        chunks = []
        with progress_bar("predicting" if progress else None, len(items)) as advance:
            for chunk in self.stream(items, raw):
                chunks.append(chunk)
                advance(len(chunk))
        return PredictionTable.join(chunks, self.classes)

    def stream(self, items: Sequence[Item], raw: bool = False) -> Iterator[Chunk]:
        """Classify items batch by batch, in their order; memory does not grow with their number."""
        run = lambda pixels: self.run(pixels, raw)  # noqa: E731
        return classify(items, self.reading, run, self.batch_size, self.threads)


def torch_runner(network: nn.Module, temperature: float, device: str | torch.device) -> Runner:
    """Run a network in eval mode on `device`."""

    @torch.inference_mode()
    def run(pixels: Tensor, raw: bool) -> np.ndarray:
        logits = network(pixels.to(device)).float().cpu().numpy()
        return softmax(logits, 1.0 if raw else temperature)

    return run


def average_models(models: Sequence[Model]) -> Model:
    """Average the probabilities of several models of the same classes and way of reading images."""
    first = models[0]
    for model in models[1:]:
        if (model.classes, model.reading) != (first.classes, first.reading):
            raise InputError(
                f"{first.source} and {model.source} have other classes or read images in another "
                "way: they are no ensemble."
            )

    def run(pixels: Tensor, raw: bool) -> np.ndarray:
        return np.mean([model.run(pixels, raw) for model in models], axis=0)

    sources = ", ".join(model.source for model in models)
    return Model(
        first.classes,
        first.reading,
        run,
        f"an ensemble of {sources}",
        batch_size=first.batch_size,
        threads=first.threads,
    )
