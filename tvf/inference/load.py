"""Loads a trained model from the folder of a job or a sweep, or from an exported file.

Neither Hydra nor W&B nor pickle is on this path: a job's folder holds safetensors and JSON, and
nothing in it is executed unless the caller trusts code of the user's own.
"""

import copy
import logging
import math
import os
from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from tvf.config import OWN_MODELS, backbone_content, is_probe, modern_node
from tvf.distributed import library_versions
from tvf.errors import InputError
from tvf.files import BEST_WEIGHTS, MODEL_CARD, printable, read_json
from tvf.inference.choose import choose_jobs
from tvf.inference.exported import load_exported
from tvf.inference.images import Reading
from tvf.inference.model import Model, average_models, torch_runner
from tvf.inference.reading_rules import read_rules, warn_of_own_source
from tvf.inference.trust import import_own, names_code
from tvf.models import (
    Backbone,
    FineTuneModel,
    ProbeModel,
    efficientnet_lite0,
    efficientnet_lite1,
    efficientnet_lite2,
    find_weights,
    load_checkpoint,
    load_weights,
    resnet,
    timm_backbone,
    torchvision_backbone,
)
from tvf.records import STOPPED, fit_temperature, read_predictions, read_status

log = logging.getLogger(__name__)

# How to build each of tvf's backbones without weights: those of the job are loaded afterwards.
BACKBONES: dict[str, tuple[Any, dict[str, Any]]] = {
    "tvf.models.efficientnet_lite0": (efficientnet_lite0, {"pretrained": False}),
    "tvf.models.efficientnet_lite1": (efficientnet_lite1, {"pretrained": False}),
    "tvf.models.efficientnet_lite2": (efficientnet_lite2, {"pretrained": False}),
    "tvf.models.resnet": (resnet, {"weights": None}),
    "tvf.models.timm_backbone": (timm_backbone, {"pretrained": False}),
    "tvf.models.torchvision_backbone": (torchvision_backbone, {"pretrained": False}),
}
NO_JOB = "Name the folder of a job or of a sweep, or a file that tvf export has written."
INTERRUPTED = "was interrupted: resume it by running its command again"
UNFINISHED = {
    "running": "is still running: wait for its end",
    "paused": "was paused: resume it by running its command again",
    "failed": "failed: mend what status.json says and run its command again",
}


def load(
    path: str | os.PathLike[str],
    trust_code: bool = False,
    device: str | torch.device = "cpu",
    ensemble: bool = False,
) -> Model:
    """Load the model in `path`: the folder of a job or of a sweep, or an exported file.

    Of a sweep, it is the job with the best validation score of the recommended configuration; with
    `ensemble`, all jobs of that configuration, whose probabilities are averaged. A backbone or
    model of the user's own is only imported with `trust_code`. Raises InputError for anything that
    cannot be loaded, with the reason.
    """
    path = Path(os.path.abspath(os.path.expanduser(path)))
    if path.is_file():
        if ensemble or str(device) != "cpu":
            raise InputError(
                f"{printable(path)} is an exported file, which runs alone and on the CPU: leave "
                "out the ensemble and the device."
            )
        return load_exported(path, trust_code)
    if not path.exists():
        raise InputError(f"{printable(path)} does not exist.")
    if not (path / "sweep.json").is_file():
        if ensemble:
            raise InputError(f"{printable(path)}: an ensemble is of a sweep: name its folder.")
        return load_job(path, trust_code, device)
    chosen = choose_jobs(path)
    if not chosen.recommended:
        log.warning("%s has not decided: %s is the best so far.", printable(path), chosen.name)
    if ensemble:
        return average_models([load_job(folder, trust_code, device) for folder in chosen.folders])
    return load_job(chosen.folders[0], trust_code, device)


