"""Anything that enlarges images: a network, or bicubic interpolation. All have one interface."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from pipeline.networks.devices import best_device, cuda_fault
from pipeline.networks.sources import ModelKind, ModelSource
from pipeline.networks.upscaling import upscale
from pipeline.networks.weights import load_network
from pipeline.settings import UserError
from sr_model.degrade import upscale_bicubic
from sr_model.networks.super_resolver import SuperResolver


class Upscaler(ABC):
    """Enlarges images by an integer factor."""

    scale: int
    """Factor by which height and width grow."""

    @abstractmethod
    def enlarge(self, lr: Tensor) -> Tensor:
        """Enlarge an image.

        Args:
            lr: (3, h, w) sRGB or (1, h, w) grey; uint8 with values in 0..255, or uint16 with values in 0..65535.

        Returns:
            (C, s*h, s*w) with the channels, the dtype and the device of `lr`.
        """


class BicubicUpscaler(Upscaler):
    """MATLAB's bicubic interpolation."""

    def __init__(self, scale: int) -> None:
        self.scale = scale

    def enlarge(self, lr: Tensor) -> Tensor:
        """Enlarge an image; see `Upscaler.enlarge`."""
        return upscale_bicubic(lr, self.scale)


class NetworkUpscaler(Upscaler):
    """A network, which computes in tiles in fp32."""

    def __init__(self, net: SuperResolver) -> None:
        self.scale = net.scale
        self._net = net

    def enlarge(self, lr: Tensor) -> Tensor:
        """Enlarge an image; see `Upscaler.enlarge`."""
        return upscale(self._net, lr)


def load_upscaler(source: ModelSource, scale: int = 4, device: str | None = None) -> Upscaler:
    """Load a model.

    Args:
        source: the model, from `sources.find_model`.
        scale: the factor of bicubic interpolation; networks have their own.
        device: "cpu" or "cuda"; by default the GPU if there is one.

    Raises:
        UserError: if there is no such device, the file cannot be read, or no network has its weights.
    """
    if device == "cuda" and (fault := cuda_fault()):
        raise UserError(f"the device cuda cannot be used ({fault}): expected the device cpu")
    if source.kind is ModelKind.BICUBIC:
        return BicubicUpscaler(scale)
    net = load_network(source.weights).to(device or best_device().type, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return NetworkUpscaler(net)
