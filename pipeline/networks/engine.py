"""Compute a network over images of any size, in the form and precision in which its device is fastest."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import product
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.networks.devices import free_bytes, has_bf16, tf32
from sr_model.networks.super_resolver import SuperResolver
from sr_model.noise import beside_noise
from sr_model.streaming import can_stream, stream, values_per_column
from sr_model.tiling import Span, affordable_side, spans

Precision = Literal["auto", "fp32", "bf16", "fp16"]
"""Numbers that a network computes with."""

PRECISIONS: tuple[Precision, ...] = get_args(Precision)

Rectangle = tuple[int, int, Tensor]
"""Row and column in the enlarged images, and their values from there on: (B, 3, rows, columns), float32."""

_TYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_MOST_ERROR = 0.5
"""Largest mean squared difference between results of half precision and of fp32, in grey levels squared, for which
"auto" takes half precision. It stands for less than 0.01 dB of PSNR on photographs: the bundled network has 0.3 in
bf16, which costs Set5 0.005 dB, and the cost is proportional."""
_PROBE = 48
"""Side of the image on which precisions are compared, in LR pixels."""
_VALUES_PER_CORE, _VALUES_ON_GPU = 2**20, 2**26
"""Values of a layer that are computed at once: what a processor's cache holds, and what keeps a GPU busy."""
_TYPICAL_CHANNELS = 64
"""Channels by which the height of a strip is chosen; layers with more of them divide it."""
_MOST_BYTES = 2**29
"""Most bytes for what layers keep between strips, or for a tile; and never more than a quarter of what is free."""
_NARROWEST = 64
"""Least side of a part that is computed at once, in LR pixels, without its overlap; that of a strip is also at least
its overlap, so that no more than two thirds of the work are done twice."""