def load_job(folder: Path, trust_code: bool = False, device: str | torch.device = "cpu") -> Model:
    """The model of a finished job: its best weights, its way of reading images, its classes."""
    config, summary = _read_record(folder)
    classes = tuple(summary["classes"])
    backbone = _build_backbone(config, len(classes), folder, trust_code)
    network: nn.Module = _build_model(config, backbone, folder, trust_code)
    members = summary.get("combination", {}).get("members", 1)
    if members > 1:
        copies = [copy.deepcopy(network) for _ in range(members)]
        network = LogitEnsemble(copies)
        for number, member in enumerate(copies):
            load_weights(member, folder / member_weights(number), summary["best_epoch"])
    else:
        load_weights(network, folder / BEST_WEIGHTS, summary["best_epoch"])
    network.requires_grad_(False).eval()
    try:
        network.to(device)
    except (RuntimeError, AssertionError) as error:  # torch is built without it, or it is not here
        raise InputError(
            f"--device {device} must be cpu, or a device that torch finds here, such as cuda, "
            "cuda:1 or mps."
        ) from error
    device = next(network.parameters()).device  # cuda is the current GPU of this thread
    if config.get("channels_last"):
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    data = config["data"]
    reading = Reading(
        data["image_size"],
        data.get("max_megapixels", 100.0),
        data.get("white_point"),
        read_rules(config, summary),
    )
    warn_of_own_source(config, folder)
    temperature = _temperature(folder, summary)
    precision = (config.get("fabric") or {}).get("precision", "32-true")
    if precision != "32-true":
        log.warning(
            "%s was trained with precision %s; it predicts with 32-true.", folder, precision
        )
    return Model(
        classes=classes,
        reading=reading,
        run=torch_runner(network, temperature, device),
        temperature=temperature,
        batch_size=data.get("batch_size", 32),
        source=str(folder),
        make_card=lambda: _card(folder),
        summary=summary,
        network=network,
        # A network of the user's own may keep a state while it runs: one batch at a time.
        threads=None if trust_code else _threads(summary, device),
    )


def member_weights(number: int) -> str:
    """Where the weights of one member of a combined ensemble are, below its folder."""
    return f"checkpoints/member{number}.safetensors"


class LogitEnsemble(nn.Module):
    """The mean of several networks' logits."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits [N, classes] of pixels [N, 3, H, W], see `FineTuneModel.forward`."""
        return torch.stack([member(pixels) for member in self.members]).mean(0)


def start_weights(config: Mapping[str, Any], classes: int, trust_code: bool) -> dict[str, Tensor]:
    """The weights that a job's fine-tuning started from, with a new head; InputError without."""
    if (init_from := config["model"].get("init_from")) is not None:
        return safetensors.torch.load_file(find_weights(init_from))
    node = modern_node(config["backbone"])
    target = str(node.get("_target_"))
    if (checkpoint := node.get("checkpoint")) is not None:
        if backbone_content(node) != config.get("backbone_content"):
            raise InputError(f"backbone.checkpoint={checkpoint} has changed since the training.")
        backbone = _build_backbone(config, classes, Path(), trust_code)
        load_checkpoint(backbone.module, backbone.heads, checkpoint)
        return dict(FineTuneModel(backbone, 0.0).state_dict())
    if node.get("weights", True) is None or not node.get("pretrained", True):
        raise InputError("it started from random weights, which are not kept.")
    if target in BACKBONES:
        options = _options(node)
        backbone = BACKBONES[target][0](num_classes=classes, **options)
    else:
        backbone = _build_backbone(config, classes, Path(), trust_code)
    return dict(FineTuneModel(backbone, 0.0).state_dict())


