"""The form of a network that only computes."""

import pytest
import torch
from torch import nn

from sr_model.networks import ARCHITECTURES
from sr_model.networks.super_resolver import SuperResolver
from tests.toys.network import ARCHITECTURE as TOY
from tests.toys.network import ToySettings


def trained(net: SuperResolver) -> SuperResolver:
    """Give BatchNorm statistics and gains as a training does, and PReLU slopes that differ."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.1, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
        if isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, -0.5, 0.5)
    return net.eval()


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != TOY.name])
def test_it_computes_the_same(name: str, scale: int) -> None:
    torch.manual_seed(0)
    kind = ARCHITECTURES[name]
    if scale not in kind.scales:
        pytest.skip(f"{name} has no scale {scale}")
    small = {key: value for key, value in {"channels": 8, "blocks": 2}.items() if key in kind.settings.model_fields}
    net = trained(kind.build(scale, kind.settings.model_validate(small))).double()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    plain = net.for_inference()
    lr = torch.rand(2, 3 + net.noise_channels, 11, 14, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(plain(lr), net(lr), rtol=0, atol=1e-12)
    assert not plain.training
    assert not any(isinstance(module, nn.BatchNorm2d) for module in plain.modules())
    assert not any(parameter.requires_grad for parameter in plain.parameters())
    own = {tensor.data_ptr() for tensor in net.state_dict().values()}
    assert own.isdisjoint(tensor.data_ptr() for tensor in plain.state_dict().values())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_a_network_of_other_layers_is_copied() -> None:
    net = TOY.build(2, ToySettings()).train()
    plain = net.for_inference()
    lr = torch.rand(1, 3, 6, 7)
    with torch.no_grad():
        assert torch.equal(plain(lr), net(lr))
    assert net.training
    assert not plain.training
