"""The options of a server."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from pipeline.networks.sources import ModelSource

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
"""Precisions of a network, as `load_upscaler` takes them."""


@dataclass(frozen=True)
class Limits:
    """The sizes above which a server refuses a request."""

    megabytes: float = 32
    """Largest size of an image file, in MB (10^6 bytes)."""
    megapixels: float = 64
    """Largest size of an upscaled image, in megapixels; larger ones are refused before they are decoded."""
    queue: int = 32
    """Number of requests that may wait for a replica; further ones are answered with 503."""


@dataclass(frozen=True)
class ServeOptions:
    """A server."""

    model: ModelSource
    host: str = "127.0.0.1"
    """Address of the network interface to listen on."""
    port: int = 8000
    """TCP port; 0 for any free one."""
    replicas: int | None = None
    """Number of processes that compute; None for one per GPU, or without GPUs one per core, at most 8."""
    device: str | None = None
    """"cpu" or "cuda"; None for the GPUs if there are any."""
    precision: str = "auto"
    """One of `PRECISIONS`; "auto" for the one that suits the device."""
    limits: Limits = field(default_factory=Limits)

    @property
    def is_local(self) -> bool:
        """True if only programs on this machine can reach the server."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"
