"""All that enlarges images has one interface."""

import subprocess
import sys
from itertools import product

import pytest
import torch
from torch import Tensor

from pipeline.networks import engine
from pipeline.networks.engine import Engine, Precision
from pipeline.networks.loading import load_upscaler
from pipeline.networks.sources import find_model
from pipeline.networks.upscalers import BicubicUpscaler, NetworkUpscaler, SelfEnsemble, Upscaler
from pipeline.settings import UserError
from sr_model.degrade import imresize, upscale_bicubic
from sr_model.networks.srresnet import SRResNet
from sr_model.networks.super_resolver import SuperResolver
from tests.conftest import ROOT, random_image
from tests.toys.network import ARCHITECTURE as TOY
from tests.toys.network import ToySettings

SMALL = SRResNet(4, channels=8, blocks=2, init="upsampler").eval()


def image(channels: int = 3, dtype: torch.dtype = torch.uint8, height: int = 30, width: int = 41) -> Tensor:
    """A smooth image with values in the whole range of the type."""
    coarse = torch.from_numpy(random_image(height // 6 + 1, width // 6 + 1)).permute(2, 0, 1)[:channels]
    smooth = imresize(coarse, (height, width)).clamp(0, 255) / 255
    return smooth.mul(torch.iinfo(dtype).max).round().to(dtype)


def exact(net: SuperResolver, lr: Tensor) -> Tensor:
    """Return the output of a network for an image, in its range, before it is rounded."""
    with torch.no_grad():
        sr: Tensor = net((lr.float() / torch.iinfo(lr.dtype).max).expand(3, -1, -1)[None])[0]
    return (sr if len(lr) == 3 else sr.mean(0, keepdim=True)).mul(torch.iinfo(lr.dtype).max)


@pytest.mark.parametrize("tile", [None, 16])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16], ids=str)
@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("net", [SMALL, TOY.build(3, ToySettings()).eval()], ids=["strips", "tiles"])
def test_it_is_the_rounded_output_of_the_network(
    net: SuperResolver, channels: int, dtype: torch.dtype, tile: int | None
) -> None:
    lr = image(channels, dtype)
    told: list[tuple[int, int]] = []
    sr = NetworkUpscaler(net, "fp32", tile).enlarge(lr, lambda done, total: told.append((done, total)))
    assert (sr.shape, sr.dtype) == ((channels, 30 * net.scale, 41 * net.scale), dtype)
    expected = exact(net, lr).clamp(0, torch.iinfo(dtype).max)
    assert (sr.float() - expected).abs().max() <= 0.5 + 2e-6 * torch.iinfo(dtype).max  # sums in fp32
    assert told == sorted(set(told))
    assert told[-1] == (sr[0].numel(), sr[0].numel())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_changes_an_image_by_less_than_eyes_see(precision: Precision) -> None:
    lr, wide = image(), image(dtype=torch.uint16)
    half, whole = NetworkUpscaler(SMALL, precision), NetworkUpscaler(SMALL, "fp32")
    assert (half.precision, whole.precision) == (precision, "fp32")
    difference = half.enlarge(lr).float() - whole.enlarge(lr).float()
    assert 0 < difference.square().mean() < 0.5
    assert torch.equal(half.enlarge(wide), whole.enlarge(wide)), "images of 16 bits are computed in fp32"


def test_values_beyond_fp16_are_computed_in_fp32() -> None:
    """The features of the lower half of the image exceed 65504, and only there fp32 takes over."""
    net = SRResNet(2, channels=8, blocks=1, init="upsampler").eval()
    with torch.no_grad():
        for weight, factor in ((net.conv_first.weight, 1e5), (net.conv_last.weight, 1e-5)):
            weight.mul_(factor)
    lr = torch.full((3, 400, 16), 200, dtype=torch.uint8)
    lr[:, :200] = 0
    sr = NetworkUpscaler(net, "fp16").enlarge(lr)
    assert (sr.float() - NetworkUpscaler(net, "fp32").enlarge(lr).float()).abs().max() <= 1


