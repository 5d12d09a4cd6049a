"""The formats that models are exported to, one file each. To add one, write its file, and add an entry to `FORMATS`.

This module imports no torch, so that the command can check its arguments at once.
"""

from __future__ import annotations

from pipeline.exporting.request import About, Format, Request
from sr_model.deferred import deferred

_ALL = (
    Format(
        "safetensors",
        "this project's weights, with the metadata of ModelSpec",
        ".safetensors",
        deferred("pipeline.exporting.safetensors:write"),
    ),
    Format("onnx", "an ONNX model of any image size", ".onnx", deferred("pipeline.exporting.onnx:write")),
    Format("huggingface", "a folder for the Hugging Face Hub", "", deferred("pipeline.exporting.huggingface:write")),
    Format(
        "openmodeldb",
        "an entry for OpenModelDB, and the weights that it describes",
        ".json",
        deferred("pipeline.exporting.openmodeldb:write"),
    ),
    Format(
        "rcan",
        "weights that spandrel, chaiNNer and ComfyUI open",
        ".safetensors",
        deferred("pipeline.exporting.rcan:write"),
        ("edsr",),
    ),
    Format(
        "basicsr",
        "weights for BasicSR's class EDSR",
        ".safetensors",
        deferred("pipeline.exporting.basicsr:write"),
        ("edsr",),
    ),
    Format(
        "edsr-pytorch",
        "weights for EDSR-PyTorch and super-image",
        ".safetensors",
        deferred("pipeline.exporting.edsr_pytorch:write"),
        ("edsr",),
    ),
    Format(
        "mmagic",
        "weights for mmagic's class EDSRNet",
        ".safetensors",
        deferred("pipeline.exporting.mmagic:write"),
        ("edsr",),
    ),
)

FORMATS: dict[str, Format] = {entry.name: entry for entry in _ALL}
"""All formats by name."""

__all__ = ["FORMATS", "About", "Format", "Request"]
