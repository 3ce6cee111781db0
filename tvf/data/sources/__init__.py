"""Data sources: each a class of options with `load() -> DataSplits`. A new one is a module here and a YAML in conf/data."""

from tvf.data.sources.base import DataSource
from tvf.data.sources.cifar10 import Cifar10
from tvf.data.sources.elpv import Elpv
from tvf.data.sources.image_folder import ImageFolder

__all__ = ["Cifar10", "DataSource", "Elpv", "ImageFolder"]
