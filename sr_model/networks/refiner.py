"""A network that draws an image in several steps: repeated refinement of noise, or of another network's output.

It works on the LR grid, where the s*s pixels of the image below an LR pixel are channels (pixel unshuffle).

Shape legend: B images, (h, w) LR pixels, s scale, N = 3*s*s channels of the state, D channels of the condition, C
feature channels.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sr_model.networks import edsr, srresnet, trunk
from sr_model.networks.architecture import NetworkSettings
from sr_model.networks.inference import Beside, Residual, Select, Step, convolution
from sr_model.networks.prelu import SharedPReLU
from sr_model.networks.sampling import Sampling
from sr_model.networks.settings import SCALES, EDSRSettings, RefinerSettings, TrunkSettings
from sr_model.networks.super_resolver import SuperResolver, TrunkNetwork
from sr_model.noise import beside_noise
from sr_model.refinement import Denoising, Flow, Nodes, Process

_LEVELS, _HIDDEN = 16, 128
"""Cosines that describe a noise level, and hidden values of the layers that modulate the features by it."""
_GREY = 0.5
"""The value of an image from which the network counts."""


class Refiner(SuperResolver):
    """A frozen network `base`, and a network that refines its output step by step; or the latter alone, from noise.

    The refining network is a convolution, residual blocks that are modulated by the noise level (FiLM; Perez et al.
    2018, arXiv:1709.07871), and a convolution that is zero at first. It sees the state, the LR image and, if there is a
    base, the base's features and output.

    Args:
        scale: upscaling factor, one of 2, 3, 4, 8.
        settings: see `RefinerSettings`.

    Raises:
        ValueError: for a scale without a stage layout.
    """

    sampling: Sampling
    noise: Tensor
    steps: Tensor

    def __init__(self, scale: int, settings: RefinerSettings) -> None:
        super().__init__()
        if scale not in SCALES:
            raise ValueError(f"scale is {scale}, expected one of {SCALES}")
        self.scale = scale
        self.noise_channels = 3 * scale**2
        self.base = _build_base(scale, settings.base) if settings.process == "flow" else None
        self.process: Process = Flow(settings.noise) if settings.process == "flow" else Denoising()
        self.sampling, self._own_steps = Sampling(), settings.steps
        condition = 3 + (self.base.channels + self.noise_channels if self.base else 0)
        channels = settings.channels
        self.conv_first = nn.Conv2d(self.noise_channels + condition, channels, 3, padding=1)
        self.body = nn.Sequential(*(ModulatedBlock(channels) for _ in range(settings.blocks)))
        self.conv_last = nn.Conv2d(channels, self.noise_channels, 3, padding=1)
        self.modulation = nn.Sequential(
            nn.Linear(_LEVELS, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, settings.blocks * 2 * channels)
        )
        self.register_buffer("noise", torch.tensor(settings.noise, device="cpu"))
        self.register_buffer("steps", torch.tensor(settings.steps, device="cpu"))  # "meta" would lose it
        _init(self)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the refining network; the base stays in eval mode."""
        super().train(mode)
        if self.base:
            self.base.eval()
        return self

    def forward(self, lr: Tensor, state: Tensor | None = None, level: Tensor | None = None) -> Tensor:
        """Draw an image, or compute the refining network at one point of the way.

        Args:
            lr: the LR image, (B, 3, h, w) in [0, 1]; or (B, 3 + N, h, w) with standard normal noise behind it, which by
                default is that of `sampling.seed` for an image that begins here. If a state is given, the condition.
            state: (B, N, h, w), scaled by the process.
            level: (B,), how far the states are; see `sr_model.refinement.Nodes`.

        Returns:
            The image (B, 3, s*h, s*w), nominally in [0, 1] and not clamped; or what the network says about the states,
            (B, N, h, w).
        """
        if state is None or level is None:
            return self._draw(lr)
        x = self.conv_first(torch.cat([state, lr], dim=1))
        for block, (gain, shift) in zip(self._blocks, self._modulations(level), strict=True):
            x = trunk.run(partial(block, gain=gain, shift=shift), x, self.recompute)
        y: Tensor = self.conv_last(x)
        return y

    @torch.no_grad()
    def condition(self, lr: Tensor) -> tuple[Tensor, Tensor]:
        """Compute what the refining network sees beside the state, and the image that the state is added to.

        Args:
            lr: (B, 3, h, w) in [0, 1].

        Returns:
            The condition (B, D, h, w), and the anchor on the LR grid, which broadcasts to (B, N, h, w), in [0, 1].
        """
        if self.base is None:
            return lr, lr.new_full((1, 1, 1, 1), _GREY)
        features = self.base.features(lr)
        anchor = F.pixel_unshuffle(self.base.upsample_features(features), self.scale)
        return torch.cat([lr, features, anchor - _GREY], dim=1), anchor

    def muon_weights(self) -> list[nn.Parameter]:
        """Weights of the convolutions of the blocks."""
        convolutions = (conv for block in self._blocks for conv in (block.conv1, block.conv2))
        return [cast("nn.Parameter", conv.weight) for conv in convolutions]

    def started(self) -> nn.Module:
        """Return the frozen network if there is one; see `SuperResolver.started`."""
        return self.base or self

    @property
    def receptive_radius(self) -> int:
        """LR pixels to each side that an output pixel depends on; it grows with the number of steps."""
        evaluations = 2 * self._steps - 1 if self.sampling.solver == "heun" else self._steps
        once = 2 * len(self.body) + 2
        return evaluations * once + (self.base.receptive_radius if self.base else 0)

    @torch.no_grad()
    def for_inference(self) -> nn.Sequential:
        """Return plain layers that make all steps; their input is that of `forward`, with the noise."""
        state, scale = self.noise_channels, self.scale
        layers: list[nn.Module] = []
        if self.base is None:
            layers.append(Select(slice(3, 3 + state), slice(0, 3)))
            anchors = 0
        else:
            # The convolution that reads the image has a layer of its own, which an engine can compute exactly.
            plain = list(cast("nn.Sequential", self.base.for_inference()))
            first = next(index for index, layer in enumerate(plain) if isinstance(layer, nn.Conv2d)) + 1
            end = next(index for index, layer in enumerate(plain) if isinstance(layer, Residual)) + 1
            tail = cast("nn.Conv2d", plain[-2])
            cast("Tensor", tail.bias).sub_(_GREY)  # numbers near 0 are rounded more finely than those near 1
            image = Beside(*plain[end:], nn.PixelUnshuffle(scale))
            layers += [Beside(Select(slice(0, 3)), *plain[:first])]
            channels = cast("nn.Conv2d", plain[first - 1]).out_channels
            read = 3 + state + channels
            layers.append(Beside(Select(slice(3 + state, read)), *plain[first:end], image))
            anchors = state
            layers.append(Select(slice(3, 3 + state), slice(0, 3), slice(read, read + self.base.channels + anchors)))
        condition = self.conv_first.in_channels - state
        layers += self._step_layers(condition)
        last = torch.zeros(state, state + condition, 1, 1)
        last[:, :state, 0, 0] = self.process.unit * torch.eye(state)
        if anchors:
            last[:, -anchors:, 0, 0] = torch.eye(state)
        layers += [convolution(last, torch.full((state,), _GREY)), nn.PixelShuffle(scale)]
        return nn.Sequential(*layers).to(self.conv_first.weight).eval().requires_grad_(False)

    @property
    def _steps(self) -> int:
        return self.sampling.steps or self._own_steps

    @property
    def _blocks(self) -> list[ModulatedBlock]:
        return cast("list[ModulatedBlock]", list(self.body))

    def _draw(self, lr: Tensor) -> Tensor:
        if lr.shape[1] == 3:
            rows, columns = (slice(0, size) for size in lr.shape[2:])
            lr = beside_noise(lr, self.sampling.seed, self.noise_channels, rows, columns)
        image: Tensor = self.for_inference()(lr)
        return image

    def _modulations(self, level: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Gain and shift of each block, both (B, C, 1, 1), at levels (B,)."""
        frequencies = math.pi * torch.arange(_LEVELS, device=level.device)
        waves = torch.cos(frequencies * level[:, None].float()).to(self.conv_first.weight.dtype)
        values = self.modulation(waves).view(len(level), len(self.body), 2, -1, 1, 1)
        return [(block[:, 0], block[:, 1]) for block in values.unbind(1)]

    def _step_layers(self, condition: int) -> list[nn.Module]:
        """Layers that map noise and condition, (B, N + D, h, w), to the state at the end and the condition."""
        nodes = [Nodes(*values) for values in zip(*self.process.steps(self._steps), strict=True)]
        layers: list[nn.Module] = []
        for number, (here, there) in enumerate(pairwise(nodes)):
            start = self.process.start if number == 0 else 1.0  # the noise has unit variance
            width = float(there.tau - here.tau)
            net = self._net_at(here, start)
            # The last step is Euler's with either solver, as in algorithm 1 of Karras et al. 2022 (arXiv:2206.00364):
            # at its end the network sees no noise, and half of what the step should remove would stay in the image.
            if self.sampling.solver == "euler" or number == len(nodes) - 2:
                _scale_output(net, width)
                layers.append(Step(start * (1 + width * float(here.slope)), *net))
            else:
                layers += self._heun(here, there, net, start, condition)
        return layers

    def _heun(self, here: Nodes, there: Nodes, net: list[nn.Module], start: float, condition: int) -> list[nn.Module]:
        """Layers of a step of Heun's method: the mean of the derivatives at both ends of Euler's step."""
        state, width = self.noise_channels, float(there.tau - here.tau)
        first, second = float(here.slope), float(there.slope)
        # From the state x, the condition and f(x): half of the step, and the end y of Euler's step, which f sees next
        mix = torch.zeros(2 * state + condition, 2 * state + condition, 1, 1)
        one = torch.eye(state)
        end_of_x, end_of_f = start * (1 + width * first), width
        mix[:state, :state, 0, 0] = (start * (1 + width / 2 * first) + width / 2 * second * end_of_x) * one
        mix[:state, -state:, 0, 0] = (width / 2 + width / 2 * second * end_of_f) * one
        mix[state : 2 * state, :state, 0, 0] = end_of_x * one
        mix[state : 2 * state, -state:, 0, 0] = end_of_f * one
        mix[2 * state :, state : state + condition, 0, 0] = torch.eye(condition)
        again = self._net_at(there, 1.0)
        reading = cast("nn.Conv2d", again[0])
        padded = torch.cat([torch.zeros_like(reading.weight[:, :state]), reading.weight], dim=1)
        again[0] = convolution(padded, cast("Tensor", reading.bias))
        _scale_output(again, width / 2)
        return [
            Beside(*net),
            convolution(mix, torch.zeros(len(mix))),
            Step(1.0, *again),
            Select(slice(0, state), slice(2 * state, 2 * state + condition)),
        ]

    def _net_at(self, node: Nodes, start: float) -> list[nn.Module]:
        """Return the refining network at one noise level as plain layers on the CPU, for a state divided by `start`."""
        level = node.level.to(self.conv_first.weight.device).float()[None]
        first = self.conv_first.weight.clone()
        first[:, : self.noise_channels] *= float(node.input_scale) * start
        layers: list[nn.Module] = [convolution(first.cpu(), cast("Tensor", self.conv_first.bias).cpu())]
        for block, (gain, shift) in zip(self._blocks, self._modulations(level), strict=True):
            layers.append(block.at(gain.flatten(), shift.flatten()))
        layers.append(copy.deepcopy(self.conv_last).cpu())
        return layers


class ModulatedBlock(nn.Module):
    """x + conv-modulation-PReLU-conv(x), all (B, C, h, w).

    The modulation comes right behind a convolution, so that at a fixed level it is a part of it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.act = SharedPReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
        """Map (B, C, h, w) to the same shape, with gain and shift (B, C, 1, 1)."""
        y: Tensor = self.conv2(self.act(self.conv1(x) * (1 + gain) + shift))
        return x + y

    def at(self, gain: Tensor, shift: Tensor) -> Residual:
        """Return the block with a fixed gain and shift, (C,), as plain layers on the CPU."""
        factor, bias = 1 + gain, cast("Tensor", self.conv1.bias)
        first = convolution((self.conv1.weight * factor[:, None, None, None]).cpu(), (bias * factor + shift).cpu())
        return Residual(first, copy.deepcopy(self.act).cpu(), copy.deepcopy(self.conv2).cpu())


def _scale_output(net: list[nn.Module], factor: float) -> None:
    """Scale the output of a network whose last layer is a convolution."""
    last = cast("nn.Conv2d", net[-1])
    last.weight.data.mul_(factor)
    cast("Tensor", last.bias).data.mul_(factor)


@torch.no_grad()
def _init(net: Refiner) -> None:
    """Initialise the refining network, which returns zero at first.

    Branches begin small, as in `srresnet.init_as_upsampler`. Other weights follow He et al. 2015 (arXiv:1502.01852).
    """
    for module in (net.conv_first, *(conv for block in net._blocks for conv in (block.conv1, block.conv2))):
        nn.init.kaiming_normal_(module.weight, a=0.25)
        nn.init.zeros_(cast("Tensor", module.bias))
    for block in net._blocks:
        block.conv2.weight.mul_(0.1)
    for parameter in (*net.conv_last.parameters(), *net.modulation[-1].parameters()):
        nn.init.zeros_(parameter)
    if net.base:
        net.base.eval().requires_grad_(False)


def _build_base(scale: int, settings: TrunkSettings) -> TrunkNetwork:
    if isinstance(settings, EDSRSettings):
        return edsr.build(scale, settings)
    return srresnet.build(scale, settings)


def _infer_base(weights: Mapping[str, Tensor]) -> tuple[int, NetworkSettings]:
    try:
        return srresnet.infer(weights)
    except (KeyError, IndexError, ValueError, ZeroDivisionError):
        return edsr.infer(weights)


def build(scale: int, settings: RefinerSettings) -> Refiner:
    """Build the network that settings describe; random numbers come from torch's generator."""
    return Refiner(scale, settings)


def infer(weights: Mapping[str, Tensor]) -> tuple[int, RefinerSettings]:
    """Read scale and settings off a state dict.

    Raises:
        KeyError, IndexError, ValueError, ZeroDivisionError: if the weights belong to another network.
    """
    made, channels = weights["conv_last.weight"].shape[:2]
    scale = math.isqrt(made // 3)
    blocks = sum(
        bool(re.fullmatch(r"body\.\d+\.conv1\.weight", name)) and value.shape == (channels, channels, 3, 3)
        for name, value in weights.items()
    )
    base = {name.removeprefix("base."): value for name, value in weights.items() if name.startswith("base.")}
    known: dict[str, Any] = {"process": "sr3"}
    if base:
        base_scale, settings = _infer_base(base)
        known = {"process": "flow", "base": settings.model_dump()}
        if base_scale != scale:
            raise ValueError(f"the base has the scale {base_scale}, and the refining network {scale}")
    if weights["steps"].numel() != 1 or weights["noise"].numel() != 1:
        raise ValueError("the numbers of steps and of noise are not single numbers")
    return scale, RefinerSettings(
        channels=channels,
        blocks=blocks,
        steps=int(weights["steps"].item()),
        noise=weights["noise"].item(),
        **known,
    )
