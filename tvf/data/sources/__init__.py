"""Data sources: each is a frozen dataclass of options that lists its images.

To add one:
1. write a module here with a subclass of `DataSource` (see base.py) and export it below;
2. add `conf/data/<name>.yaml` with its `_target_` and its options, on top of `conf/_data.yaml`;
3. add a row for each new option in `tvf/config/identity.py`: what the option affects.
"""

from tvf.data.sources.base import DataSource
from tvf.data.sources.cifar10 import Cifar10
from tvf.data.sources.elpv import Elpv
from tvf.data.sources.hf import HfDataset
from tvf.data.sources.image_folder import ImageFolder
from tvf.data.sources.image_table import ImageTable

__all__ = ["Cifar10", "DataSource", "Elpv", "HfDataset", "ImageFolder", "ImageTable"]
