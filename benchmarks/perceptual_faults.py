"""Why a perceptual loss can end at 9 dB, or below 0: the usual mistakes, each made on purpose, on a small scale.

    python benchmarks/perceptual_faults.py --weights VGG19.safetensors [--steps 150]

A small SRResNet, with BatchNorm and without, from the paper's initialisation, learns x4 on photographs that
scikit-image ships, from VGG features of conv2_2 alone; each row but the first has one mistake
(and no total variation, which weighs next to nothing). PSNR of values as the
network gives them, on a held-out photograph: within [0, 1] it cannot be below 0 dB, where the mean squared error would
exceed the squared peak.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import torch
from skimage import data
from torch import Tensor, nn

from pipeline.networks import features
from pipeline.settings import Perceptual
from sr_model.degrade import downscale
from sr_model.losses import total_variation
from sr_model.perceptual import PerceptualLoss
from sr_model.srresnet import SRResNet

SCALE, CROP, BATCH = 4, 48, 8

Loss = Callable[[Tensor, Tensor], Tensor]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", required=True, help="VGG-19 with torchvision's names, at least to conv3_1")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--lr", type=float, default=4e-4)
    options = parser.parse_args()

    def vgg(layer: str) -> PerceptualLoss:
        return features.load(Perceptual(layers={layer: 1.0}, weights=options.weights), torch.device("cpu"))

    unnormalised = vgg("conv2_2")
    unnormalised.normalise = nn.Identity()  # type: ignore[assignment]
    good, deep = vgg("conv2_2"), vgg("conv3_1")
    variants: dict[str, tuple[Loss, float]] = {
        "as built here": (lambda sr, hr: good(sr, hr).mean() + 5.5e-4 * total_variation(sr, hr).mean(), 1),
        "loss copied into a new tensor: no gradient": (lambda sr, hr: torch.tensor(good(sr, hr).mean().item()), 1),
        "not normalised for the trunk": (lambda sr, hr: unnormalised(sr, hr).mean(), 1),
        "truth in [-1, 1], scored as [0, 1]": (lambda sr, hr: good(sr, 2 * hr - 1).mean(), 1),
        "deeper layer alone, conv3_1": (lambda sr, hr: deep(sr, hr).mean(), 1),
        "learning rate 100 times higher": (lambda sr, hr: good(sr, hr).mean(), 100),
    }
    print(f"{'':46}{'with BatchNorm':>18}{'without':>18}")
    for name, (loss, faster) in variants.items():
        found = [train(loss, bn, options.steps, options.lr * faster) for bn in (True, False)]
        print(f"{name:46}" + "".join(f"{psnr:15.2f} dB" for psnr in found), flush=True)
    bicubic = torch.nn.functional.interpolate(HELD_OUT[0][None], scale_factor=SCALE, mode="bicubic")[0]
    print(f"{'(bicubic)':46}{psnr_of(bicubic, HELD_OUT[1]):15.2f} dB")


def train(loss: Loss, batch_norm: bool, steps: int, lr: float) -> float:
    """PSNR (RGB) in dB on the held-out photograph after training."""
    torch.manual_seed(0)
    net = SRResNet(SCALE, channels=16, blocks=4, batch_norm=batch_norm, init="paper")
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    rng = torch.Generator().manual_seed(0)
    for step in range(steps):
        pairs = [crop(PHOTOS[i % len(PHOTOS)], rng) for i in range(step * BATCH, (step + 1) * BATCH)]
        lr_batch, hr = (torch.stack(parts) for parts in zip(*pairs, strict=True))
        total = loss(net(lr_batch), hr)
        optimizer.zero_grad()
        if total.requires_grad:
            total.backward()
        optimizer.step()
    net.eval()
    with torch.no_grad():
        return psnr_of(net(HELD_OUT[0][None])[0], HELD_OUT[1])


def pair(photo: object) -> tuple[Tensor, Tensor]:
    """LR and HR of a photograph, (3, h, w) in [0, 1]."""
    eight_bit = torch.tensor(photo).permute(2, 0, 1)
    height, width = (size // SCALE * SCALE for size in eight_bit.shape[1:])
    eight_bit = eight_bit[:, :height, :width]
    return downscale(eight_bit, SCALE).float() / 255, eight_bit.float() / 255


def crop(photo: tuple[Tensor, Tensor], rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random LR and HR patches."""
    lr, hr = photo
    y, x = (int(torch.randint(size - CROP // SCALE, (1,), generator=rng)) for size in lr.shape[1:])
    side = CROP // SCALE
    return lr[:, y : y + side, x : x + side], hr[:, SCALE * y : SCALE * y + CROP, SCALE * x : SCALE * x + CROP]


PHOTOS = [pair(photo) for photo in (data.astronaut(), data.coffee(), data.rocket())]
HELD_OUT = pair(data.chelsea()[:288, 80:368])


def psnr_of(sr: Tensor, hr: Tensor) -> float:
    """PSNR in dB for a peak of 1, nothing clamped."""
    mse = (sr - hr).square().mean().item()
    return -10 * math.log10(mse) if math.isfinite(mse) else math.nan


if __name__ == "__main__":
    main()
