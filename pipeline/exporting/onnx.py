"""An ONNX model: one file, opset 18, with dynamic batch, height and width, compared with PyTorch before it is written.

The network is exported as the plain layers of `SuperResolver.for_inference`, so the graph holds nothing that only a
training needs.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from pipeline import storage
from pipeline.exporting.request import Request
from pipeline.networks.onnx_upscaler import OVERLAP, missing_package
from pipeline.settings import UserError
from sr_model.networks.super_resolver import SuperResolver

OPSET = 18
_MOST_DIFFERENCE = {"fp32": 1e-3, "fp16": 3e-3}
"""Largest differences from PyTorch that are accepted, as shares of the value range. A fault exceeds them, and so does a
network that needs finer numbers than those of fp16."""
_SIDES = ((17, 24), (32, 9))
"""Height and width of the images on which both are compared."""


def write(request: Request) -> str:
    """Write the model.

    Raises:
        UserError: if a package of the extra `onnx` is missing, or the model does not compute what PyTorch computes.
    """
    if request.net.noise_channels:
        raise UserError(
            f"{request.weights} is a {request.architecture.title}, which draws noise, and an ONNX model cannot: "
            "expected the format safetensors, or the network that it starts from"
        )
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(package)
        except ImportError:
            raise missing_package(package, "the format onnx") from None
    model = _convert(request.net, half=request.precision == "fp16")
    _describe(model, request)
    content: bytes = model.SerializeToString()
    difference = _difference(content, request.net)
    if not difference <= _MOST_DIFFERENCE[request.precision]:
        raise UserError(
            f"the ONNX model of {request.weights} differs from PyTorch by {difference:.1e} of the value range, "
            f"expected at most {_MOST_DIFFERENCE[request.precision]:g}"
        )
    storage.write(request.out, content)
    return (
        f"{request.out}: {request.title}, {request.precision}, opset {OPSET}; differs from PyTorch by at most "
        f"{difference:.1e} of the value range"
    )


class _InHalfPrecision(nn.Module):
    """A network that computes in fp16, with input and output in fp32."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net.half()

    def forward(self, lr: Tensor) -> Tensor:
        sr: Tensor = self.net(lr.half()).float()
        return sr


def _convert(net: SuperResolver, half: bool) -> Any:
    """Return the network as a `ModelProto`, whose output has the shape (batch, 3, scale*height, scale*width)."""
    plain: nn.Module = net.for_inference()
    if half:
        plain = _InHalfPrecision(plain)
    sizes = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                plain.eval(),
                (torch.rand(2, 3, 16, 20),),
                dynamo=True,
                opset_version=OPSET,
                external_data=False,
                input_names=["lr"],
                output_names=["sr"],
                dynamic_shapes=(sizes,),
                verbose=False,
            )
    finally:
        exporter.setLevel(level)
    assert program is not None
    return program.model_proto


def _describe(model: Any, request: Request) -> None:
    """Set the model's metadata; readers find it in `custom_metadata_map` of onnxruntime."""
    import onnx  # here, because it belongs to an extra

    about = request.about
    properties = {
        "title": request.title,
        "architecture": request.architecture.name,
        "scale": str(request.net.scale),
        OVERLAP: str(request.net.receptive_radius),
        "channels": "RGB",
        "range": "0..1",
        "precision": request.precision,
        "author": about.author,
        "license": about.license,
        "description": about.description,
        "tags": ", ".join(about.tags),
        "date": request.date,
    }
    onnx.helper.set_model_props(model, {name: value for name, value in properties.items() if value})
    model.producer_name = "sr-pipeline"


@torch.no_grad()
def _difference(content: bytes, net: SuperResolver) -> float:
    """Return the largest difference between the model and the network on images of random values."""
    import onnxruntime  # here, because it belongs to an extra

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    for count, (height, width) in enumerate(_SIDES, start=1):
        lr = torch.rand(count, 3, height, width, generator=generator)
        (sr,) = session.run(None, {"lr": lr.numpy()})
        largest = max(largest, (torch.from_numpy(sr) - net(lr)).abs().max().item())
    return largest