def test_auto_takes_half_precision_only_if_it_suffices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Engine(SMALL).precision in ("bf16", "fp32")
    monkeypatch.setattr(engine, "has_bf16", lambda device: True)
    assert Engine(SMALL).precision == "bf16"
    coarse = SRResNet(4, channels=8, blocks=2, init="upsampler").eval()
    with torch.no_grad():  # large features that cancel out
        assert coarse.conv_first.bias is not None
        assert coarse.conv_last.bias is not None
        coarse.conv_first.bias[:3] += 1e3
        coarse.conv_last.bias.sub_(1e3)
    assert Engine(coarse).precision == "fp32"
    monkeypatch.setattr(engine, "has_bf16", lambda device: False)
    assert Engine(SMALL).precision == "fp32"


def test_images_of_one_size_can_be_enlarged_together() -> None:
    for channels, dtype in product((3, 1), (torch.uint8, torch.uint16)):
        lrs = [image(channels, dtype), image(channels, dtype)[:, :, ::2].repeat_interleave(2, 2)[:, :, :41]]
        for upscaler in (NetworkUpscaler(SMALL, "fp32"), BicubicUpscaler(3)):
            for one, together in zip(map(upscaler.enlarge, lrs), upscaler.enlarge_several(lrs), strict=True):
                assert together.dtype == dtype
                assert (one.float() - together.float()).abs().max() <= 1


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_bicubic_equals_the_whole_image(scale: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lr = torch.from_numpy(random_image(31, 19)).permute(2, 0, 1)
    whole = upscale_bicubic(lr, scale)
    for strip in (1, 10**9):
        monkeypatch.setattr("pipeline.networks.upscalers._BICUBIC_STRIP", strip)
        assert torch.equal(BicubicUpscaler(scale).enlarge(lr), whole)
    wide = BicubicUpscaler(scale).enlarge(lr.int().mul(257).to(torch.uint16))
    exact = imresize(lr, (31 * scale, 19 * scale)).mul(257).clamp(0, 65535)
    assert (wide.double() - exact).abs().max() <= 0.5 + 1e-9


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16], ids=str)
@pytest.mark.parametrize("channels", [3, 1])
def test_self_ensemble_averages_eight_orientations(channels: int, dtype: torch.dtype) -> None:
    lr, largest = image(channels, dtype), torch.iinfo(dtype).max
    values = lr.int()  # which can be turned
    turned = [t for flipped in (values, values.flip(2)) for t in (torch.rot90(flipped, k, (1, 2)) for k in range(4))]
    expected = torch.zeros(channels, 120, 164)
    for number, one in enumerate(turned):
        sr = torch.rot90(exact(SMALL, one.contiguous().to(dtype)), -number % 4, (1, 2))
        expected += (sr.flip(2) if number >= 4 else sr) / 8
    ensemble: Upscaler = SelfEnsemble(NetworkUpscaler(SMALL, "fp32", tile=16))
    found = ensemble.enlarge(lr)
    assert found.dtype == dtype
    assert (found.float() - expected.clamp(0, largest)).abs().max() <= 0.5 + 4e-6 * largest


def test_what_cannot_be_loaded_is_refused() -> None:
    with pytest.raises(UserError, match=r"^the precision fp16 needs a GPU, expected auto, fp32 or bf16 on a CPU$"):
        load_upscaler(find_model("srresnet-x4"), device="cpu", precision="fp16")
    with pytest.raises(UserError, match=r"^bicubic cannot be computed in bf16, expected auto or fp32 for such a mod"):
        load_upscaler(find_model("bicubic"), precision="bf16")


def test_a_pixel_of_any_size_is_enough() -> None:
    for net in (SMALL, TOY.build(2, ToySettings()).eval()):
        assert NetworkUpscaler(net).enlarge(torch.zeros(3, 1, 1, dtype=torch.uint8)).shape == (3, net.scale, net.scale)


MEMORY = """
import resource, sys, torch
from pipeline.networks.upscalers import NetworkUpscaler
from sr_model.networks.srresnet import SRResNet
torch.set_num_threads(1)
upscaler = NetworkUpscaler(SRResNet(4, channels=16, blocks=2).eval(), "fp32")
peaks = []
for height in (128, 1024):
    image = torch.zeros(3, height, 64, dtype=torch.uint8)
    for _ in upscaler.parts(image):
        pass
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
print(*peaks)
"""


def test_memory_does_not_grow_with_the_image() -> None:
    """Eight times the pixels: a feature map of 64 channels at twice the resolution would take 63 MB more."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True, cwd=ROOT)
    small, large = map(float, done.stdout.split())
    assert large - small < 25, "MB"
