import pytest
import torch

from sr_model.networks.srresnet import SCALES, SRResNet
from sr_model.tiling import tiles


def upscale(net: SRResNet, lr: torch.Tensor, tile: int) -> torch.Tensor:
    height, width = lr.shape[-2:]
    out = torch.full((1, 3, height * net.scale, width * net.scale), torch.nan)
    for top, left, sr in tiles(net, height, width, lambda rows, columns: lr[..., rows, columns], tile):
        out[..., top : top + sr.shape[-2], left : left + sr.shape[-1]] = sr
    return out


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("shape", [(40, 41), (61, 23), (20, 70)])
def test_tiled_equals_untiled(scale: int, shape: tuple[int, int]) -> None:
    net = SRResNet(scale, channels=8, blocks=2, init="paper").eval()
    lr = torch.rand(1, 3, *shape)
    torch.testing.assert_close(upscale(net, lr, tile=20), net(lr), rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", SCALES)
def test_the_overlap_covers_what_an_output_pixel_sees(scale: int) -> None:
    net = SRResNet(scale, channels=8, blocks=2, batch_norm=False, init="paper").double().eval()
    lr = torch.rand(1, 3, 1, 61, dtype=torch.float64, requires_grad=True)
    net(lr)[..., 0, 30 * scale : 31 * scale].sum().backward()
    assert lr.grad is not None
    seen = lr.grad.abs().sum(dim=(0, 1, 2)).nonzero().flatten()
    assert 30 - net.receptive_radius <= seen.min() <= seen.max() <= 30 + net.receptive_radius
