"""Exported models: what is in the file, and how it is loaded again.

An exported file takes images, uint8 [N, S, S, 3] or [N, 3, S, S], to calibrated probabilities, and
says in its metadata all that it takes to use it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tvf.data import ReadingRules
from tvf.errors import InputError
from tvf.files import printable
from tvf.inference.images import Reading
from tvf.inference.model import Model

ENDINGS = {"onnx": ".onnx", "torch_export": ".pt2"}
FORMAT_VERSION = 1
RULES_VERSION = 2  # has rules of reading images that readers of version 1 would ignore
CHANNELS_VERSION = 3  # likewise of version 2
METADATA = "tvf.json"  # in a .pt2 file
EXTRA = "pip install 'tvf[export]'"


def load_exported(path: Path, trust_code: bool = False) -> Model:
    """The model in a file that tvf export has written; InputError for any other file.

    A .pt2 file may hold pickled objects, which run code, so it takes `trust_code`.
    """
    if path.suffix == ENDINGS["onnx"]:
        metadata, run = _open_onnx(path)
    elif path.suffix == ENDINGS["torch_export"]:
        if not trust_code:
            raise InputError(
                f"{printable(path)}: torch unpickles parts of such a file, which can run code. If "
                "you trust it: tvf.load(..., trust_code=True), or --trust-code."
            )
        metadata, run = _open_torch(path)
    else:
        hint = "Name the folder of its job." if path.suffix == ".safetensors" else ""
        raise InputError(
            f"{printable(path)} is no exported model: those end in "
            f"{' or '.join(ENDINGS.values())}. {hint}".strip()
        )
    facts = _read_facts(metadata, path)
    first = facts["layout"] == "nchw"

    def probabilities(pixels: Tensor, raw: bool) -> np.ndarray:
        images = pixels if first else pixels.permute(0, 2, 3, 1).contiguous()
        found = run(images).astype(np.float64)
        if raw and facts["calibrated"]:  # p = softmax(logits / T), so p ** T is softmax(logits)
            found = found ** facts["temperature"]
            found /= found.sum(1, keepdims=True)
        return found

    return Model(
        classes=tuple(facts["classes"]),
        reading=Reading(
            facts["image_size"],
            facts["max_megapixels"],
            facts["white_point"],
            ReadingRules.of(facts),
        ),
        run=probabilities,
        source=str(path),
        temperature=facts["temperature"],
        batch_size=facts["batch_size"],
        make_card=lambda: metadata.get("card", ""),
    )


def _read_facts(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(metadata["tvf"])
    except (KeyError, ValueError):
        raise InputError(
            f"{printable(path)} has no metadata of tvf: it was not written by tvf export."
        ) from None
    if facts.get("format") not in (FORMAT_VERSION, RULES_VERSION, CHANNELS_VERSION):
        raise InputError(
            f"{printable(path)} was written by tvf {facts.get('version')}, in format "
            f"{facts.get('format')}; this one reads {FORMAT_VERSION} to {CHANNELS_VERSION}. Load "
            "it with that version."
        )
    return facts


def _open_onnx(path: Path) -> tuple[dict[str, str], Any]:
    try:
        import onnxruntime  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(
            f"{printable(path)} needs onnxruntime, which is not installed: {EXTRA}."
        ) from error
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own kinds of errors, none of them public
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{printable(path)} cannot be read by onnxruntime: {reason}") from error
    (given,) = session.get_inputs()
    metadata = dict(session.get_modelmeta().custom_metadata_map)
    return metadata, lambda images: session.run(None, {given.name: images.numpy()})[0]


def _open_torch(path: Path) -> tuple[dict[str, str], Any]:
    extra = {METADATA: ""}
    try:
        module = torch.export.load(path, extra_files=extra).module()
    except Exception as error:  # whatever unpacking a damaged file raises
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{printable(path)} cannot be read by torch {torch.__version__}: {reason}"
        ) from error
    metadata = json.loads(extra[METADATA] or "{}")

    @torch.no_grad()
    def run(images: Tensor) -> np.ndarray:
        return module(images).numpy()

    return metadata, run
