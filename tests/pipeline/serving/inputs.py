"""Images and a model for the tests of a server."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors.torch import save_file
from skimage import data

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


def eventually(condition: Callable[[], bool]) -> bool:
    """Wait until something is true."""
    ends = time.monotonic() + 30
    while not condition():
        if time.monotonic() > ends:
            return False
        time.sleep(0.05)
    return True
