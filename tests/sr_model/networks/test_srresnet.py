import pytest
import torch
import torch.nn.functional as F
from skimage import data

from sr_model.degrade import downscale
from sr_model.networks.settings import SCALES
from sr_model.networks.srresnet import SRResNet, UpsampleStage
from tests.sr_model.networks.promises import check_untrained


def as_published(net: SRResNet, lr: torch.Tensor) -> torch.Tensor:
    """The network as the paper draws it: shuffle, then PReLU, then the 9x9 convolution on the full-size map."""
    x = net.act_first(net.conv_first(lr))
    x = x + net.bn_body(net.conv_body(net.body(x)))
    for stage in net.upsample:
        assert isinstance(stage, UpsampleStage)
        x = stage.act(F.pixel_shuffle(stage.conv(x), stage.factor))
    published: torch.Tensor = net.conv_last(x)
    return published


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("batch_norm", [True, False])
def test_equals_the_published_form(scale: int, batch_norm: bool) -> None:
    net = SRResNet(scale, channels=16, blocks=2, batch_norm=batch_norm, init="paper").double().eval()
    lr = torch.rand(2, 3, 11, 14, dtype=torch.float64)
    sr = net(lr)
    assert sr.shape == (2, 3, 11 * scale, 14 * scale)
    torch.testing.assert_close(sr, as_published(net, lr), rtol=0, atol=1e-12)


def test_gradients_equal_the_published_form() -> None:
    net = SRResNet(4, channels=8, blocks=1, batch_norm=False).double()
    lr = torch.rand(1, 3, 9, 9, dtype=torch.float64)
    fast = torch.autograd.grad(net(lr).square().sum(), list(net.parameters()))
    plain = torch.autograd.grad(as_published(net, lr).square().sum(), list(net.parameters()))
    for a, b in zip(fast, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_has_the_published_size() -> None:
    assert sum(p.numel() for p in SRResNet().parameters()) == 1_549_462


def test_refuses_an_unknown_scale() -> None:
    with pytest.raises(ValueError, match=r"scale is 5, expected one of \(2, 3, 4, 8\)"):
        SRResNet(5)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("batch_norm", [True, False])
def test_starts_as_an_upsampler(scale: int, batch_norm: bool) -> None:
    torch.manual_seed(0)
    net = SRResNet(scale, batch_norm=batch_norm, init="upsampler").eval()
    check_untrained(net)


@pytest.mark.parametrize("batch_norm", [True, False])
def test_trains_stably_at_a_high_learning_rate(batch_norm: bool) -> None:
    """From the first step on, with the warm-up that the pipeline uses, the loss stays that of an upsampler."""
    torch.manual_seed(0)
    net = SRResNet(4, channels=16, blocks=4, batch_norm=batch_norm)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    hr = torch.from_numpy(data.coffee()[:384, :576]).permute(2, 0, 1)
    lr = downscale(hr, 4)
    losses = []
    for step in range(30):
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1, (step + 1) / 20)
        y, x = 8 * (step % 8), 12 * (step % 9)
        sr = net(lr[None, :, y : y + 24, x : x + 24] / 255)
        loss = F.mse_loss(sr, hr[None, :, 4 * y : 4 * y + 96, 4 * x : 4 * x + 96] / 255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert max(losses) < 0.02
