import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sr_model.networks.settings import SCALES
from sr_model.networks.srresnet import SRResNet
from sr_model.tiling import spans, tiles


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


@given(length=st.integers(1, 60), side=st.integers(1, 70), margin=st.integers(0, 70))
def test_spans_divide_an_axis_and_see_a_margin(length: int, side: int, margin: int) -> None:
    axis = list(range(length))
    divided = spans(length, side, margin)
    assert [pixel for span in divided for pixel in axis[span.own]] == axis
    for span in divided:
        seen = set(axis[span.seen])
        own = axis[span.own]
        assert len(own) <= side
        assert seen == {near for pixel in own for near in axis if abs(near - pixel) <= margin}
        enlarged = [pixel for pixel in axis[span.seen] for _ in range(3)]
        assert enlarged[span.kept(3)] == [pixel for pixel in own for _ in range(3)]


@pytest.mark.parametrize("scale", SCALES)
def test_the_overlap_covers_what_an_output_pixel_sees(scale: int) -> None:
    net = SRResNet(scale, channels=8, blocks=2, batch_norm=False, init="paper").double().eval()
    lr = torch.rand(1, 3, 1, 61, dtype=torch.float64, requires_grad=True)
    net(lr)[..., 0, 30 * scale : 31 * scale].sum().backward()
    assert lr.grad is not None
    seen = lr.grad.abs().sum(dim=(0, 1, 2)).nonzero().flatten()
    assert 30 - net.receptive_radius <= seen.min() <= seen.max() <= 30 + net.receptive_radius
