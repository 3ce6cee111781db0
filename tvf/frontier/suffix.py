"""The layers after the frontier, as a module of activations."""

from lightning_fabric import Fabric
from torch import Tensor, fx, nn


class Suffix(nn.Module):
    """Logits from activations, by `layers` that it shares with the network.

    Like a module that Fabric set up, except that activations keep their dtype: Fabric would round
    float32 inputs under mixed precision.
    """

    def __init__(self, fabric: Fabric, layers: fx.GraphModule) -> None:
        super().__init__()
        self.layers, self._fabric = layers, fabric

    def forward(self, *activations: Tensor) -> Tensor:
        """Return logits."""
        with self._fabric.autocast():
            return self._fabric.strategy.precision.convert_output(self.layers(*activations))

    def find_linear(self) -> nn.Linear | None:
        """The only layer, if it is a linear layer that computes in float32."""
        nodes = [*self.layers.graph.nodes]
        exact = self._fabric.strategy.precision.precision == "32-true"
        if [node.op for node in nodes] != ["placeholder", "call_module", "output"] or not exact:
            return None
        layer = self.layers.get_submodule(str(nodes[1].target))
        return layer if type(layer) is nn.Linear else None
