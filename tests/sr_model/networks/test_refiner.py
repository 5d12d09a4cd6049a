"""The network that draws images in steps."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sr_model.networks import ARCHITECTURES, recognise
from sr_model.networks.refiner import Refiner
from sr_model.networks.sampling import Sampling, Solver
from sr_model.networks.settings import EDSRSettings, RefinerSettings, SRResNetBaseSettings, TrunkSettings
from sr_model.noise import noise_of_image
from sr_model.streaming import can_stream, stream

SMALL_BASE = SRResNetBaseSettings(channels=8, blocks=1, batch_norm=True)
SETTINGS = {
    "srresnet": RefinerSettings(base=SMALL_BASE, channels=8, blocks=2),
    "edsr": RefinerSettings(base=EDSRSettings(channels=8, blocks=1, residual_scale=0.5), channels=8, blocks=2),
    "sr3": RefinerSettings(process="sr3", channels=8, blocks=2, steps=5),
}


def make(name: str = "srresnet", scale: int = 4, trained: bool = True) -> Refiner:
    torch.manual_seed(0)
    net = ARCHITECTURES["refiner"].build(scale, SETTINGS[name])
    assert isinstance(net, Refiner)
    for parameter in net.parameters() if trained else ():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    return net.eval()


@torch.no_grad()
def solve(net: Refiner, lr: Tensor, steps: int, seed: int, solver: Solver) -> Tensor:
    """The definition: solve the equation with the network as it is."""
    condition, anchor = net.condition(lr)
    nodes, height, width = net.process.steps(steps), lr.shape[2], lr.shape[3]
    x = noise_of_image(seed, net.noise_channels, slice(0, height), slice(0, width)) * net.process.start

    def derivative(x: Tensor, i: int) -> Tensor:
        level = nodes.level[i].float().expand(len(lr))
        told: Tensor = net(condition, x * float(nodes.input_scale[i]), level)
        return float(nodes.slope[i]) * x + told

    for i in range(steps):
        by = float(nodes.tau[i + 1] - nodes.tau[i])
        first = derivative(x, i)
        corrected = solver == "heun" and i < steps - 1  # at the end there is no noise that the network could see
        x = x + by / 2 * (first + derivative(x + by * first, i + 1)) if corrected else x + by * first
    return F.pixel_shuffle(anchor + net.process.unit * x, net.scale)


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("name", list(SETTINGS))
def test_plain_layers_make_the_steps_of_the_equation(name: str, solver: Solver) -> None:
    net, lr = make(name), torch.rand(1, 3, 9, 7)
    net.sampling = Sampling(3, 7, solver)
    expected = solve(net, lr, 3, 7, solver)
    with torch.no_grad():
        torch.testing.assert_close(net(lr), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", list(SETTINGS))
def test_strips_give_the_image_of_the_whole(name: str) -> None:
    net, lr = make(name), torch.rand(1, 3, 13, 6)
    net.sampling = Sampling(2, solver="heun")
    plain = net.for_inference()
    assert can_stream(plain)
    noise = noise_of_image(0, net.noise_channels, slice(0, 13), slice(0, 6))
    image = torch.cat([lr, noise], 1).contiguous(memory_format=torch.channels_last)
    strips = (image[:, :, top : top + 3] for top in range(0, 13, 3))
    streamed = torch.cat(list(stream(plain, 13, strips, 2000)), 2)
    whole = plain(image)
    torch.testing.assert_close(streamed, whole, rtol=1e-5, atol=1e-5 * float(whole.abs().max()))


def test_a_hundred_steps_are_no_deeper_than_one() -> None:
    net, lr = make("sr3"), torch.rand(1, 3, 6, 6)
    net.sampling = Sampling(100)
    plain = net.for_inference()
    noise = noise_of_image(0, net.noise_channels, slice(0, 6), slice(0, 6))
    image = torch.cat([lr, noise], 1).contiguous(memory_format=torch.channels_last)
    assert sum(isinstance(layer, torch.nn.Conv2d) for layer in plain.modules()) > 300
    streamed = torch.cat(list(stream(plain, 6, (image[:, :, top : top + 3] for top in (0, 3)), 2000)), 2)
    whole = plain(image)
    torch.testing.assert_close(streamed, whole, rtol=1e-4, atol=1e-4 * float(whole.abs().max()))


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("name", ["srresnet", "edsr"])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_one_step_of_an_untrained_network_is_the_image_of_its_base(name: str, scale: int, solver: Solver) -> None:
    net, lr = make(name, scale, trained=False), torch.rand(2, 3, 8, 8)
    net.sampling = Sampling(1, solver=solver)
    assert net.base
    with torch.no_grad():
        torch.testing.assert_close(net(lr), net.base(lr), rtol=0, atol=1e-5)


def test_a_seed_names_an_image() -> None:
    net, lr = make(), torch.rand(1, 3, 8, 8)
    images = []
    for seed in (1, 2, 1):
        net.sampling = Sampling(2, seed)
        with torch.no_grad():
            images.append(net(lr))
    assert torch.equal(images[0], images[2])
    assert not torch.allclose(images[0], images[1], atol=1e-3)


def test_no_pixel_depends_on_more_than_the_receptive_field() -> None:
    net = make()
    net.sampling = Sampling(2)
    radius = net.receptive_radius
    lr = torch.rand(1, 3, 2 * radius + 4, 1)
    other = lr.clone()
    other[:, :, 0] += 1
    noise = noise_of_image(0, net.noise_channels, slice(0, lr.shape[2]), slice(0, 1))
    with torch.no_grad():
        change = (net(torch.cat([lr, noise], 1)) - net(torch.cat([other, noise], 1))).abs().amax((0, 1, 3))
    rows = change.nonzero().flatten() // net.scale
    assert 1 < int(rows.max()) <= radius


@pytest.mark.parametrize("name", list(SETTINGS))
def test_it_is_recognised_by_its_weights(name: str) -> None:
    net, lr = make(name), torch.rand(1, 3, 8, 8)
    architecture, found = recognise(net.state_dict())
    assert architecture.name == "refiner"
    with torch.no_grad():
        torch.testing.assert_close(found(lr), net(lr))
    scale, settings = architecture.infer(net.state_dict())
    assert (scale, settings.model_copy(update={"base": None})) == (
        4,
        SETTINGS[name].model_copy(update={"base": None, "noise": pytest.approx(0.04)}),
    )


def test_a_base_of_another_scale_is_refused() -> None:
    own, other = make().state_dict(), make(scale=2).state_dict()
    mixed = {name: value for name, value in own.items() if not name.startswith("base.")}
    mixed |= {name: value for name, value in other.items() if name.startswith("base.")}
    with pytest.raises(ValueError, match="the base has the scale 2, and the refining network 4"):
        ARCHITECTURES["refiner"].load(mixed)


@pytest.mark.parametrize("base", [SMALL_BASE, SETTINGS["edsr"].base])
def test_the_base_stays_frozen_and_in_eval_mode(base: TrunkSettings) -> None:
    net = ARCHITECTURES["refiner"].build(4, RefinerSettings(base=base, channels=8, blocks=1))
    assert isinstance(net, Refiner)
    net.train()
    assert net.base
    assert not net.base.training
    assert net.training
    assert not any(parameter.requires_grad for parameter in net.base.parameters())


def test_recomputed_activations_give_the_same_gradients() -> None:
    gradients = []
    for recompute in (False, True):
        net = make().train()
        net.recompute = recompute
        condition, _ = net.condition(torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
        net(condition, torch.ones(2, 48, 8, 8), torch.tensor([0.2, 0.9])).square().mean().backward()
        gradients.append([parameter.grad for parameter in net.parameters() if parameter.requires_grad])
    for one, other in zip(*gradients, strict=True):
        assert one is not None
        assert other is not None
        torch.testing.assert_close(one, other)


def test_the_default_has_the_size_that_two_cores_can_train() -> None:
    with torch.device("meta"):
        net = ARCHITECTURES["refiner"].build(4, RefinerSettings())
    assert 0.7e6 < sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad) < 1.5e6
