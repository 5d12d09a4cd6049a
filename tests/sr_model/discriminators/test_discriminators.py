import pytest
import torch

from sr_model.discriminators import DISCRIMINATORS
from sr_model.discriminators.paper import PaperDiscriminator
from sr_model.discriminators.patch import PatchDiscriminator
from sr_model.discriminators.settings import PaperSettings, PatchSettings
from sr_model.discriminators.spectral import SpectralConv2d, update_norms


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_every_discriminator_returns_logits_of_each_image_and_moves(name: str) -> None:
    kind = DISCRIMINATORS[name]
    settings = kind.settings(channels=8)  # type: ignore[call-arg]
    side = 2 * kind.stride(settings)
    torch.manual_seed(0)
    net = kind.build(settings, side)
    logits = net(torch.rand(3, 3, side, side))
    assert logits.shape[0] == 3
    assert logits.ndim == 2
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_the_papers_discriminator_has_its_number_of_weights() -> None:
    with torch.device("meta"):
        net = PaperDiscriminator(PaperSettings(), 96)
    assert sum(parameter.numel() for parameter in net.parameters()) == 23_563_649


def test_a_patch_discriminator_judges_parts_of_38_pixels() -> None:
    torch.manual_seed(0)
    net = PatchDiscriminator(PatchSettings(channels=8))
    images = torch.rand(1, 3, 96, 96, requires_grad=True)
    logits = net(images)
    assert logits.shape == (1, 144)
    (gradient,) = torch.autograd.grad(logits[0, 6 * 12 + 6], images)
    rows = gradient.abs().sum((0, 1, 3)).nonzero().flatten()
    assert int(rows[-1] - rows[0]) + 1 == 38


def test_the_estimated_spectral_norm_follows_the_weights() -> None:
    torch.manual_seed(0)
    net = PatchDiscriminator(PatchSettings(channels=8))
    convolution = next(module for module in net.modules() if isinstance(module, SpectralConv2d))
    with torch.no_grad():
        convolution.weight.mul_(3).add_(torch.randn_like(convolution.weight) / 20)
    for _ in range(100):
        update_norms(net)
    x = torch.randn(2, 8, 12, 12)
    largest = torch.linalg.matrix_norm(convolution.weight.flatten(1), 2)
    expected = torch.nn.functional.conv2d(x, convolution.weight / largest, convolution.bias, stride=2, padding=1)
    torch.testing.assert_close(convolution(x), expected, rtol=1e-3, atol=1e-4)
    before = convolution.left.clone()
    convolution(x)
    assert torch.equal(convolution.left, before)  # a forward pass changes nothing