def _read_record(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config and the summary of a finished job; InputError for anything else."""
    status, config = read_status(folder), read_json(folder / "config.json")
    shown = printable(folder)
    state = status.get("state")
    if state not in (None, "done"):
        words = INTERRUPTED if status["error"] in STOPPED else UNFINISHED.get(state, f"is {state}")
        raise InputError(f"{shown}: the job {words}.")
    if not status or not config:
        models = sorted(path.parent.name for path in folder.glob("*/status.json"))
        hint = f"It holds {', '.join(models)}: name one of these." if models else NO_JOB
        raise InputError(
            f"{shown} holds no job: it has no readable status.json and config.json. {hint}"
        )
    summary = read_json(folder / "summary.json")
    if missing := [key for key in ("classes", "best_epoch") if not summary.get(key)]:
        raise InputError(
            f"{shown}: summary.json does not say {' and '.join(missing)}: {_version_hint(summary)}"
        )
    if fault := _find_fault(config, summary):
        raise InputError(f"{shown}: {fault}: {_version_hint(summary)}")
    return config, summary


def _find_fault(config: Mapping[str, Any], summary: Mapping[str, Any]) -> str | None:
    """What keeps a record from being used; None if nothing does."""
    for key in ("data", "backbone", "model"):
        if not isinstance(config.get(key), dict):
            return f"config.json does not say {key}"
    for key, default in (("image_size", None), ("batch_size", 32)):
        value = config["data"].get(key, default)
        if not isinstance(value, int) or value < 1:
            return f"config.json does not say data.{key}, a whole number of at least 1"
    try:
        read_rules(config, summary)
    except InputError as error:
        return f"config.json: {str(error).rstrip('.')}"
    combination = summary.get("combination", {})
    if not isinstance(combination, dict) or not isinstance(combination.get("members", 1), int):
        return "summary.json does not say what was combined"
    return None


def _version_hint(summary: Mapping[str, Any]) -> str:
    versions = summary.get("versions")
    written = versions.get("tvf") if isinstance(versions, dict) else None
    own = library_versions().get("tvf")
    if written and written != own:
        return f"tvf {written} wrote it, this is {own}. Load it with that version."
    return "the file is damaged. Train the job again."


def _build_backbone(
    config: Mapping[str, Any], classes: int, folder: Path, trust_code: bool
) -> Backbone:
    node = modern_node(config.get("backbone") or {})
    target = str(node.get("_target_"))
    options = _options(node)
    if target in BACKBONES and not names_code(options):
        build, untrained = BACKBONES[target]
        if isinstance(given := options.get("options"), dict):  # timm's: no file to start from
            kept = {key: value for key, value in given.items() if key != "checkpoint_path"}
            options["options"] = kept
        try:
            return build(num_classes=classes, **options | untrained)
        except TypeError as error:  # an option that this version does not know
            raise InputError(f"{printable(folder)}: {error}: {_version_hint({})}") from error
    build = import_own(target, "backbone", folder, trust_code)
    if "checkpoint" in node and "checkpoint" in signature(build).parameters:
        options["checkpoint"] = node["checkpoint"]
    return build(num_classes=classes, **options)


def _options(backbone: Mapping[str, Any]) -> dict[str, Any]:
    """What the function of a backbone takes, of the node in a config, but for a checkpoint."""
    return {
        key: value
        for key, value in backbone.items()
        if not key.startswith("_") and key != "checkpoint"
    }


def _build_model(
    config: Mapping[str, Any], backbone: Backbone, folder: Path, trust_code: bool
) -> FineTuneModel:
    node = modern_node(config.get("model") or {})
    target = str(node.get("_target_"))
    if is_probe(node):
        return ProbeModel(backbone, config["data"]["image_size"])
    if target in OWN_MODELS:  # what trained does not matter any more
        return FineTuneModel(backbone, 0.0)
    options = {
        key: value for key, value in node.items() if not key.startswith("_") and key != "init_from"
    }
    return import_own(target, "model", folder, trust_code)(backbone=backbone, **options)


def _card(folder: Path) -> str:
    """The card that the sweep has written, or else one of what is known now."""
    from tvf.report import describe_job  # with the terminal's libraries

    try:
        return (folder / MODEL_CARD).read_text(encoding="utf-8")
    except OSError:
        return describe_job(folder)


def _threads(summary: Mapping[str, Any], device: torch.device) -> int | None:
    """The threads that a batch runs with on a CPU: those of the training, by default one."""
    if device.type != "cpu":
        return None
    machine = summary.get("machine")
    recorded = machine.get("threads") if isinstance(machine, dict) else None
    return recorded if isinstance(recorded, int) and recorded > 0 else 1


def _temperature(folder: Path, summary: Mapping[str, Any]) -> float:
    """The temperature in the job's record; fitted anew for jobs of earlier versions."""
    calibration = summary.get("calibration")
    if isinstance(calibration, dict):
        recorded = calibration.get("temperature")
        if isinstance(recorded, float) and math.isfinite(recorded) and recorded > 0:
            return recorded
    validation = read_predictions(folder).get("val")
    return 1.0 if validation is None else fit_temperature(validation.logits, validation.labels)
