"""Anything that enlarges images: a network, or bicubic interpolation. All have one interface."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.networks.engine import Engine, Precision
from pipeline.settings import UserError
from sr_model.degrade import imresize
from sr_model.networks.super_resolver import SuperResolver

Progress = Callable[[int, int], object]
"""Is called with the number of output pixels that are done, and the number of all output pixels."""

_LARGEST = {torch.uint8: 255, torch.uint16: 65535}
_BICUBIC_STRIP = 2**22
"""Values of the enlarged image that bicubic interpolation computes at once, in float64."""
_BICUBIC_REACH = 2
"""LR pixels to each side that an interpolated pixel depends on."""
_CONSISTENT_REACH = 4
"""LR pixels to each side that a correction depends on: 2 for the reduction and 2 for the interpolation."""


class Part(NamedTuple):
    """A rectangle of an enlarged image."""

    top: int
    left: int
    values: Tensor
    """(C, rows, columns) of a floating-point type; 0 is black and 1 is the largest value, and nothing is clamped."""


class Upscaler(ABC):
    """Enlarges images by an integer factor. A subclass implements `parts`."""

    scale: int
    """Factor by which height and width grow."""
    samples: bool = False
    """True for a network that draws images in steps."""

    @abstractmethod
    def parts(self, lr: Tensor) -> Iterator[Part]:
        """Enlarge an image part by part, before values are rounded.

        Args:
            lr: as for `enlarge`.

        Yields:
            Rectangles that cover the enlarged image once, on any device, with the channels of `lr`.
        """

    def enlarge(self, lr: Tensor, progress: Progress | None = None) -> Tensor:
        """Enlarge an image.

        Args:
            lr: (3, h, w) sRGB or (1, h, w) grey; uint8 with values in 0..255, or uint16 with values in 0..65535.
            progress: is told about each finished part.

        Returns:
            (C, s*h, s*w) with the channels, the dtype and the device of `lr`. In memory, the channels of a pixel are
            neighbours.
        """
        channels, height, width = lr.shape
        out = lr.new_empty(height * self.scale, width * self.scale, channels).permute(2, 0, 1)
        done = 0
        for top, left, values in self.parts(lr):
            rows, columns = values.shape[1:]
            out[:, top : top + rows, left : left + columns] = _rounded(values, lr.dtype)
            done += rows * columns
            if progress:
                progress(done, out[0].numel())
        return out

    def enlarge_several(self, lrs: Sequence[Tensor]) -> list[Tensor]:
        """Enlarge images of one shape and dtype, together if that is faster; see `enlarge`."""
        return [self.enlarge(lr) for lr in lrs]


class BicubicUpscaler(Upscaler):
    """MATLAB's bicubic interpolation in float64."""

    def __init__(self, scale: int) -> None:
        self.scale = scale

    def parts(self, lr: Tensor) -> Iterator[Part]:
        """Enlarge an image in strips of rows; see `Upscaler.parts`."""
        channels, height, width = lr.shape
        count = max(_BICUBIC_STRIP // (channels * width * self.scale**2), 8)
        for start in range(0, height, count):
            stop = min(start + count, height)
            first, last = max(start - _BICUBIC_REACH, 0), min(stop + _BICUBIC_REACH, height)
            strip = imresize(lr[:, first:last], ((last - first) * self.scale, width * self.scale))
            own = strip[:, (start - first) * self.scale : (stop - first) * self.scale]
            yield Part(start * self.scale, 0, own.div_(_LARGEST[lr.dtype]))


class NetworkUpscaler(Upscaler):
    """A network in the form that computes fastest on its device.

    Args:
        net: the network, on any device; it stays as it is.
        precision: see `pipeline.networks.loading.load_upscaler`.
        tile: see `pipeline.networks.loading.load_upscaler`.
    """

    def __init__(self, net: SuperResolver, precision: Precision = "auto", tile: int | None = None) -> None:
        self.scale, self.samples = net.scale, net.sampling is not None
        self._engine = Engine(net, precision, tile)

    @property
    def precision(self) -> Precision:
        """The precision in which 8-bit images are computed."""
        return self._engine.precision

    def parts(self, lr: Tensor) -> Iterator[Part]:
        """Enlarge an image in strips or tiles; see `Upscaler.parts`."""
        for top, left, values in self._engine.run(lr[None], _LARGEST[lr.dtype]):
            yield Part(top, left, _with_channels(values, len(lr))[0])

    def enlarge_several(self, lrs: Sequence[Tensor]) -> list[Tensor]:
        """Enlarge images of one shape and dtype in one batch; see `Upscaler.enlarge`."""
        batch = torch.stack([_plain(lr) for lr in lrs]).view(lrs[0].dtype)
        count, channels, height, width = batch.shape
        out = batch.new_empty(count, height * self.scale, width * self.scale, channels).permute(0, 3, 1, 2)
        for top, left, values in self._engine.run(batch, _LARGEST[batch.dtype]):
            rows, columns = values.shape[2:]
            rounded = _rounded(_with_channels(values, channels), batch.dtype)
            out[:, :, top : top + rows, left : left + columns] = rounded
        return list(out)


class SelfEnsemble(Upscaler):
    """The mean of another upscaler over the eight orientations of an image (Lim et al. 2017, arXiv:1707.02921).

    The mean is taken before values are rounded. It takes eight times as long, and 4 bytes of memory for each value.

    Raises:
        UserError: if the upscaler draws its images.
    """

    def __init__(self, upscaler: Upscaler) -> None:
        refuse_ensemble(upscaler.samples)
        self.scale = upscaler.scale
        self._upscaler = upscaler

    def parts(self, lr: Tensor) -> Iterator[Part]:
        """Enlarge an image, as one part; see `Upscaler.parts`."""
        channels, height, width = lr.shape
        total = torch.zeros(channels, height * self.scale, width * self.scale, device=lr.device)
        for swapped, *mirrored in itertools.product((False, True), repeat=3):
            axes = [axis for axis, is_mirrored in enumerate(mirrored, start=1) if is_mirrored]
            turned = _plain(lr).flip(axes).view(lr.dtype)
            for top, left, part in self._upscaler.parts(turned.transpose(1, 2) if swapped else turned):
                values = part.transpose(1, 2) if swapped else part
                place = [left, top] if swapped else [top, left]
                for axis in axes:
                    place[axis - 1] = total.shape[axis] - place[axis - 1] - values.shape[axis]
                rows, columns = (slice(x, x + size) for x, size in zip(place, values.shape[1:], strict=True))
                total[:, rows, columns] += values.flip(axes).to(total)
        yield Part(0, 0, total.div_(8))


class Consistent(Upscaler):
    """Another upscaler whose images, reduced with MATLAB's bicubic, are nearly the LR image (back-projection).

    The LR image minus the reduced image is enlarged with bicubic interpolation and added once (Irani and Peleg 1991).
    It takes 4 bytes of memory for each value of the image.
    """

    def __init__(self, upscaler: Upscaler) -> None:
        self.scale, self.samples = upscaler.scale, upscaler.samples
        self._upscaler = upscaler

    def parts(self, lr: Tensor) -> Iterator[Part]:
        """Enlarge an image in strips of rows; see `Upscaler.parts`."""
        channels, height, width = lr.shape
        scale = self.scale
        whole = torch.empty(channels, height * scale, width * scale)
        for top, left, values in self._upscaler.parts(lr):
            whole[:, top : top + values.shape[1], left : left + values.shape[2]] = values.clamp(0, 1)
        count = max(_BICUBIC_STRIP // (channels * width * scale**2), 8)
        for start in range(0, height, count):
            stop = min(start + count, height)
            first, last = max(start - _CONSISTENT_REACH, 0), min(stop + _CONSISTENT_REACH, height)
            wanted = _plain(lr)[:, first:last].view(lr.dtype).to("cpu", torch.float64) / _LARGEST[lr.dtype]
            lack = wanted - imresize(whole[:, first * scale : last * scale], (last - first, width))
            correction = imresize(lack, ((last - first) * scale, width * scale))
            own = slice((start - first) * scale, (stop - first) * scale)
            yield Part(start * scale, 0, whole[:, start * scale : stop * scale] + correction[:, own])


def refuse_ensemble(samples: bool) -> None:
    """Raise a UserError for a model that draws its images: it would draw eight, and their mean is blurred."""
    if samples:
        raise UserError(
            "the self-ensemble averages eight images, which blurs those of a model that draws images in steps: "
            "expected a model that makes its image at once"
        )


def _plain(lr: Tensor) -> Tensor:
    """Return a view that every operation that moves values takes; PyTorch has few operations for uint16."""
    return lr.view(torch.int16) if lr.dtype == torch.uint16 else lr


def _with_channels(values: Tensor, channels: int) -> Tensor:
    """Average (B, 3, h, w) over the colours if images have one channel."""
    return values.mean(dim=1, keepdim=True) if channels == 1 else values


def _rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Round values in [0, 1] to levels of an integer type; halves are rounded up."""
    largest = _LARGEST[dtype]
    # The tiny addition makes up for the rounding of a half that was divided by the largest level before.
    return values.mul(largest).add_(0.5 + 1e-9).floor_().clamp_(0, largest).to(dtype)
