"""Pretrained backbones, their groups of layers, and which of them train."""

from tvf.models.adapters import adapter_parameters, network_parameters
from tvf.models.backbones import (
    Backbone,
    efficientnet_lite0,
    efficientnet_lite1,
    efficientnet_lite2,
    import_timm,
    resnet,
    timm_backbone,
    torchvision_backbone,
)
from tvf.models.batchnorm import (
    FROZEN_BN_OPTIONS,
    has_state,
    needs_batches,
    recalibrate_batchnorm,
)
from tvf.models.bitfit import BitFitModel, NormModel
from tvf.models.checkpoint import check_checkpoint, load_checkpoint
from tvf.models.finetune import (
    FineTuneModel,
    TransferModel,
    check_dropout,
    count_parameters,
    describe_model,
)
from tvf.models.groups import (
    UNITS,
    Group,
    Selection,
    check_direction,
    check_fraction,
    check_group_names,
    check_patterns,
    check_selection,
    group_by_modules,
    is_below,
    preserve_freezing,
    tabulate_groups,
)
from tvf.models.lora import LoraModel, check_lora
from tvf.models.made_for import check_library_name, images_made_for
from tvf.models.network_check import check_network
from tvf.models.probe import ProbeModel, output_layers, pooled_dimensions
from tvf.models.ridge import Ridge, best_scale, column_spread, fit_ridge
from tvf.models.weights import (
    HeadFile,
    check_not_own_weights,
    find_weights,
    is_readable,
    is_tvf_file,
    load_initial_weights,
    load_weights,
    save_weights,
    shorten,
)

__all__ = [
    "Backbone",
    "BitFitModel",
    "FROZEN_BN_OPTIONS",
    "FineTuneModel",
    "Group",
    "HeadFile",
    "LoraModel",
    "NormModel",
    "ProbeModel",
    "Ridge",
    "Selection",
    "TransferModel",
    "UNITS",
    "adapter_parameters",
    "best_scale",
    "check_checkpoint",
    "check_direction",
    "check_dropout",
    "check_fraction",
    "check_group_names",
    "check_library_name",
    "check_lora",
    "check_network",
    "check_not_own_weights",
    "check_patterns",
    "check_selection",
    "column_spread",
    "count_parameters",
    "describe_model",
    "efficientnet_lite0",
    "efficientnet_lite1",
    "efficientnet_lite2",
    "find_weights",
    "fit_ridge",
    "group_by_modules",
    "has_state",
    "images_made_for",
    "import_timm",
    "is_below",
    "is_readable",
    "is_tvf_file",
    "load_checkpoint",
    "load_initial_weights",
    "load_weights",
    "needs_batches",
    "network_parameters",
    "output_layers",
    "pooled_dimensions",
    "preserve_freezing",
    "recalibrate_batchnorm",
    "resnet",
    "save_weights",
    "shorten",
    "tabulate_groups",
    "timm_backbone",
    "torchvision_backbone",
]
