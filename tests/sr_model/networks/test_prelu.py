import pytest
import torch
from torch import Tensor, nn

from sr_model.networks.prelu import SharedPReLU


def _gradients(activation: nn.PReLU, x: Tensor, outward: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = x.clone().requires_grad_()
    y = activation(x)
    y.backward(outward)
    assert x.grad is not None
    assert activation.weight.grad is not None
    return y.detach(), x.grad, activation.weight.grad


@pytest.mark.parametrize("slope", [0.25, -0.5, 0.0, 1.5])
def test_output_and_gradients_are_those_of_torchs_prelu(slope: float) -> None:
    torch.manual_seed(0)
    x, outward = torch.randn(2, 6, 5, 4), torch.randn(2, 6, 5, 4)
    x[0, 0] = 0
    ours, theirs = SharedPReLU(), nn.PReLU()
    for activation in (ours, theirs):
        nn.init.constant_(activation.weight, slope)
    for own, expected in zip(_gradients(ours, x, outward), _gradients(theirs, x, outward), strict=True):
        torch.testing.assert_close(own, expected)
    assert ours.eval()(x).equal(theirs(x))


def test_the_gradient_of_the_slope_is_summed_in_fp32_under_autocast() -> None:
    torch.manual_seed(0)
    x, outward = torch.randn(8, 16, 24, 24).bfloat16(), torch.rand(8, 16, 24, 24).bfloat16()
    exact = (outward.double() * x.double().clamp(max=0)).sum()
    with torch.autocast("cpu", torch.bfloat16):
        slope = _gradients(SharedPReLU(), x, outward)[2]
    assert slope.dtype == torch.float32
    torch.testing.assert_close(slope.double().squeeze(), exact, rtol=1e-4, atol=0)
