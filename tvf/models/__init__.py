"""Pretrained backbones, their groups of layers, and the models that train some of them."""

from tvf.models.backbones import (
    Backbone,
    check_image_size,
    efficientnet_lite0,
    resnet,
    timm_backbone,
)
from tvf.models.batchnorm import (
    FROZEN_BN_OPTIONS,
    frozen_batchnorm,
    needs_batches,
    recalibrate_batchnorm,
)
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
    check_direction,
    check_fraction,
    check_group_names,
    check_patterns,
    check_selection,
    group_by_modules,
    preserve_freezing,
    tabulate_groups,
)
from tvf.models.weights import (
    check_not_own_weights,
    find_weights,
    is_readable,
    load_initial_weights,
    load_weights,
    save_weights,
)

__all__ = [
    "Backbone",
    "FROZEN_BN_OPTIONS",
    "FineTuneModel",
    "Group",
    "TransferModel",
    "UNITS",
    "check_direction",
    "check_dropout",
    "check_fraction",
    "check_group_names",
    "check_image_size",
    "check_not_own_weights",
    "check_patterns",
    "check_selection",
    "count_parameters",
    "describe_model",
    "efficientnet_lite0",
    "find_weights",
    "frozen_batchnorm",
    "group_by_modules",
    "is_readable",
    "load_initial_weights",
    "load_weights",
    "needs_batches",
    "preserve_freezing",
    "recalibrate_batchnorm",
    "resnet",
    "save_weights",
    "tabulate_groups",
    "timm_backbone",
]
