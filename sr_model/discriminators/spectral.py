"""Spectral norm: convolutions whose largest singular value is 1 (Miyato et al. 2018, arXiv:1802.05957)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_FIRST_ITERATIONS = 15
"""Power iterations that estimate the spectral norm of the initial weights."""


class SpectralConv2d(nn.Conv2d):
    """A convolution whose weights are divided by an estimate of their largest singular value.

    The weights count as a matrix (out, in * kernel). PyTorch's own form makes a power iteration in each forward pass,
    so its result depends on the number of passes in a step. Here, `iterate` makes it, and `update_norms` calls it once
    a step.

    Args:
        before: channels of the input.
        width: channels of the output.
        kernel: side of the kernel in pixels.
        stride: pixels between neighbouring outputs.
        padding: zeros around the input.
    """

    left: Tensor
    right: Tensor

    def __init__(self, before: int, width: int, kernel: int, stride: int, padding: int) -> None:
        super().__init__(before, width, kernel, stride, padding)
        matrix = self.weight.flatten(1)
        self.register_buffer("left", F.normalize(torch.randn(matrix.shape[0]), dim=0))
        self.register_buffer("right", F.normalize(torch.randn(matrix.shape[1]), dim=0))
        for _ in range(_FIRST_ITERATIONS):
            self.iterate()

    @torch.no_grad()
    def iterate(self) -> None:
        """Make one power iteration: bring the singular vectors closer to those of the present weights."""
        matrix = self.weight.flatten(1)
        self.right.copy_(F.normalize(matrix.T @ self.left, dim=0))
        self.left.copy_(F.normalize(matrix @ self.right, dim=0))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve with the normalised weights."""
        with torch.autocast(x.device.type, enabled=False):
            # The vectors change in place between two steps, and a graph keeps what it was computed from.
            norm = torch.dot(self.left.clone(), self.weight.flatten(1) @ self.right.clone())
            weight = self.weight / norm
        y: Tensor = self._conv_forward(x, weight, self.bias)
        return y


def update_norms(network: nn.Module) -> None:
    """Let the estimated spectral norms of a network follow its present weights, by one power iteration."""
    for module in network.modules():
        if isinstance(module, SpectralConv2d):
            module.iterate()
