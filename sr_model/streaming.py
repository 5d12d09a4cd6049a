"""Compute a row of plain layers over an image in strips of rows, without computing anything twice.

A tile has to overlap its neighbours by the receptive field, 41 pixels to each side for SRResNet, so that 43 % of the
work on tiles of 256 pixels is done twice. Here strips go through the layers one after the other, and each convolution
keeps the last rows of its input, which belong above the next strip. So memory depends on the width of the image alone,
strips fit into the processor's cache, and no seam can show: the result equals that of the whole image up to rounding.

Shape legend: B images, C channels, r rows of a strip, W width; strips are (B, C, r, W), in channels_last layout.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sr_model.networks.inference import Beside, Residual, Select, Step

_Joining = Residual | Step | Beside
"""Layers that join their input and the output of their body."""
_Into = Callable[[Tensor, Tensor], object]
"""Computes a layer of its first argument, and writes the result into the second."""
_Stage = Callable[[Tensor], Iterator[Tensor]]
"""Makes any number of strips of a strip, and keeps what it needs for the next one."""


def can_stream(net: nn.Module) -> TypeGuard[nn.Sequential]:
    """Tell whether a network consists of layers that can be computed in strips."""
    return isinstance(net, nn.Sequential) and all(map(_is_plain, net))


@torch.no_grad()
def stream(net: nn.Sequential, height: int, strips: Iterable[Tensor], most: int) -> Iterator[Tensor]:
    """Compute a network for which `can_stream` is true.

    Args:
        net: the layers, on the device and of the dtype of the strips.
        height: rows of the image.
        strips: images of one size from top to bottom, (B, C, r, W).
        most: largest number of values of a layer's output that are computed at once, unless a single row has more.

    Yields:
        The output from top to bottom, (B, C, r, W) with any number of rows.
    """
    # This is a generator function, because only then does `no_grad` hold while the layers compute.
    layers = list(net)
    yield from _run(
        [_once(partial(_written, write=_copy, room=_room(layers))), *_stages(layers, height, most, 0)], strips
    )


# Where a strip goes next decides where it is written: with free rows above it, into which the next convolution copies
# the last rows of the strip before. So no strip is copied. Nothing refers to a strip that it has handed on, because 37
# layers would keep one each.


def values_per_column(net: nn.Sequential, channels: int = 3) -> float:
    """Number of values that layers keep between strips, for each column of an input of so many channels."""
    return _kept(list(net), channels)[0]


def _is_plain(layer: nn.Module) -> bool:
    if isinstance(layer, _Joining):
        return can_stream(layer.body)
    if isinstance(layer, nn.Conv2d):
        (height, width), unit = layer.kernel_size, (1, 1)
        keeps_size = height % 2 == width % 2 == 1 and layer.padding == (height // 2, width // 2)
        moves_by_one = layer.stride == layer.dilation == unit
        return keeps_size and layer.padding_mode == "zeros" and moves_by_one and layer.groups == 1
    return isinstance(layer, nn.PixelShuffle | nn.PixelUnshuffle | nn.ReLU | nn.PReLU | Select)


def _kept(layers: list[nn.Module], channels: int) -> tuple[float, float, int]:
    """Values that layers keep, rows of their input by which they lag behind, and channels of their output."""
    values, lag, scale = 0.0, 0.0, 1.0
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            values += scale * (layer.kernel_size[0] - 1) * layer.in_channels
            lag, channels = lag + layer.kernel_size[0] // 2 / scale, layer.out_channels
        elif isinstance(layer, _Joining):
            inside, behind, made = _kept(list(layer.body), channels)
            values, lag = values + scale * (inside + behind * channels), lag + behind / scale
            channels += made if isinstance(layer, Beside) else 0
        elif isinstance(layer, nn.PixelShuffle):
            scale, channels = scale * layer.upscale_factor, channels // layer.upscale_factor**2
        elif isinstance(layer, nn.PixelUnshuffle):
            scale, channels = scale / layer.downscale_factor, channels * layer.downscale_factor**2
        elif isinstance(layer, Select):
            channels = sum(len(range(channels)[part]) for part in layer.parts)
    return values, lag, channels


def _run(stages: list[_Stage], strips: Iterable[Tensor]) -> Iterator[Tensor]:
    """Take each strip through all stages before the next one is read.

    A chain of generators would do the same, but hundreds of layers, as a network that draws an image in steps has, are
    more calls within each other than Python allows.
    """
    running = [iter(strips)]
    while running:
        strip = next(running[-1], None)
        if strip is None:
            running.pop()
            continue
        running.append(stages[len(running) - 1](strip))
        del strip
        if len(running) > len(stages):
            yield from running.pop()


def _stages(layers: list[nn.Module], height: int, most: int, room: int) -> list[_Stage]:
    """Return the stages of layers. Strips come with `_room(layers)` free rows above them, and leave with `room`."""
    stages: list[_Stage] = []
    while layers:
        layer, *layers = layers
        if isinstance(layer, nn.Conv2d):
            write: _Into = _copy
            if layers and isinstance(layers[0], nn.ReLU | nn.PReLU):
                activation, *layers = layers
                write = _activation(activation)
            stages.append(_Convolution(layer, write, height, most, _room(layers, room)))
        elif isinstance(layer, _Joining):
            body, waiting = list(layer.body), deque[Tensor]()
            stages.append(_once(partial(_remember, waiting, _room(body))))
            stages += _stages(body, height, most, 0)
            stages.append(_once(partial(_joined, layer, waiting, _room(layers, room))))
        elif isinstance(layer, nn.PixelShuffle | nn.PixelUnshuffle | Select):
            if isinstance(layer, nn.PixelUnshuffle):
                stages.append(_WholeBlocks(layer.downscale_factor))
                height //= layer.downscale_factor
            elif isinstance(layer, nn.PixelShuffle):
                height *= layer.upscale_factor
            stages += [_once(layer), _once(partial(_written, write=_copy, room=_room(layers, room)))]
        else:
            stages.append(_once(partial(_written, write=_activation(layer), room=_room(layers, room))))
    return stages


def _once(make: Callable[[Tensor], Tensor]) -> _Stage:
    """Return a stage that makes one strip of each."""

    def stage(strip: Tensor) -> Iterator[Tensor]:
        held = [strip]
        del strip  # so that its memory is free while other layers compute
        yield make(held.pop())

    return stage


def _remember(waiting: deque[Tensor], room: int, strip: Tensor) -> Tensor:
    waiting.append(strip[:, :, room:])
    return strip


def _room(layers: list[nn.Module], otherwise: int = 0) -> int:
    """Number of free rows that the first of some layers needs above a strip."""
    if not layers:
        return otherwise
    first = layers[0]
    if isinstance(first, _Joining):
        return _room(list(first.body))
    return first.kernel_size[0] - 1 if isinstance(first, nn.Conv2d) else 0


def _copy(x: Tensor, out: Tensor) -> None:
    out.copy_(x)


class _Convolution:
    """Convolves strips of an image of `height` rows, and writes what `write` makes of the result below free rows."""

    def __init__(self, conv: nn.Conv2d, write: _Into, height: int, most: int, room: int) -> None:
        self._conv, self._height, self._most = conv, height, most
        self._finish = partial(_written, write=write, room=room)
        self._seen = 0
        self._above: Tensor | None = None

    def __call__(self, roomy: Tensor) -> Iterator[Tensor]:
        conv, height, most = self._conv, self._height, self._most
        overlap, across = (side - 1 for side in conv.kernel_size)
        if roomy.shape[2] - overlap == height and height * _values_per_row(conv, roomy) <= most:  # the whole image
            yield self._finish(F.conv2d(roomy[:, :, overlap:], conv.weight, conv.bias, padding=conv.padding))
            return
        if self._above is None:
            self._above = _empty(roomy, 0, overlap // 2).zero_()  # the padding at the top
        first = overlap - self._above.shape[2]
        roomy[:, :, first:overlap] = self._above
        x = roomy[:, :, first:]
        self._seen += roomy.shape[2] - overlap
        if self._seen == height:
            x = F.pad(x, (0, 0, 0, overlap // 2))
        rows = max(x.shape[2] - overlap, 0)
        step = max(most // _values_per_row(conv, x), 1)
        self._above = x[:, :, rows:].clone(memory_format=torch.channels_last)
        parts = deque(x[:, :, start : min(start + step, rows) + overlap] for start in range(0, rows, step))
        del roomy, x  # so that their memory is free while other layers compute
        while parts:
            yield self._finish(F.conv2d(parts.popleft(), conv.weight, conv.bias, padding=(0, across // 2)))


def _values_per_row(conv: nn.Conv2d, strip: Tensor) -> int:
    return len(strip) * conv.out_channels * strip.shape[3]


def _written(y: Tensor, write: _Into, room: int) -> Tensor:
    if room == 0 and write is _copy:
        return y
    result = _empty(y, room, y.shape[2])
    write(y, result[:, :, room:])
    return result


class _WholeBlocks:
    """Divides an image into other strips, whose numbers of rows are multiples of `rows`."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._rest: Tensor | None = None

    def __call__(self, strip: Tensor) -> Iterator[Tensor]:
        there = strip if self._rest is None else torch.cat([self._rest, strip], dim=2)
        whole = there.shape[2] // self._rows * self._rows
        self._rest = there[:, :, whole:] if whole < there.shape[2] else None
        if whole:
            yield there[:, :, :whole]


