"""Show why a perceptual loss can end at 9 dB, or even below 0 dB: make the usual mistakes on purpose, on a small scale.

A small SRResNet, with and without BatchNorm, starts from the paper's initialisation and learns x4 from VGG features of
conv2_2 alone, on photographs that scikit-image ships. The first row has no mistake; each other row has one, and leaves
out total variation, whose weight is negligible.

The table shows the PSNR (RGB, peak 1) of the unclamped output on a held-out photograph. The PSNR of values in [0, 1]
cannot be below 0 dB, because the mean squared error would have to exceed 1.

    python -m benchmarks.perceptual_faults --weights VGG19.safetensors [--steps N]
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from skimage import data
from torch import Tensor, nn

from benchmarks.measuring import SCALE, Result, parser_of, print_results
from pipeline.networks import features
from pipeline.settings.command_line import parse
from sr_model.degrade import downscale
from sr_model.networks.srresnet import SRResNet
from sr_model.pixels import Pixels
from sr_model.terms.perceptual import PerceptualLoss
from sr_model.terms.pixel import total_variation

CROP, BATCH = 48, 8

Loss = Callable[[Tensor, Tensor], Tensor]
"""Maps prediction and target, (B, 3, H, W), to a scalar."""


@dataclass(frozen=True)
class Pair:
    """A photograph and its reduced version, (3, H, W) and (3, H/4, W/4) in [0, 1]."""

    hr: Tensor
    lr: Tensor

    @classmethod
    def from_photo(cls, photo: Pixels) -> Pair:
        """Crop a photograph (H, W, 3) to a multiple of the scale, and reduce it."""
        eight_bit = torch.tensor(photo).permute(2, 0, 1)
        height, width = (size // SCALE * SCALE for size in eight_bit.shape[1:])
        eight_bit = eight_bit[:, :height, :width]
        return cls(eight_bit.float() / 255, downscale(eight_bit, SCALE).float() / 255)

    def random_crop(self, generator: torch.Generator) -> Pair:
        """Cut out a random HR patch of 48x48 and its LR patch."""
        side = CROP // SCALE
        y, x = (int(torch.randint(size - side, (1,), generator=generator)) for size in self.lr.shape[1:])
        hr = self.hr[:, SCALE * y : SCALE * y + CROP, SCALE * x : SCALE * x + CROP]
        return Pair(hr, self.lr[:, y : y + side, x : x + side])


@dataclass(frozen=True)
class Variant:
    """A way to train, right or wrong."""

    name: str
    description: str
    loss: Loss
    lr_factor: float = 1
    """Factor on the learning rate."""


def main() -> None:
    """Train every variant with and without BatchNorm, and print the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--weights", required=True, help="VGG-19 with torchvision's names, at least up to conv3_1")
    parser.add_argument("--steps", type=int, default=150, help="steps of each training (%(default)s)")
    parser.add_argument("--lr", type=float, default=4e-4, help="learning rate (%(default)g)")
    arguments = parser.parse_args()
    results = []
    print(f"{'':46}{'with BatchNorm':>18}{'without':>18}")
    for variant in make_variants(arguments.weights):
        cells = []
        for batch_norm in (True, False):
            psnr = train(variant.loss, batch_norm, arguments.steps, arguments.lr * variant.lr_factor)
            cells.append(f"{psnr:15.2f} dB")
            name = f"perceptual_{variant.name}" + ("_batch_norm" if batch_norm else "")
            value = round(psnr, 2) if math.isfinite(psnr) else None
            results.append(Result(name, value, "dB on a held-out photograph", None, "higher"))
        print(f"{variant.description:46}" + "".join(cells), flush=True)
    _, held_out = photographs()
    bicubic = F.interpolate(held_out.lr[None], scale_factor=SCALE, mode="bicubic")[0]
    print(f"{'(bicubic)':46}{psnr_of(bicubic, held_out.hr):15.2f} dB")
    print_results(results)


def make_variants(weights: str) -> list[Variant]:
    """Return the right way to train, then the mistakes."""
    good, deep, unnormalised = (load_vgg(weights, layer) for layer in ("conv2_2", "conv3_1", "conv2_2"))
    unnormalised.normalise = nn.Identity()  # type: ignore[assignment]
    return [
        Variant(
            "correct", "as built here", lambda sr, hr: good(sr, hr).mean() + 5.5e-4 * total_variation(sr, hr).mean()
        ),
        Variant(
            "no_gradient",
            "loss copied into a new tensor: no gradient",
            lambda sr, hr: torch.tensor(good(sr, hr).mean().item()),
        ),
        Variant("unnormalised", "input not normalised for VGG", lambda sr, hr: unnormalised(sr, hr).mean()),
        Variant("range", "target in [-1, 1], scored as [0, 1]", lambda sr, hr: good(sr, 2 * hr - 1).mean()),
        Variant("deeper", "deeper layer alone, conv3_1", lambda sr, hr: deep(sr, hr).mean()),
        Variant("high_lr", "learning rate 100 times higher", lambda sr, hr: good(sr, hr).mean(), lr_factor=100),
    ]


def load_vgg(weights: str, layer: str) -> PerceptualLoss:
    """Load the perceptual term of the objective, with one layer of VGG-19."""
    options = [
        f"train.loss={json.dumps({'perceptual': 1.0})}",
        f"train.perceptual.layers={json.dumps({layer: 1.0})}",
        f"train.perceptual.weights={weights}",
    ]
    (term,) = features.load_terms(parse(options, "train", "").train, torch.device("cpu"))
    assert isinstance(term.distance, PerceptualLoss)
    return term.distance


@functools.cache
def photographs() -> tuple[list[Pair], Pair]:
    """Return the training photographs, and the held-out one."""
    training = [Pair.from_photo(np.asarray(photo)) for photo in (data.astronaut(), data.coffee(), data.rocket())]
    return training, Pair.from_photo(np.asarray(data.chelsea())[:288, 80:368])


def train(loss: Loss, batch_norm: bool, steps: int, lr: float) -> float:
    """Train a small network, and return its PSNR in dB on the held-out photograph."""
    training, held_out = photographs()
    torch.manual_seed(0)
    net = SRResNet(SCALE, channels=16, blocks=4, batch_norm=batch_norm, init="paper")
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        numbers = range(step * BATCH, (step + 1) * BATCH)
        pairs = [training[number % len(training)].random_crop(generator) for number in numbers]
        total = loss(net(torch.stack([pair.lr for pair in pairs])), torch.stack([pair.hr for pair in pairs]))
        optimizer.zero_grad()
        if total.requires_grad:
            total.backward()
        optimizer.step()
    net.eval()
    with torch.no_grad():
        return psnr_of(net(held_out.lr[None])[0], held_out.hr)


def psnr_of(sr: Tensor, hr: Tensor) -> float:
    """Return the PSNR in dB for a peak of 1, without clamping; NaN if the output is not finite."""
    mse = (sr - hr).square().mean().item()
    return -10 * math.log10(mse) if math.isfinite(mse) else math.nan


if __name__ == "__main__":
    main()
