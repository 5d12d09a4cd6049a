"""Images, a model and requests for the tests of a server."""

from __future__ import annotations

import io
import socket
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors.torch import save_file
from skimage import data

from benchmarks.server import Server
from pipeline.networks.weights import contiguous
from sr_model.networks.srresnet import SRResNet

PHOTO = data.astronaut()[30:110, 180:284]
"""A photograph of 104x80 pixels."""


def write_model(folder: Path) -> Path:
    """Write the weights of a small network x4."""
    torch.manual_seed(0)
    file = folder / "tiny.safetensors"
    save_file(contiguous(SRResNet(4, channels=8, blocks=1)), file)
    return file


def as_file(image: npt.NDArray[np.generic], form: str = "PNG") -> bytes:
    """Encode an image."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, form)
    return file.getvalue()


def bomb() -> bytes:
    """Make a PNG file of a few bytes that states a size of 100,000x100,000."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def begin(server: Server, content: bytes) -> socket.socket:
    """Send the head of a request, but nothing of its image."""
    address = urlsplit(server.url)
    connection = socket.create_connection((address.hostname, address.port), timeout=60)
    head = f"POST /v1/upscale HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: {len(content)}\r\n\r\n"
    connection.sendall(head.encode())
    return connection


def eventually(condition: Callable[[], bool]) -> bool:
    """Wait until something is true."""
    ends = time.monotonic() + 30
    while not condition():
        if time.monotonic() > ends:
            return False
        time.sleep(0.05)
    return True
