"""tvf: how much of a pretrained vision network should train?

The public Python API. Names load on first use, so `import tvf` imports no other library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tvf.errors import InputError as InputError
    from tvf.inference import Model as Model
    from tvf.inference import load as load
    from tvf.models import Backbone as Backbone
    from tvf.models import FineTuneModel as FineTuneModel
    from tvf.models import Group as Group
    from tvf.models import group_by_modules as group_by_modules

__version__ = "0.1.0"
_ROOMS = {
    "Backbone": "models",
    "FineTuneModel": "models",
    "Group": "models",
    "InputError": "errors",
    "Model": "inference",
    "group_by_modules": "models",
    "load": "inference",
}
__all__ = ["Backbone", "FineTuneModel", "Group", "InputError", "Model", "group_by_modules", "load"]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"tvf.{_ROOMS[name]}"), name)
