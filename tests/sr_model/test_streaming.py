"""Strips of an image that go through the layers of a network give the same as the whole image."""

import weakref
from collections.abc import Generator, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sr_model.networks.inference import Residual
from sr_model.networks.settings import SCALES
from sr_model.networks.srresnet import SRResNet
from sr_model.streaming import can_stream, stream


def streamed(net: nn.Sequential, image: Tensor, rows: int, most: int) -> Tensor:
    height = image.shape[2]
    strips = (image[:, :, top : top + rows] for top in range(0, height, rows))
    return torch.cat(list(stream(net, height, strips, most)), dim=2)


def plain_network() -> nn.Sequential:
    """Layers in every order that needs other code: residuals in residuals and at the ends, activations alone."""
    torch.manual_seed(0)
    inner = Residual(nn.PReLU(), nn.Conv2d(4, 4, (5, 3), padding=(2, 1)), nn.Conv2d(4, 4, 1))
    return nn.Sequential(
        Residual(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.ReLU(), nn.Conv2d(5, 3, 3, padding=1)),
        nn.Conv2d(3, 4, 7, padding=3, bias=False),
        Residual(inner, nn.PReLU(4)),
        nn.PixelShuffle(2),
        nn.PReLU(1, init=-0.5),
        nn.Conv2d(1, 3, 3, padding=1),
        nn.ReLU(),
    ).requires_grad_(False)


@settings(max_examples=20)
@given(
    height=st.integers(1, 24), width=st.integers(1, 9), images=st.integers(1, 2), rows=st.integers(1, 25),
    most=st.sampled_from([1, 100, 10**6]),
)  # fmt: skip
def test_strips_equal_the_whole_image(height: int, width: int, images: int, rows: int, most: int) -> None:
    net = plain_network()
    assert can_stream(net)
    image = torch.rand(images, 3, height, width).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(streamed(net, image, rows, most), net(image), rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", SCALES)
def test_srresnet_is_computed_in_strips(scale: int) -> None:
    net = SRResNet(scale, channels=8, blocks=2, init="paper").eval()
    plain = net.for_inference()
    assert can_stream(plain)
    image = torch.rand(1, 3, 25, 13).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        torch.testing.assert_close(streamed(plain, image, 4, 3000), net(image), rtol=0, atol=1e-5)


def test_no_gradients_are_recorded_while_strips_are_computed() -> None:
    net = plain_network().requires_grad_(True)
    for strip in stream(net, 12, (torch.rand(1, 3, 4, 5) for _ in range(3)), 10**6):
        assert not strip.requires_grad
        assert torch.is_grad_enabled(), "the caller's code between two strips is as before"


def test_a_strip_is_kept_by_no_layer_that_is_done_with_it() -> None:
    net = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(6)), nn.PixelShuffle(2)).requires_grad_(False)
    strips: list[weakref.ref[Tensor]] = []
    ended: list[bool] = []

    def read() -> Iterator[Tensor]:
        try:
            for _ in range(30):
                strip = torch.rand(1, 4, 2, 5)
                strips.append(weakref.ref(strip))
                yield strip
                del strip
        finally:
            ended.append(True)

    made = stream(net, 60, read(), 40)
    assert isinstance(made, Generator)
    for _ in range(10):
        next(made)
        assert sum(strip() is not None for strip in strips) <= 1, "the source holds the last one"
    made.close()
    assert ended, "a stream that ends early closes its source"


def test_strips_are_asked_for_when_they_are_needed() -> None:
    """So neither the image nor the result is ever whole in memory."""
    net = SRResNet(2, channels=8, blocks=2, init="paper").eval().for_inference()
    given: list[int] = []

    def strips() -> Iterator[Tensor]:
        for top in range(0, 120, 4):
            given.append(top + 4)
            yield torch.rand(1, 3, 4, 8)

    made = 0
    for strip in stream(net, 120, strips(), 8 * 8 * 4):
        made += strip.shape[2] // 2
        assert given[-1] - made <= 4 + 14, "the result lags behind by more than the receptive field"
    assert made == 120


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 3, 3),
        nn.Conv2d(3, 3, 2, padding=1),
        nn.Conv2d(3, 3, 3, padding=1, stride=2),
        nn.Conv2d(3, 3, 3, padding=1, groups=3),
        nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"),
        nn.BatchNorm2d(3),
        Residual(nn.Upsample(scale_factor=2)),
    ],
    ids=str,
)
def test_other_layers_are_told_apart(layer: nn.Module) -> None:
    assert not can_stream(nn.Sequential(nn.ReLU(), layer))
    assert not can_stream(layer)
