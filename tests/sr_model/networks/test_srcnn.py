"""SRCNN: its interpolation, size, start, and what its weights say."""

import pytest
import torch
import torch.nn.functional as F
from skimage import data
from torch import Tensor

from sr_model.degrade import downscale, imresize, upscale_bicubic
from sr_model.metrics import luma, psnr
from sr_model.networks import from_weights
from sr_model.networks.settings import SCALES, SRCNNSettings
from sr_model.networks.srcnn import SRCNN
from sr_model.networks.upsampling import Bicubic
from sr_model.tiling import tiles
from tests.sr_model.networks.promises import check_radius


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 5)])
def test_the_first_layer_is_matlabs_bicubic(scale: int, size: tuple[int, int]) -> None:
    lr = torch.rand(2, 3, *size, dtype=torch.float64)
    expected = imresize(lr, (size[0] * scale, size[1] * scale))
    torch.testing.assert_close(Bicubic(scale).double()(lr), expected, rtol=0, atol=1e-6)


def test_the_interpolation_stays_exact_under_autocast() -> None:
    lr, layer = torch.rand(1, 3, 6, 6), Bicubic(4)
    expected = layer(lr)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(lr), expected)


def as_published(net: SRCNN, image: Tensor) -> Tensor:
    """The paper's three layers, from the weights alone."""
    weights = net.state_dict()
    for layer in ("conv1", "conv2", "conv3"):
        weight = weights[f"{layer}.weight"]
        image = F.conv2d(image, weight, weights[f"{layer}.bias"], padding=weight.shape[-1] // 2)
        image = image if layer == "conv3" else image.clamp(min=0)
    return image


@pytest.mark.parametrize("kernels", ["9-5-5", "9-1-5"])
def test_equals_the_published_form(kernels: str) -> None:
    net = SRCNN(4, kernels, channels=8).double()  # type: ignore[arg-type]
    lr = torch.rand(2, 3, 7, 10, dtype=torch.float64)
    enlarged = imresize(lr, (28, 40))
    torch.testing.assert_close(net(lr), as_published(net, enlarged), rtol=0, atol=1e-6)


def test_luma_is_mapped_and_colours_are_interpolated() -> None:
    net = SRCNN(2, colour="y", channels=8).double()
    lr = torch.rand(1, 3, 8, 9, dtype=torch.float64)
    enlarged, sr = imresize(lr, (16, 18)), net(lr)
    weights = torch.tensor([65.481, 128.553, 24.966], dtype=torch.float64).view(1, 3, 1, 1)
    y = (enlarged * weights).sum(1, keepdim=True) / 219
    torch.testing.assert_close((sr * weights).sum(1, keepdim=True) / 219, as_published(net, y), rtol=0, atol=1e-6)
    for one, other in ((0, 1), (1, 2)):  # the differences of the channels are the colours
        torch.testing.assert_close(sr[:, one] - sr[:, other], enlarged[:, one] - enlarged[:, other], rtol=0, atol=1e-6)


def test_has_the_published_sizes() -> None:
    """Dong et al. 2015 state 8,032 and 57,184 weights without biases for one channel."""
    sizes = {("9-1-5", "y"): 8_129, ("9-5-5", "y"): 57_281, ("9-1-5", "rgb"): 20_099, ("9-5-5", "rgb"): 69_251}
    for (kernels, colour), size in sizes.items():
        net = SRCNN(4, kernels, colour)  # type: ignore[arg-type]
        assert sum(p.numel() for p in net.parameters()) == size


@pytest.mark.parametrize(("scale", "colour"), [(2, "y"), (4, "rgb"), (4, "y")])
def test_starts_as_bicubic_interpolation(scale: int, colour: str) -> None:
    torch.manual_seed(0)
    net = SRCNN(scale, colour=colour)  # type: ignore[arg-type]
    hr = torch.from_numpy(data.chelsea()[:288, :432]).permute(2, 0, 1)
    lr = downscale(hr, scale)
    with torch.no_grad():
        sr = net(lr[None] / 255)[0].mul(255).round().clamp(0, 255)
    inside = (..., slice(16, -16), slice(16, -16))
    bicubic = psnr(luma(upscale_bicubic(lr, scale))[inside], luma(hr)[inside])
    assert psnr(luma(sr)[inside], luma(hr)[inside]) > bicubic - 0.5


@pytest.mark.parametrize("kernels", ["9-5-5", "9-1-5"])
@pytest.mark.parametrize("scale", SCALES)
def test_output_depends_on_no_pixel_beyond_the_radius(scale: int, kernels: str) -> None:
    torch.manual_seed(0)
    net = SRCNN(scale, kernels, channels=8).double()  # type: ignore[arg-type]
    check_radius(net)


@pytest.mark.parametrize("scale", SCALES)
def test_tiles_equal_the_whole_image(scale: int) -> None:
    """Also at the borders, where the interpolation mirrors the image."""
    torch.manual_seed(0)
    net = SRCNN(scale, channels=8).eval()
    lr = torch.rand(1, 3, 21, 34)
    with torch.no_grad():
        whole = net(lr)
    found = torch.full_like(whole, torch.nan)
    for top, left, part in tiles(net, 21, 34, lambda rows, columns: lr[:, :, rows, columns], tile=8):
        found[:, :, top : top + part.shape[2], left : left + part.shape[3]] = part
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("colour", ["rgb", "y"])
def test_is_recognised_by_its_weights(colour: str) -> None:
    net = SRCNN(3, "9-1-5", colour, channels=8)  # type: ignore[arg-type]
    for dtype, difference in ((torch.float32, 0), (torch.float16, 2e-3)):
        weights = {k: v.to(dtype) if v.is_floating_point() else v for k, v in net.state_dict().items()}
        found = from_weights(weights)
        assert isinstance(found, SRCNN)
        assert found.scale == 3
        lr = torch.rand(1, 3, 8, 9)
        torch.testing.assert_close(found(lr), net(lr), rtol=0, atol=difference)
    for damaged in ({"scale_factor": torch.tensor(5)}, {"conv2.weight": torch.zeros(4, 8, 3, 3)}):
        with pytest.raises(ValueError, match="the weights are not those of SRCNN: "):
            from_weights({**net.state_dict(), **damaged})


def test_variants_have_labels_of_their_own() -> None:
    assert SRCNNSettings().label == "srcnn-9-5-5-rgb"
    assert SRCNNSettings(kernels="9-1-5", colour="y").label == "srcnn-9-1-5-y"