def _joined(layer: _Joining, waiting: deque[Tensor], room: int, y: Tensor) -> Tensor:
    """Take as many rows as `y` has from what waits, and write what the layer makes of both below free rows."""
    made = y.shape[1]
    channels = waiting[0].shape[1] + (made if isinstance(layer, Beside) else 0)
    result, done, rows = _empty(y, room, y.shape[2], channels), room, room + y.shape[2]
    while done < rows:
        x = waiting.popleft()
        count = min(x.shape[2], rows - done)
        part, own = y[:, :, done - room : done - room + count], x[:, :, :count]
        out = result[:, :, done : done + count]
        if isinstance(layer, Residual):
            torch.add(own, part, out=out)
        elif isinstance(layer, Step):
            torch.add(part, own[:, :made], alpha=layer.gain, out=out[:, :made])
            out[:, made:] = own[:, made:]
        else:
            out[:, :-made] = own
            out[:, -made:] = part
        if count < x.shape[2]:
            waiting.appendleft(x[:, :, count:])
        done += count
    return result


def _activation(layer: nn.Module) -> _Into:
    if isinstance(layer, nn.PReLU) and layer.num_parameters == 1:
        return partial(_leaky_relu, layer.weight.item())
    return lambda x, out: out.copy_(layer(x))


def _leaky_relu(slope: float, x: Tensor, out: Tensor) -> None:
    torch.ops.aten.leaky_relu.out(x, slope, out=out)


def _empty(like: Tensor, room: int, rows: int, channels: int | None = None) -> Tensor:
    shape = (like.shape[0], channels or like.shape[1], room + rows, like.shape[3])
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)
