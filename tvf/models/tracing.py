"""The torch.fx graph of a network, in which some layers stay single nodes."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

Calls = dict[nn.Module, tuple[tuple[Any, ...], Any]]  # inputs and output by layer


class TraceError(ValueError):
    """The network cannot be split; the message says why. It still trains as a whole."""


def trace_graph(model: nn.Module, calls: Calls | None = None) -> fx.Graph:
    """Return the graph of `model` in its current mode.

    BatchNorm layers, and modules that timm marks as untraceable, are single nodes. `calls`, if
    given, gets the inputs and the output of each layer's last call, in the order of these calls.
    Raises TraceError.
    """
    own = [(layer, dict(vars(layer)), dict(layer._buffers)) for layer in model.modules()]
    try:
        return _Tracer({} if calls is None else calls).trace(model)
    except Exception as error:  # a network's code can do anything with symbolic values
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TraceError(f"torch.fx cannot trace the network: {reason}") from error
    finally:  # code that assigns to its own attributes has assigned symbols
        for layer, attributes, buffers in own:
            vars(layer).update(attributes)
            layer._buffers.update(buffers)


class _Tracer(fx.Tracer):
    def __init__(self, calls: Calls) -> None:
        super().__init__(autowrap_functions=tuple(_timm_functions()))
        self._calls = calls

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        output = super().call_module(m, forward, args, kwargs)
        self._calls.pop(m, None)
        self._calls[m] = args, output
        return output

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # BatchNorm stays one node: its mode is read off the layer, and depends on what is frozen.
        leaf = isinstance(m, (_BatchNorm, *_timm_modules()))
        return leaf or super().is_leaf_module(m, module_qualified_name)


def _timm_modules() -> Sequence[type[nn.Module]]:
    timm = sys.modules.get("timm.layers")
    return tuple(timm.get_notrace_modules()) if timm else ()


def _timm_functions() -> Sequence[Callable[..., Any]]:
    timm = sys.modules.get("timm.layers")
    return tuple(f for f in timm.get_notrace_functions() if callable(f)) if timm else ()