class Engine:
    """A network that is prepared for computing.

    A network of plain layers (`SuperResolver.for_inference`) is computed in strips of rows, and any other one in tiles
    that overlap by its receptive field. Either way, memory is bounded and no seam shows. A network that samples gets
    noise that depends on its seed and on the place of a pixel alone.

    Args:
        net: the network, on any device; it stays as it is.
        precision: numbers to compute with. "auto" means fp16 on a GPU with tensor cores, bf16 on a CPU with
            instructions for it, and fp32 elsewhere, or if a test image shows that the network needs it.
        tile: widest part that is computed at once, in LR pixels, without its overlap; by default what a quarter of the
            free memory suffices for, and at most 512 MB.
    """

    def __init__(self, net: SuperResolver, precision: Precision = "auto", tile: int | None = None) -> None:
        self.scale = net.scale
        self._margin, self._tile = net.receptive_radius, tile
        self._noise_channels, self._seed = net.noise_channels, net.sampling.seed if net.sampling else 0
        self._device = next(net.parameters()).device
        plain = net.for_inference().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._exact = _Form(plain, torch.float32)
        wanted = _fast_precision(self._device) if precision == "auto" else precision
        self._fast = self._exact if wanted == "fp32" else _Form(plain, _TYPES[wanted])
        if precision == "auto" and wanted != "fp32" and not self._agree():
            wanted, self._fast = "fp32", self._exact
        self.precision: Precision = wanted
        """Numbers that images of 8 bits are computed with."""

    def run(self, lr: Tensor, largest: int) -> Iterator[Rectangle]:
        """Enlarge images of one size.

        Args:
            lr: (B, C, h, w) with C = 1 or 3, uint8 or uint16, on any device. uint16 is computed in fp32.
            largest: the value of white.

        Yields:
            Rectangles that cover the enlarged images once, on the network's device, nominally in [0, 1], not clamped.
        """
        rectangles = self._run(lr, largest)
        while True:
            with tf32(False):  # which has to hold while the network computes, and not between two rectangles
                rectangle = next(rectangles, None)
            if rectangle is None:
                return
            yield rectangle

    @torch.no_grad()
    def _run(self, lr: Tensor, largest: int) -> Iterator[Rectangle]:
        height, width = lr.shape[2:]
        side = self._tile or self._free_side(len(lr))
        bands = spans(height, height if can_stream(self._exact.net) else side, self._margin)
        forms = [self._exact] if lr.dtype == torch.uint16 or self._fast is self._exact else [self._fast, self._exact]
        for rows, columns in product(bands, spans(width, side, self._margin)):
            done = rows.own.start * self.scale
            for form in forms:
                for top, values in self._compute(form, lr, largest, rows, columns):
                    new = values[:, :, max(done - top, 0) :]
                    if form.overflows and not new.isfinite().all():
                        break  # fp32 continues from here
                    if new.shape[2]:
                        yield done, columns.own.start * self.scale, new
                        done += new.shape[2]
                else:
                    break

    def _compute(
        self, form: _Form, lr: Tensor, largest: int, rows: Span, columns: Span
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield consecutive rows of the enlarged columns, (B, 3, rows, columns), each with the number of its first."""

        def read(some: slice) -> Tensor:
            part = lr[:, :, some, columns.seen]
            # Few devices compute with uint16, and a byte is sent four times as fast as a float.
            part = part.float().to(self._device) if part.dtype == torch.uint16 else part.to(self._device).float()
            part = part.div_(largest).expand(-1, 3, -1, -1)
            part = beside_noise(part, self._seed, self._noise_channels, some, columns.seen)
            return part.contiguous(memory_format=torch.channels_last)

        kept, across = rows.kept(self.scale), columns.kept(self.scale)
        first, done = rows.own.start * self.scale - kept.start, 0
        for strip in form.compute(read, rows.seen):
            above = max(kept.start - done, 0)
            yield first + done + above, strip[:, :, above : kept.stop - done, across]
            done += strip.shape[2]

    def _free_side(self, images: int) -> int:
        """Return the widest part, in LR pixels without its overlap, that there is memory for."""
        free = min(_MOST_BYTES, free_bytes(self._device) / 4) / images
        if not can_stream(self._exact.net):
            return max(affordable_side(free / 1e6, self._margin), _NARROWEST)
        values = values_per_column(self._exact.net, 3 + self._noise_channels)
        columns = free / (values * torch.float32.itemsize)
        return max(int(columns) - 2 * self._margin, _NARROWEST, self._margin)

    def _agree(self) -> bool:
        """Tell whether the fast form and the exact one make about the same of a test image."""
        generator = torch.Generator().manual_seed(0)
        coarse, fine = (torch.rand(1, 3, side, side, generator=generator) for side in (_PROBE // 8, _PROBE))
        smooth = F.interpolate(coarse, scale_factor=8, mode="bicubic")
        image = (smooth + 0.1 * fine).clamp_(0, 1).mul_(255).byte()
        (whole,) = spans(_PROBE, _PROBE, self._margin)
        with torch.no_grad(), tf32(False):
            fast, exact = (
                torch.cat([values for _, values in self._compute(form, image, 255, whole, whole)], dim=2).mul_(255)
                for form in (self._fast, self._exact)
            )
            return bool((fast - exact).square().mean() <= _MOST_ERROR)  # False for a NaN


class _Form:
    """A network in one precision."""

    def __init__(self, plain: nn.Module, dtype: torch.dtype) -> None:
        self.net = plain if dtype == torch.float32 else copy.deepcopy(plain)
        self.overflows = dtype == torch.float16
        self._dtype = dtype
        self._head, self._offset = nn.Sequential(), None
        if can_stream(self.net) and dtype != torch.float32:
            self._offset = _centre_output(self.net, dtype)
            if dtype == torch.bfloat16:
                self._head, self.net = _split_head(self.net)
        self.net.to(dtype)

    def compute(self, read: Callable[[slice], Tensor], rows: slice) -> Iterator[Tensor]:
        """Yield consecutive rows of the result, (B, 3, rows, columns), float32.

        Args:
            read: returns some LR rows, (B, 3, rows, columns) float32.
            rows: the LR rows.
        """
        if not can_stream(self.net):
            yield self.net(read(rows).to(self._dtype)).float()
            return
        height = rows.stop - rows.start
        values = read(slice(rows.start, rows.start + 1))
        most = _VALUES_ON_GPU if values.is_cuda else _VALUES_PER_CORE * torch.get_num_threads()
        step = max(most // (_TYPICAL_CHANNELS * len(values) * values.shape[3]), 1)
        strips = (read(slice(start, min(start + step, rows.stop))) for start in range(rows.start, rows.stop, step))
        ahead = stream(self._head, height, strips, most) if len(self._head) else strips
        for strip in stream(self.net, height, (strip.to(self._dtype) for strip in ahead), most):
            yield strip.float() if self._offset is None else strip.float().add_(self._offset)


@torch.no_grad()
def _centre_output(plain: nn.Sequential, dtype: torch.dtype) -> Tensor | None:
    """Let a network compute about the output minus 1/2 in a dtype, and return what to add to its output, (C, 1, 1).

    Numbers near 0 are rounded more finely than those near 1. If the layers do not allow it, nothing changes.
    """
    if len(plain) < 2:
        return None
    conv, last = plain[-2], plain[-1]
    if not isinstance(conv, nn.Conv2d) or conv.bias is None or not isinstance(last, nn.PixelShuffle):
        return None
    biases = conv.bias.view(-1, last.upscale_factor**2)
    if not torch.equal(biases, biases[:, :1].expand_as(biases)):
        return None
    bias = biases[:, 0, None, None].clone()
    conv.bias.sub_(0.5)
    return bias - bias.sub(0.5).to(dtype).float()


def _split_head(plain: nn.Sequential) -> tuple[nn.Sequential, nn.Sequential]:
    """Divide a network behind the layer that reads the image: bf16 has no more than 256 grey levels."""
    layers = list(plain)
    first = next(index for index, layer in enumerate(layers) if _has_convolution(layer)) + 1
    return nn.Sequential(*layers[:first]), nn.Sequential(*layers[first:])


def _has_convolution(layer: nn.Module) -> bool:
    return any(isinstance(part, nn.Conv2d) for part in layer.modules())


def _fast_precision(device: torch.device) -> Precision:
    """Return the precision in which the hardware of a device computes fastest."""
    if device.type == "cuda":
        return "fp16" if torch.cuda.get_device_capability(device)[0] >= 7 else "fp32"
    return "bf16" if device.type == "cpu" and has_bf16(device) else "fp32"
