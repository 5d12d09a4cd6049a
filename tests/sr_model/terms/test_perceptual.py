from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sr_model.networks.srresnet import SRResNet
from sr_model.terms import Term, objective
from sr_model.terms.perceptual import BlurredMaxPool, PerceptualLoss, trunk
from sr_model.terms.pixel import l1
from sr_model.terms.settings import Network, Perceptual, Pooling, layer_index
from sr_model.terms.shifts import shift_together
from tests.conftest import DATA


def random_weights(network: Network = "vgg19", depth: int = 37) -> dict[str, Tensor]:
    """Random weights in the form of torchvision's state dict, with a classifier."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = {"classifier.0.weight": torch.zeros(2, 2)}
        before = 3
        for name in [f"conv{b}_{i}" for b in range(1, 6) for i in range(1, 5)]:
            try:
                index = layer_index(network, name)
            except ValueError:  # conv1_3
                continue
            channels = min(64 * 2 ** (int(name[4]) - 1), 512)
            weights[f"features.{index}.weight"] = nn.init.kaiming_normal_(torch.empty(channels, before, 3, 3))
            weights[f"features.{index}.bias"] = torch.zeros(channels)
            before = channels
    return weights


WEIGHTS = random_weights()


@pytest.mark.parametrize(
    ("network", "layer", "index"),
    # Of torchvision.models.vgg19().features and vgg16().features.
    [("vgg19", "conv1_1", 0), ("vgg19", "conv2_2", 7), ("vgg19", "relu2_2", 8), ("vgg19", "conv5_4", 34),
     ("vgg19", "relu5_4", 35), ("vgg16", "relu2_2", 8), ("vgg16", "conv5_3", 28), ("vgg16", "pool5", 30)],
)  # fmt: skip
def test_layers_have_torchvisions_numbers(network: Network, layer: str, index: int) -> None:
    assert layer_index(network, layer) == index


def test_a_layer_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="vgg16 has no layer conv5_4"):
        layer_index("vgg16", "conv5_4")


def test_it_is_the_distance_of_the_features() -> None:
    loss = PerceptualLoss({"conv1_2": 0.5, "relu2_1": 2.0}, WEIGHTS)
    sr, hr = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)

    def features(x: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        x = (x - mean[:, None, None]) / std[:, None, None]
        first = F.conv2d(x, WEIGHTS["features.0.weight"], padding=1).relu()
        second = F.conv2d(first, WEIGHTS["features.2.weight"], padding=1)
        third = F.conv2d(F.max_pool2d(second.relu(), 2), WEIGHTS["features.5.weight"], padding=1).relu()
        return second, third

    (a, b), (c, d) = features(sr), features(hr)
    expected = 0.5 * (a - c).square().mean((1, 2, 3)) + 2 * (b - d).square().mean((1, 2, 3))
    torch.testing.assert_close(loss(sr, hr), expected)
    l1 = PerceptualLoss({"conv1_2": 1.0}, WEIGHTS, distance="l1", scale=0.1)
    torch.testing.assert_close(l1(sr, hr), 0.1 * (a - c).abs().mean((1, 2, 3)))


def test_it_has_a_gradient_with_respect_to_the_network_and_none_to_the_truth() -> None:
    net = SRResNet(channels=8, blocks=1, batch_norm=False)
    loss = PerceptualLoss({"conv2_2": 1.0}, WEIGHTS)
    hr = torch.rand(1, 3, 32, 32, requires_grad=True)
    loss(net(torch.rand(1, 3, 8, 8)), hr).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.body.parameters())
    assert hr.grad is None
    assert not list(filter(lambda p: p.requires_grad or p.grad is not None, loss.parameters()))


def test_the_trunk_sees_images_of_imagenets_mean_and_deviation() -> None:
    loss = PerceptualLoss({"conv1_1": 1.0}, WEIGHTS)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images = mean[:, None, None] + std[:, None, None] * torch.randn(
        4, 3, 64, 64, generator=torch.Generator().manual_seed(0)
    )
    seen = loss.normalise(images)
    torch.testing.assert_close(seen.mean((0, 2, 3)), torch.zeros(3), atol=0.02, rtol=0)
    torch.testing.assert_close(seen.std((0, 2, 3)), torch.ones(3), atol=0.02, rtol=0)


def test_it_stays_frozen_and_is_computed_only_as_deep_as_asked() -> None:
    loss = PerceptualLoss({"conv2_2": 1.0}, WEIGHTS)
    assert len(loss.features) == 8
    assert not loss.train().training
    assert not any(p.requires_grad for p in loss.parameters())
    assert set(trunk(WEIGHTS, "vgg19", {"conv2_2": 1.0})) == {
        f"features.{i}.{k}" for i in (0, 2, 5, 7) for k in ("weight", "bias")
    }


def test_autocast_changes_nothing() -> None:
    loss = PerceptualLoss({"conv3_1": 1.0}, WEIGHTS)
    sr, hr = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32)
    plain = loss(sr, hr)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(sr, hr), plain)


def test_weights_that_are_too_shallow_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the weights lack features\.34\.weight"):
        PerceptualLoss({"conv5_4": 1.0}, trunk(WEIGHTS, "vgg19", {"conv5_3": 1.0}))


def test_blurred_pooling_favours_no_phase_and_keeps_places() -> None:
    pool, plain = BlurredMaxPool(), nn.MaxPool2d(2)
    flat = torch.full((1, 2, 8, 10), 0.3)
    torch.testing.assert_close(pool(flat), plain(flat))
    slope = torch.arange(64.0).expand(1, 1, 8, 64)
    torch.testing.assert_close(pool(slope)[..., 1:-1], plain(slope)[..., 1:-1])  # inside, where the blur sees no border
    assert pool(torch.rand(2, 3, 9, 11)).shape == plain(torch.rand(2, 3, 9, 11)).shape
    noise = torch.rand(16, 1, 32, 32, generator=torch.Generator().manual_seed(0))

    def change(layer: nn.Module) -> float:
        """Mean square of what a shift by a pixel changes, as a share of the variance."""
        seen, shifted = (layer(image)[..., 2:-2, 2:-2] for image in (noise, noise.roll(1, -1)))
        return float((seen - shifted).square().mean() / seen.var())

    assert change(pool) < 0.6 * change(plain)


def test_both_images_of_a_sample_are_shifted_together_as_its_position_says() -> None:
    hr = torch.arange(12.0 * 10).view(1, 1, 12, 10).repeat(64, 3, 1, 1)
    positions = torch.arange(64) * 977
    sr, same = shift_together(hr + 0.5, hr, 3, 7, positions)
    assert sr.shape == (64, 3, 9, 7)
    torch.testing.assert_close(sr - same, torch.full_like(sr, 0.5))
    begins = [divmod(int(corner), 10) for corner in same[:, 0, 0, 0]]
    assert set(begins) == {(y, x) for y in range(4) for x in range(4)}
    for number, (y, x) in enumerate(begins):
        assert torch.equal(same[number], hr[number, :, y : y + 9, x : x + 7])
    alone, _ = shift_together(hr[5:9], hr[5:9], 3, 7, positions[5:9])  # as on another rank
    assert torch.equal(alone, same[5:9])
    other, _ = shift_together(hr, hr, 3, 8, positions)
    assert not torch.equal(other, same)


def test_the_objective_shifts_the_images_of_a_term_that_asks_for_it() -> None:
    sr, hr, positions = torch.rand(4, 3, 16, 16, requires_grad=True), torch.rand(4, 3, 16, 16), torch.arange(4)
    total, _ = objective([Term("l1", 1.0, 0.0, l1, shift=3, seed=2)], sr, hr, positions)
    torch.testing.assert_close(total, l1(*shift_together(sr, hr, 3, 2, positions)))
    total.sum().backward()
    assert sr.grad is not None
    assert (sr.grad != 0).sum() == 4 * 3 * 13 * 13


@pytest.mark.parametrize("pooling", ["max", "blurred"])
@pytest.mark.parametrize(("layer", "side"), [("relu1_2", 1), ("pool1", 2), ("conv2_1", 2), ("conv3_1", 4)])
def test_the_smallest_side_has_features_and_a_smaller_one_has_none(layer: str, side: int, pooling: Pooling) -> None:
    settings = Perceptual(layers={layer: 1.0}, pooling=pooling, shift=3)
    assert settings.smallest_side() == side + 3
    loss = PerceptualLoss({layer: 1.0}, WEIGHTS, pooling=pooling)
    assert loss(torch.rand(1, 3, side, side), torch.rand(1, 3, side, side)).isfinite().all()
    with pytest.raises(RuntimeError):
        loss(torch.rand(1, 3, side - 1, side - 1), torch.rand(1, 3, side - 1, side - 1))


def test_settings_that_did_not_exist_before_are_left_out_unless_they_are_set() -> None:
    assert not {"pooling", "shift"} & Perceptual().model_dump().keys()
    assert Perceptual(pooling="blurred", shift=3).model_dump().items() >= {"pooling": "blurred", "shift": 3}.items()


def test_real_features_see_a_blur_more_than_a_shift_of_brightness() -> None:
    """The two changes have the same squared error, but people see the blur more."""
    from skimage import data

    file = Path(DATA, "weights", "vgg19_normalised_relu3_1.safetensors")
    if not file.exists():
        pytest.skip(f"no VGG weights in {file.parent}")
    loss = PerceptualLoss({"conv3_1": 1.0}, safetensors.torch.load_file(file))
    hr = torch.from_numpy(data.astronaut()[:192, 120:312]).permute(2, 0, 1)[None] / 255
    blurred = F.avg_pool2d(F.pad(hr, (2, 2, 2, 2), mode="reflect"), 5, 1)
    shifted = hr + (blurred - hr).square().mean().sqrt()
    assert loss(blurred, hr).item() > 5 * loss(shifted, hr).item()
