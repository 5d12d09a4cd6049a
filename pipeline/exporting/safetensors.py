"""This project's own weights, with metadata as ModelSpec 1.0.1 defines it.

See https://github.com/Stability-AI/ModelSpec. Model managers show this metadata.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from pipeline import storage
from pipeline.exporting.request import Request
from pipeline.networks.weights import contiguous, serialise
from pipeline.settings import UserError

IMPLEMENTATION = "sr-pipeline"
"""The name by which exported files call this program."""


def write(request: Request) -> str:
    """Write the weights under their own names."""
    write_weights(request, request.out, contiguous(request.net), request.architecture.name)
    return f"{request.out}: {request.title}, {request.precision}"


def write_weights(request: Request, out: str, weights: Mapping[str, Tensor], architecture: str) -> bytes:
    """Write tensors with the metadata of ModelSpec.

    Args:
        request: the model, which says the precision and the metadata.
        out: path or URL of the file.
        weights: float32 tensors on the CPU.
        architecture: identifier of the network that the names of the tensors belong to.

    Returns:
        The content of the file.

    Raises:
        UserError: if the file is the one that the model was loaded from, or a value is infinite or no number in the
            precision.
    """
    if Path(out).resolve() == Path(request.weights).resolve():
        raise UserError(f"{out} is the model itself, expected another place for the exported one")
    half = request.precision == "fp16"
    tensors = {
        name: (value.half() if half and value.is_floating_point() else value).contiguous()
        for name, value in weights.items()
    }
    for name, value in tensors.items():
        if not value.isfinite().all():
            raise UserError(_not_finite(request, name, weights[name]))
    content = serialise(tensors, request.net.scale, _metadata(request, architecture, serialise(tensors)))
    storage.write(out, content)
    return content


def _not_finite(request: Request, name: str, value: Tensor) -> str:
    if value.isfinite().all():
        largest = value.abs().max().item()
        return f"{name} of {request.weights} has values up to {largest:.3g}, which fp16 cannot hold, expected fp32"
    return f"{name} of {request.weights} has values that are infinite or no numbers, expected finite weights"


def _metadata(request: Request, architecture: str, bare: bytes) -> dict[str, str]:
    """Return the metadata of a file whose tensors are those of `bare`."""
    (header,) = struct.unpack_from("<Q", bare)
    about = request.about
    values = {
        "sai_model_spec": "1.0.1",
        "architecture": architecture,
        "implementation": IMPLEMENTATION,
        "title": request.title,
        "description": about.description,
        "author": about.author,
        "date": request.date,
        "license": about.license,
        "tags": ", ".join(about.tags),
        "usage_hint": f"enlarges RGB images in [0, 1] by {request.net.scale}",
        "hash_sha256": f"0x{hashlib.sha256(memoryview(bare)[8 + header :]).hexdigest()}",
    }
    return {f"modelspec.{name}": value for name, value in values.items() if value}
