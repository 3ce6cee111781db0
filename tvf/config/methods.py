"""How each of tvf's models trains the groups that it selects: names for jobs, tables and messages.

The one place that knows all of them, by the `_target_` of the node `model`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]

# The options that select which layers train. Transfer learning ignores all of them; a selection by
# name ignores the fraction.
SELECTION = ("pct_unfreeze", "unit", "direction", "groups", "train")
FRACTION = ("pct_unfreeze", "unit")
# The options of LoRA, which other models ignore.
ADAPTERS = ("rank", "alpha", "dropout", "layers")
# Options of the optimizer, null by default, which a model that trains the head alone ignores.
OF_BACKBONE = ("l2_sp", "layer_decay")
# Those of weights that train themselves, which LoRA ignores.
OF_WEIGHTS = ("l2_sp",)


@dataclass(frozen=True)
class Method:
    """One of tvf's models: the option `model=choice`, and the start of its jobs' names.

    `label` follows the fraction where configurations are named, `how` says how the groups train;
    both are empty if they train as a whole.
    """

    choice: str
    job: str
    label: str = ""
    how: str = ""


FINETUNE = Method("finetune", "fine-tuning")
TRANSFER = Method("transfer", "transfer-learning")
PROBE = Method("probe", "probe", "with a probe of all depths")
METHODS = {
    "tvf.models.FineTuneModel": FINETUNE,
    "tvf.models.TransferModel": TRANSFER,
    "tvf.models.LoraModel": Method("lora", "lora", "with LoRA", "by low-rank adapters (LoRA)"),
    "tvf.models.BitFitModel": Method("bitfit", "bitfit", "with BitFit", "by their biases alone"),
    "tvf.models.NormModel": Method(
        "norm", "norm", "with normalisation alone", "by their normalisation layers alone"
    ),
    "tvf.models.ProbeModel": PROBE,
}
OWN_MODELS = tuple(METHODS)


def is_transfer(model: Config) -> bool:
    """Whether the node `model` trains the head alone, and so ignores SELECTION."""
    return method_of(model) in (TRANSFER, PROBE)


def is_probe(model: Config) -> bool:
    """Whether the node `model` is a probe, whose head reads all depths of a frozen network."""
    return method_of(model) == PROBE


def is_lora(model: Config) -> bool:
    """Whether the node `model` is LoRA, the only one of tvf's models with adapters."""
    return method_of(model).choice == "lora"


def ignores_adapters(model: Config) -> bool:
    """Whether the node `model` ignores ADAPTERS, as LoRA does at fraction 0.

    A user's own class may have such options.
    """
    none = model.get("groups") is None and model.get("pct_unfreeze") == 0
    return str(model["_target_"]) in METHODS and (none or not is_lora(model))


def refuses_names(model: Config) -> bool:
    """Whether the node `model` decides which parameters train: `train` must be null."""
    return bool(method_of(model).how)


def method_of(model: Config) -> Method:
    """The method of the node `model`; a class of the user's own counts as fine-tuning."""
    target = str(model.get("_target_"))
    return METHODS.get(target, TRANSFER if target.endswith("TransferModel") else FINETUNE)
