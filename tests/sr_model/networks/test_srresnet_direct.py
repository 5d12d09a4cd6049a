import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sr_model.networks import from_weights
from sr_model.networks.settings import SCALES
from sr_model.networks.srresnet_direct import SRResNetDirect
from tests.sr_model.networks.promises import check_radius, check_untrained


def as_described(net: SRResNetDirect, lr: Tensor) -> Tensor:
    """The network as its docstring describes it, from its weights alone."""
    weights = net.state_dict()

    def conv(name: str, x: Tensor) -> Tensor:
        weight = weights[f"{name}.weight"]
        return F.conv2d(x, weight, weights[f"{name}.bias"], padding=weight.shape[-1] // 2)

    y = x = F.prelu(conv("conv_first", lr), weights["act_first.weight"])
    for block in range(len(net.body)):
        inner = F.prelu(conv(f"body.{block}.conv1", y), weights[f"body.{block}.act.weight"])
        y = y + conv(f"body.{block}.conv2", inner)
    return F.pixel_shuffle(conv("conv_last", x + conv("conv_body", y)), net.scale)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("scale", SCALES)
def test_output_and_gradients_equal_the_described_form(scale: int, recompute: bool) -> None:
    torch.manual_seed(0)
    net = SRResNetDirect(scale, channels=8, blocks=2).double()
    net.recompute = recompute
    lr = torch.rand(2, 3, 7, 10, dtype=torch.float64)
    output = net(lr)
    assert output.shape == (2, 3, 7 * scale, 10 * scale)
    names, parameters = zip(*net.named_parameters(), strict=True)
    gradients = torch.autograd.grad(output.square().sum(), parameters)
    plain = net.state_dict(keep_vars=True)
    net.state_dict = lambda: plain  # type: ignore[method-assign, assignment]
    expected = as_described(net, lr)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
    references = torch.autograd.grad(expected.square().sum(), [plain[name] for name in names])
    for own, reference in zip(gradients, references, strict=True):
        torch.testing.assert_close(own, reference, rtol=1e-9, atol=1e-9)


def test_has_the_described_size() -> None:
    assert sum(p.numel() for p in SRResNetDirect().parameters()) == 1_261_953
    hidden = SRResNetDirect(blocks=3).muon_weights()
    assert len(hidden) == 2 * 3 + 1
    assert all(weight.shape == (64, 64, 3, 3) for weight in hidden)


def test_refuses_an_unknown_scale() -> None:
    with pytest.raises(ValueError, match=r"scale is 5, expected one of \(2, 3, 4, 8\)"):
        SRResNetDirect(5)


@pytest.mark.parametrize("scale", SCALES)
def test_output_depends_on_no_pixel_beyond_the_radius(scale: int) -> None:
    torch.manual_seed(0)
    net = SRResNetDirect(scale, channels=4, blocks=1).double()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter)
    assert check_radius(net)[..., 1, :].abs().max() > 0


@pytest.mark.parametrize("scale", SCALES)
def test_starts_as_an_upsampler(scale: int) -> None:
    torch.manual_seed(0)
    net = SRResNetDirect(scale, channels=16, blocks=2)
    check_untrained(net)


def test_is_recognised_by_its_weights() -> None:
    net = SRResNetDirect(3, channels=8, blocks=2)
    found = from_weights(net.state_dict())
    assert isinstance(found, SRResNetDirect)
    assert (found.scale, found.receptive_radius) == (3, net.receptive_radius)
    lr = torch.rand(1, 3, 8, 9)
    torch.testing.assert_close(found(lr), net(lr), rtol=0, atol=0)
    with pytest.raises(ValueError, match="not those of SRResNet-direct"):
        from_weights({**net.state_dict(), "conv_last.weight": torch.zeros(5 * 5 * 3, 8, 3, 3)})
