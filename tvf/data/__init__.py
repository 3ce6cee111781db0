"""Labelled images in three splits, augmented views of them, and the order they are trained in."""

from tvf.data.augment import (
    Augmentation,
    FlipsAndCrops,
    TorchvisionTransforms,
    ViewRows,
    require_plain_variant,
)
from tvf.data.bad_images import CANNOT_BE_READ, REPAIR, count_by_reason, without_pillow_limit
from tvf.data.changes import describe_pool
from tvf.data.decoded import ImageFiles
from tvf.data.digests import digest_file
from tvf.data.entries import is_image, is_system, kind_of_ending
from tvf.data.images import convert_image, read_image
from tvf.data.left_out import ENDING, LeftOut, Tally, describe_left_out, is_usual
from tvf.data.order import sample_order, split_batches
from tvf.data.percentiles import parse_percentiles
from tvf.data.pool import (
    Catalog,
    DataSplits,
    Pixels,
    Pool,
    Split,
    count_images,
    describe_classes,
    describe_images,
)
from tvf.data.rules import ReadingRules
from tvf.data.sources import Cifar10, DataSource, Elpv, HfDataset, ImageFolder, ImageTable
from tvf.data.splits import SplitOptions

__all__ = [
    "Augmentation",
    "CANNOT_BE_READ",
    "Catalog",
    "Cifar10",
    "DataSource",
    "DataSplits",
    "ENDING",
    "Elpv",
    "FlipsAndCrops",
    "HfDataset",
    "ImageFiles",
    "ImageFolder",
    "ImageTable",
    "LeftOut",
    "Pixels",
    "Pool",
    "REPAIR",
    "ReadingRules",
    "Split",
    "SplitOptions",
    "Tally",
    "TorchvisionTransforms",
    "ViewRows",
    "convert_image",
    "count_by_reason",
    "count_images",
    "describe_classes",
    "describe_images",
    "describe_left_out",
    "describe_pool",
    "digest_file",
    "is_image",
    "is_system",
    "is_usual",
    "kind_of_ending",
    "parse_percentiles",
    "read_image",
    "require_plain_variant",
    "sample_order",
    "split_batches",
    "without_pillow_limit",
]
