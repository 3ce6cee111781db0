"""Groups that are found by running a network: a partition, in the order of the graph."""

import torch
from torch import Tensor, nn

from tvf.models.found_groups import find_groups, last_layer, use_order
from tvf.models.groups import check_groups


class Backwards(nn.Module):
    """Layers that run in another order than they are registered in, with a token and spare ones."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)
        self.body = nn.ModuleDict({name: nn.Linear(4, 4) for name in "cba"})
        self.norm = nn.BatchNorm1d(4)
        self.token = nn.Parameter(torch.zeros(4))
        self.spare = nn.Linear(4, 4)
        self.stem = nn.Linear(3, 4)

    def forward(self, images: Tensor) -> Tensor:
        values = self.stem(images.mean((2, 3))) + self.token
        for name in "abc":
            values = self.body[name](values)
        return self.head(self.norm(values))


EXAMPLE = torch.zeros(2, 3, 8, 8)


def test_groups_are_in_the_order_of_use_and_not_of_registration() -> None:
    network = Backwards()
    used = use_order(network, EXAMPLE)
    assert last_layer(network, used) == "head"
    groups = find_groups(network, ["head"], used)
    check_groups(network, groups, "head")
    # What no pass uses joins what was registered before it.
    names = [group.name for group in groups]
    assert names == ["body.c+norm+spare", "body.b", "body.a", "stem+token"]


def test_finding_them_changes_nothing() -> None:
    network = Backwards().train()
    network.body.eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    use_order(network, EXAMPLE)
    assert network.norm.training
    assert not network.body.training
    after = network.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_one_stage_that_holds_nearly_all_layers_is_divided() -> None:
    stages = nn.Sequential(nn.Linear(3, 4), nn.Sequential(*(nn.Linear(4, 4) for _ in range(9))))
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), stages, nn.Linear(4, 2))
    groups = find_groups(network, ["3"], use_order(network, EXAMPLE))
    assert [group.name for group in groups] == [*(f"2.1.{i}" for i in reversed(range(9))), "2.0"]


def test_stages_of_a_network_with_several_stay_whole() -> None:
    stage = [nn.Sequential(*(nn.Linear(4, 4) for _ in range(n))) for n in (2, 2, 9, 3)]
    network = nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4), *stage, nn.Linear(4, 2)
    )
    groups = find_groups(network, ["7"], use_order(network, EXAMPLE))
    assert [group.name for group in groups] == ["6", "5", "4", "3", "2"]
