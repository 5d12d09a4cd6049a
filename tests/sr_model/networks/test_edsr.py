import pytest
import torch
import torch.nn.functional as F
from skimage import data
from torch import Tensor, nn

from sr_model.degrade import downscale
from sr_model.networks import from_weights
from sr_model.networks.edsr import EDSR
from sr_model.networks.settings import SCALES, STAGES
from tests.sr_model.networks.promises import check_radius, check_untrained


def as_published(net: EDSR, lr: Tensor, residual_scale: float) -> Tensor:
    """The network as the paper draws it, from its weights alone: each convolution, then the shuffle."""
    weights = net.state_dict()

    def conv(name: str, x: Tensor) -> Tensor:
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)

    y = x = conv("conv_first", lr)
    for block in range(len(net.body)):
        y = y + residual_scale * conv(f"body.{block}.conv2", F.relu(conv(f"body.{block}.conv1", y)))
    x = x + conv("conv_body", y)
    for stage, factor in enumerate(STAGES[net.scale]):
        x = F.pixel_shuffle(conv(f"upsample.{stage}", x), factor)
    return conv("conv_last", x)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("residual_scale", [1.0, 0.1])
def test_equals_the_published_form(scale: int, residual_scale: float) -> None:
    net = EDSR(scale, channels=8, blocks=2, residual_scale=residual_scale, init="paper").double()
    lr = torch.rand(2, 3, 7, 10, dtype=torch.float64)
    expected = as_published(net, lr, residual_scale)
    assert expected.shape == (2, 3, 7 * scale, 10 * scale)
    torch.testing.assert_close(net(lr), expected, rtol=0, atol=1e-12)
    net.recompute = True
    torch.testing.assert_close(net(lr), expected, rtol=0, atol=1e-12)
    plain = net.for_inference()
    torch.testing.assert_close(plain(lr), expected, rtol=0, atol=1e-12)
    kinds = {type(module) for module in plain.modules() if not list(module.children())}
    assert kinds == {nn.Conv2d, nn.ReLU, nn.PixelShuffle}
    assert {id(value) for value in plain.parameters()}.isdisjoint({id(value) for value in net.parameters()})


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_equal_the_published_form(recompute: bool) -> None:
    net = EDSR(4, channels=8, blocks=1, residual_scale=0.5).double()
    net.recompute = recompute
    lr = torch.rand(1, 3, 9, 9, dtype=torch.float64)
    names, parameters = zip(*net.named_parameters(), strict=True)
    fast = torch.autograd.grad(net(lr).square().sum(), parameters)
    plain = net.state_dict(keep_vars=True)
    net.state_dict = lambda: plain  # type: ignore[method-assign, assignment]
    expected = torch.autograd.grad(as_published(net, lr, 0.5).square().sum(), [plain[name] for name in names])
    for a, b in zip(fast, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_has_the_published_size() -> None:
    """The paper's table 1 rounds to 1.5 M; the authors' code counts 1,517,571 besides its constant colour shifts."""
    assert sum(p.numel() for p in EDSR().parameters()) == 1_517_571
    assert sum(p.numel() for p in EDSR(2).parameters()) == 1_369_859
    hidden = EDSR().muon_weights()
    assert len(hidden) == 2 * 16 + 1 + 2
    assert all(weight.shape[2:] == (3, 3) for weight in hidden)


def test_refuses_an_unknown_scale() -> None:
    with pytest.raises(ValueError, match=r"scale is 5, expected one of \(2, 3, 4, 8\)"):
        EDSR(5)


@pytest.mark.parametrize("scale", SCALES)
def test_output_depends_on_no_pixel_beyond_the_radius(scale: int) -> None:
    torch.manual_seed(0)
    net = EDSR(scale, channels=4, blocks=1, init="paper").double()
    check_radius(net)


@pytest.mark.parametrize("scale", SCALES)
def test_starts_as_an_upsampler(scale: int) -> None:
    torch.manual_seed(0)
    net = EDSR(scale, channels=16, blocks=2)
    check_untrained(net)


def test_trains_stably_at_a_high_learning_rate() -> None:
    torch.manual_seed(0)
    net = EDSR(4, channels=16, blocks=4)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    hr = torch.from_numpy(data.coffee()[:384, :576]).permute(2, 0, 1)
    lr = downscale(hr, 4)
    losses = []
    for step in range(30):
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1, (step + 1) / 20)
        y, x = 8 * (step % 8), 12 * (step % 9)
        sr = net(lr[None, :, y : y + 16, x : x + 16] / 255)
        loss = F.mse_loss(sr, hr[None, :, 4 * y : 4 * y + 64, 4 * x : 4 * x + 64] / 255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert max(losses) < 0.02


@pytest.mark.parametrize("residual_scale", [1.0, 0.1])
def test_is_recognised_by_its_weights(residual_scale: float) -> None:
    net = EDSR(3, channels=8, blocks=2, residual_scale=residual_scale)
    for dtype, difference in ((torch.float32, 0), (torch.float16, 2e-2)):
        found = from_weights({name: value.to(dtype) for name, value in net.state_dict().items()})
        assert isinstance(found, EDSR)
        assert (found.scale, found.receptive_radius) == (3, net.receptive_radius)
        lr = torch.rand(1, 3, 8, 9)
        torch.testing.assert_close(found(lr), net(lr), rtol=0, atol=difference)
    for damaged in ({"residual_scale": torch.tensor(float("nan"))}, {"residual_scale": torch.ones(2)}):
        with pytest.raises(ValueError, match=r"the weights are not those of SRResNet: .*; .*not those of EDSR: "):
            from_weights({**net.state_dict(), **damaged})
