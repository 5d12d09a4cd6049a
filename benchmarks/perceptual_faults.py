"""Why a perceptual loss can end at 9 dB, or below 0: the usual mistakes, each made on purpose, on a small scale.

    python benchmarks/perceptual_faults.py --weights VGG19.safetensors [--steps 300]

A small SRResNet, with BatchNorm and without, from the paper's initialisation, learns x4 on photographs that
scikit-image ships, from VGG features of conv2_2 alone; each row but the first has one mistake. PSNR of values as the
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

from pipeline import features
from pipeline.config import Perceptual
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
    parser.add_argument("--steps", type=int, default=300)
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
    lr, hr = held_out()
    bicubic = torch.nn.functional.interpolate(lr, scale_factor=SCALE, mode="bicubic")
    print(f"{'(bicubic)':46}{psnr_of(bicubic, hr):15.2f} dB")


def train(loss: Loss, batch_norm: bool, steps: int, lr: float) -> float:
    """PSNR (RGB) in dB on the held-out photograph after training."""
    torch.manual_seed(0)
    net = SRResNet(SCALE, channels=32, blocks=4, batch_norm=batch_norm, init="paper")
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    photos = [as_tensor(photo) for photo in (data.astronaut(), data.coffee(), data.rocket())]
    rng = torch.Generator().manual_seed(0)
    for step in range(steps):
        hr = torch.stack([crop(photos[i % len(photos)], rng) for i in range(step * BATCH, (step + 1) * BATCH)])
        lr_batch = torch.stack([reduced(picture) for picture in hr])
        total = loss(net(lr_batch), hr)
        optimizer.zero_grad()
        if total.requires_grad:
            total.backward()
        optimizer.step()
    net.eval()
    lr_picture, hr_picture = held_out()
    with torch.no_grad():
        return psnr_of(net(lr_picture), hr_picture)


def held_out() -> tuple[Tensor, Tensor]:
    """LR and HR of a photograph that isn't trained on, (1, 3, h, w) in [0, 1]."""
    hr = as_tensor(data.chelsea())[:, :288, 80:368]
    return reduced(hr)[None], hr[None]


def reduced(picture: Tensor) -> Tensor:
    """x4, (3, H, W) in [0, 1]."""
    return downscale((picture * 255).round().to(torch.uint8), SCALE).float() / 255


def as_tensor(photo: object) -> Tensor:
    """(3, H, W) in [0, 1]."""
    return torch.tensor(photo).permute(2, 0, 1).float() / 255


def crop(photo: Tensor, rng: torch.Generator) -> Tensor:
    """A random (3, CROP, CROP)."""
    y, x = (int(torch.randint(size - CROP, (1,), generator=rng)) for size in photo.shape[1:])
    return photo[:, y : y + CROP, x : x + CROP]


def psnr_of(sr: Tensor, hr: Tensor) -> float:
    """PSNR in dB for a peak of 1, nothing clamped."""
    mse = (sr - hr).square().mean().item()
    return -10 * math.log10(mse) if math.isfinite(mse) else math.nan


if __name__ == "__main__":
    main()
