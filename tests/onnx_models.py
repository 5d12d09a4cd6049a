"""Small ONNX models that other programs could have made."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Shape = Sequence[int | str | None]
RGB: Shape = ("n", 3, "h", "w")


def repeating(scale: int = 2, shape: Shape = RGB, kind: int = TensorProto.FLOAT, channels: int = 3) -> onnx.ModelProto:
    """A model that repeats each pixel `scale` times in both directions."""
    kernel = np.eye(channels).repeat(scale * scale, axis=0)[:, :, None, None]
    dtype = np.float16 if kind == TensorProto.FLOAT16 else np.float32
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["wide"]),
        helper.make_node("DepthToSpace", ["wide"], ["y"], blocksize=scale, mode="CRD"),
    ]
    return model(nodes, shape, kind, {"kernel": kernel.astype(dtype)})


def model(
    nodes: Sequence[Any], shape: Shape = RGB, kind: int = TensorProto.FLOAT, constants: dict[str, Any] | None = None
) -> onnx.ModelProto:
    """A model of nodes that map "x" to "y"."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
