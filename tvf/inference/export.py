"""Exports a model as one file that other runtimes execute, preprocessing and calibration inside."""

import copy
import json
import logging
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tvf.distributed import library_versions, source_commit
from tvf.errors import InputError, require_choice
from tvf.files import printable, read_json
from tvf.inference.exported import (
    CHANNELS_VERSION,
    ENDINGS,
    EXTRA,
    FORMAT_VERSION,
    METADATA,
    RULES_VERSION,
    load_exported,
)
from tvf.inference.images import Reading
from tvf.inference.model import Model
from tvf.inference.trust import open_source
from tvf.owners import temporary_beside
from tvf.records import recorded_data

log = logging.getLogger(__name__)

LAYOUTS = ("nhwc", "nchw")
TOLERANCE = 1e-4  # the largest difference between probabilities that counts as rounding
CHECKED = 64  # images


@dataclass(frozen=True)
class Export:
    """An exported file, and its largest difference from the original in probabilities."""

    path: Path
    difference: float
    checked_on: str


class _Exported(nn.Module):
    def __init__(self, network: nn.Module, temperature: float, layout: str) -> None:
        super().__init__()
        self.network, self.temperature, self.layout = network, temperature, layout

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.permute(0, 3, 1, 2) if self.layout == "nhwc" else images
        return torch.softmax(self.network(pixels.float()) / self.temperature, 1)


def export_model(
    model: Model,
    file_format: str,
    path: Path,
    layout: str = "nhwc",
    raw: bool = False,
    trust_code: bool = False,
) -> Export:
    """Write `model` as "onnx" or "torch_export"; compare it with the original on real images.

    The file takes images, uint8 [N, S, S, 3] ("nhwc") or [N, 3, S, S] ("nchw") with any N, to
    probabilities, float32 [N, C], calibrated unless `raw`. Raises InputError if the network cannot
    be exported, or if the file gives other probabilities; then no file is left.
    """
    require_choice("--format", file_format, tuple(ENDINGS))
    require_choice("--layout", layout, LAYOUTS)
    if path.suffix != ENDINGS[file_format]:
        raise InputError(f"{path.name} must end in {ENDINGS[file_format]}, as its format does.")
    network = copy.deepcopy(model.module).cpu().to(memory_format=torch.contiguous_format)
    module = _Exported(network, 1.0 if raw else model.temperature, layout).eval()
    size = model.reading.image_size
    shape = (2, size, size, 3) if layout == "nhwc" else (2, 3, size, size)
    example = torch.zeros(shape, dtype=torch.uint8)
    metadata = _metadata(model, layout, raw)
    if path.is_dir() or (path.exists() and not path.is_file()):
        raise InputError(f"{printable(path)} is no file: name one with --output.")
    temporary = path.with_name(f"{temporary_beside(path).name}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write = _write_onnx if file_format == "onnx" else _write_torch
        write(module, example, temporary, metadata)
        images, checked_on = _real_images(model, trust_code)
        difference = _compare(model, load_exported(temporary, trust_code=True), images, raw)
        if not difference <= TOLERANCE:
            raise InputError(
                f"the exported network differs from the original by {difference:.1e} in its "
                f"probabilities, more than {TOLERANCE:.0e}: nothing was written."
            )
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{printable(path)} cannot be written: {error.strerror}.") from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    return Export(path, difference, checked_on)


def _metadata(model: Model, layout: str, raw: bool) -> dict[str, str]:
    versions = model.summary.get("versions") or {}
    rules = model.reading.rules
    file_format = RULES_VERSION if rules.key else FORMAT_VERSION
    if rules.channels != "auto":
        file_format = CHANNELS_VERSION
    facts = {
        "format": file_format,
        "version": library_versions().get("tvf"),
        "commit": source_commit(),
        "trained_with": versions | {"commit": model.summary.get("commit")},
        "name": model.summary.get("name"),
        "classes": model.classes,
        "layout": layout,
        "image_size": model.reading.image_size,
        "max_megapixels": model.reading.max_megapixels,
        "white_point": model.reading.white_point,
        **asdict(rules),
        "temperature": model.temperature,
        "calibrated": not raw,
        "batch_size": model.batch_size,
    }
    for name in ("mean", "std"):
        part = next((m for m in model.module.modules() if hasattr(m, name)), None)
        if isinstance(values := getattr(part, name, None), Tensor):
            facts[name] = values.flatten().tolist()
    return {"tvf": json.dumps(facts), "card": model.card}


def _write_onnx(module: nn.Module, example: Tensor, path: Path, metadata: dict[str, str]) -> None:
    try:
        import onnx  # pyright: ignore[reportMissingImports]
        import onnxruntime  # noqa: F401  # pyright: ignore[reportMissingImports]
        import onnxscript  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(
            f"--format onnx needs {error.name}, which is not installed: {EXTRA}."
        ) from error
    try:
        program: Any = torch.onnx.export(
            module,
            (example,),
            input_names=["images"],
            output_names=["probabilities"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
    except Exception as error:
        raise InputError(f"the network cannot be exported to ONNX: {_reason(error)}") from error
    proto = program.model_proto
    onnx.helper.set_model_props(proto, metadata)
    onnx.save(proto, path)


def _write_torch(module: nn.Module, example: Tensor, path: Path, metadata: dict[str, str]) -> None:
    try:
        program = torch.export.export(
            module, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},)
        )
    except Exception as error:
        raise InputError(f"torch.export cannot export the network: {_reason(error)}") from error
    torch.export.save(program, path, extra_files={METADATA: json.dumps(metadata)})


def _reason(error: Exception) -> str:
    """The first lines of the innermost error, which names the operator."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:3]) or type(error).__name__


def _real_images(model: Model, trust_code: bool) -> tuple[np.ndarray, str]:
    """Some images of the job's data, uint8 [N, S, S, 3], or noise if it is not here; in words."""
    try:
        config = read_json(Path(model.source) / "config.json")
        config = config | {"data": recorded_data(config, model.summary)}
        catalog = open_source(config, trust_code).catalog()
        places = np.linspace(0, len(catalog) - 1, min(CHECKED, len(catalog))).astype(np.int64)
        images = catalog.read(places, False, None).images.permute(0, 2, 3, 1).numpy()
        return images, f"{len(images)} images of its data"
    except (InputError, KeyError, OSError) as error:
        log.info("no images of the data: %s", error)
        size = model.reading.image_size
        noise = np.random.default_rng(0).integers(0, 256, (CHECKED, size, size, 3), np.uint8)
        return noise, f"{CHECKED} images of noise, since its data is not here"


def _compare(model: Model, exported: Model, images: np.ndarray, raw: bool) -> float:
    """The largest difference in probability, for squares that have been read by the rules."""
    as_they_are = Reading(model.reading.image_size)
    model, exported = (replace(each, reading=as_they_are) for each in (model, exported))
    ours = model.predict(images, raw=raw).probabilities
    theirs = exported.predict(images, raw=raw).probabilities
    return float(np.abs(ours - theirs).max())
