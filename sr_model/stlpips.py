"""ST-LPIPS, a perceptual distance that was fitted to human judgements; no training of this project uses it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sr_model.pretrained import load_weights

_FILE_NAMES = {
    **{f"net.slice{i + 1}.{place}": f"convolutions.{i}" for i, place in enumerate((0, 5, 9, 11, 13))},
    **{f"lin{i}.model.1": f"heads.{i}" for i in range(5)},
    "scaling_layer": "scaling",
}
"""The published file's names of layers, with those of this module. Its blur filters are the constant in `_blur`."""
_STRIDES = (2, 4, 8, 8, 8)
"""Pixels between neighbouring positions of each feature."""
_SMALLEST = 21
"""Pixels along an axis that the trunk needs. Smaller images are extended by copies of their last rows and columns."""
_BAND = 1_500_000
"""Pixels that are compared at a time, at most about; features and what leads to them take 600 bytes for each."""
_MARGIN = 64
"""Rows beyond a band that its features depend on: 48 above and 52 below, rounded up to a multiple of the strides."""


class STLPIPS(nn.Module):
    """Shift-tolerant LPIPS (Ghildyal and Liu 2022, arXiv:2207.13686), the variant with AlexNet; 0 for equal images.

    Trunk and heads were trained on human judgements of pairs of distorted images (BAPPS), so its values differ from
    those of LPIPS. The trunk is AlexNet with a first convolution of stride 1, and with blurred subsampling wherever
    AlexNet has a stride. The distance is equation 1 of LPIPS (Zhang et al. 2018, arXiv:1801.03924): at every position,
    the vector of channels is scaled to length 1; squared differences are weighted by channel, averaged over positions,
    and added over five layers.

    Args:
        weights: state dict with the names of the published file, in any floating-point type; computed in float32.

    Raises:
        ValueError: if weights are missing.
        RuntimeError: if a shape differs.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            [
                nn.Conv2d(3, 64, 11, padding=2),
                nn.Conv2d(64, 192, 5, padding=2),
                nn.Conv2d(192, 384, 3, padding=1),
                nn.Conv2d(384, 256, 3, padding=1),
                nn.Conv2d(256, 256, 3, padding=1),
            ]
        )
        self.heads = nn.ModuleList([nn.Conv2d(width, 1, 1, bias=False) for width in (64, 192, 384, 256, 256)])
        self.scaling = _Scaling()
        own = {}
        for name, value in weights.items():
            layer, _, kind = name.rpartition(".")
            if layer in _FILE_NAMES:
                own[f"{_FILE_NAMES[layer]}.{kind}"] = value
        load_weights(self, own, "ST-LPIPS")
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        """Compute the distances of images from one ground truth, (B,).

        Large images are compared in bands of rows that overlap, so memory does not grow with their height.

        Args:
            sr: (B, 3, H, W) RGB in [0, 1].
            hr: the ground truth, (1, 3, H, W).
        """
        missing = [max(_SMALLEST - size, 0) for size in hr.shape[-2:]]
        if any(missing):
            sr, hr = (F.pad(image, (0, missing[1], 0, missing[0]), mode="replicate") for image in (sr, hr))
        totals = sr.new_zeros(len(sr), len(_STRIDES), dtype=torch.float64)
        counts = [0] * len(_STRIDES)
        for rows, own in _bands(*hr.shape[-2:]):
            truth = [part[:, :, own_rows] for part, own_rows in zip(self._features(hr[:, :, rows]), own, strict=True)]
            counts = [count + part[0, 0].numel() for count, part in zip(counts, truth, strict=True)]
            for image, total in zip(sr, totals, strict=True):
                found = self._features(image[None, :, rows])
                for i, (head, x, y, own_rows) in enumerate(zip(self.heads, found, truth, own, strict=True)):
                    total[i] += head((x[:, :, own_rows] - y).square_()).sum(dtype=torch.float64)
        return (totals / totals.new_tensor(counts)).sum(1).float()

    def _features(self, image: Tensor) -> list[Tensor]:
        """Return the compared features of (1, 3, H, W): five maps whose vectors of channels have length 1."""
        x = self.scaling(image * 2 - 1)
        found = []
        for i, convolution in enumerate(self.convolutions):
            if i in (1, 2):  # AlexNet pools before these
                x = _blur(F.max_pool2d(x, 3, stride=1))
            x = convolution(x)
            x = (x if i else _blur(x)).relu_()
            found.append(x / (x.square().sum(1, keepdim=True).sqrt_() + 1e-10))
        return found


class _Scaling(nn.Module):
    """Brings RGB in [-1, 1] to the range that the trunk was trained on."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(1, 3, 1, 1))
        self.register_buffer("scale", torch.ones(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        return (image - self.shift) / self.scale


def _bands(height: int, width: int) -> Iterator[tuple[slice, tuple[slice, ...]]]:
    """Divide the rows of an image into bands.

    Yields:
        The rows of a band with its margins, and the rows of each feature of this part that belong to the band alone.
        Bands begin at multiples of the strides, so a feature of a part is a part of the whole image's feature.
    """
    step = max(_BAND // width, 4 * _MARGIN) // 8 * 8
    starts = range(0, max(height - 2 * _MARGIN, 1), step)  # the last band is no narrower than its margins
    for start in starts:
        top, end = max(start - _MARGIN, 0), None if start == starts[-1] else start + step
        yield (
            slice(top, end and end + _MARGIN),
            tuple(slice((start - top) // stride, end and (end - top) // stride) for stride in _STRIDES),
        )


def _blur(x: Tensor) -> Tensor:
    """Subsample a map by 2, blurred with the filter [1 2 1] x [1 2 1] / 16; two mirrored pixels surround the map."""
    taps = x.new_tensor([0.25, 0.5, 0.25])
    channels = x.shape[1]
    kernel = (taps[:, None] * taps).expand(channels, 1, 3, 3)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, stride=2, groups=channels)
