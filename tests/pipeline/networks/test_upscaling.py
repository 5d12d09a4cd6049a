"""Upscaling of images in memory: tiles, devices and TF32."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.networks.devices import tf32
from pipeline.networks.upscaling import tile_within, upscale, upscale_image
from sr_model.degrade import upscale_bicubic
from sr_model.metrics import compare
from sr_model.networks.srresnet import SRResNet
from sr_model.networks.super_resolver import SuperResolver
from sr_model.pixels import Pixels, to_pixels, to_tensor
from sr_model.tiling import TILE
from tests.conftest import random_image


class Nearest(SuperResolver):
    """Repeats pixels, and notes the flags of TF32 that it sees."""

    scale = 2
    receptive_radius = 1

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.seen: list[tuple[bool, str]] = []

    def forward(self, lr: Tensor) -> Tensor:
        self.seen.append((torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()))
        return self.gain * lr.repeat_interleave(2, 2).repeat_interleave(2, 3)

    def muon_weights(self) -> list[nn.Parameter]:
        return []


@pytest.fixture(params=[3, 1])
def image(request: pytest.FixtureRequest) -> Pixels:
    """An RGB and a grey image, which cannot be written to."""
    image = random_image(21, 34)[:, :, : request.param]
    image.flags.writeable = False
    return image


@pytest.mark.parametrize("tile", [8, 100])
def test_every_pixel_of_every_tile_has_its_place(image: Pixels, tile: int) -> None:
    assert np.array_equal(upscale_image(Nearest(), image, tile), image.repeat(2, 0).repeat(2, 1))


def test_a_tile_fits_the_memory_that_is_given() -> None:
    net = SRResNet(blocks=16)
    assert tile_within(net, None) == tile_within(net, 1e6) == TILE
    sides = [tile_within(net, memory_mb) for memory_mb in (1, 200, 400, 800, 1100)]
    assert sides == sorted(sides)
    assert sides[0] == 32
    assert sides[-1] == TILE


def test_arrays_and_tensors_give_the_same(image: Pixels) -> None:
    net = SRResNet(4, channels=8, blocks=1).eval()
    sr = upscale(net, to_tensor(image), tile=16)
    assert sr.dtype == torch.uint8
    assert np.array_equal(to_pixels(sr), upscale_image(net, image, tile=16))


def test_it_is_the_rounded_output_of_the_network(image: Pixels) -> None:
    net = SRResNet(4, channels=8, blocks=1, init="paper").eval()
    with torch.no_grad():
        unit = torch.from_numpy(np.repeat(image, 3 // image.shape[2], axis=2)).permute(2, 0, 1)[None] / 255
        output = net(unit.contiguous(memory_format=torch.channels_last))[0]
    expected = output if image.shape[2] == 3 else output.mean(0, keepdim=True)
    difference = to_tensor(upscale_image(net, image)) - expected * 255
    assert difference[(expected > 0) & (expected < 1)].abs().max() <= 0.5 + 1e-4


def test_tf32_is_off_while_a_network_upscales(image: Pixels) -> None:
    net = Nearest()
    with tf32(True):
        upscale_image(net, image, tile=16)
        assert torch.backends.cudnn.allow_tf32
    assert len(net.seen) == 6
    assert set(net.seen) == {(False, "highest")}


@pytest.mark.parametrize("channels", [3, 1])
def test_nothing_waits_for_the_device_or_leaves_it(channels: int) -> None:
    """On the meta device, reading a number and an operation with a tensor of another device raise errors."""
    with torch.device("meta"):
        net = SRResNet(4, channels=8, blocks=1).eval()
    lr, hr = (torch.zeros(channels, side, side, dtype=torch.uint8, device="meta") for side in (100, 400))
    sr = upscale(net, lr, tile=64)
    assert (sr.shape, sr.dtype, sr.device.type) == (hr.shape, torch.uint8, "meta")
    comparison = compare(sr, hr, border=4)
    assert comparison.sums.device.type == "meta"
    assert upscale_bicubic(lr, 4).device.type == "meta"
    with pytest.raises((RuntimeError, NotImplementedError)):
        comparison.score()
