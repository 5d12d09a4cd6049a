"""An upscaler that is stored as an ONNX model, of this project or of another one, computed by onnxruntime.

The packages belong to the extra `onnx`. An ONNX file is a program: it may compute anything that its operators allow,
but it runs no code of its own and may read no file here, because weights in other files are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline import storage
from pipeline.networks.devices import best_device
from pipeline.networks.upscalers import Part, Upscaler
from pipeline.settings import UserError
from pipeline.storage import one_line
from sr_model.tiling import TILE, spans

OVERLAP = "receptive_radius"
"""Key in the metadata of an ONNX model: LR pixels to each side that an output pixel depends on."""
DEFAULT_OVERLAP = 32
"""Overlap of tiles in LR pixels where the metadata has none."""
MOST_BYTES = 2**30
"""Largest file that is read. Networks of 500 MB exist."""

_MOST_OVERLAP = 256
_MOST_SCALE = 16
_PROBE = (64, 48)
"""Height and width of the image that is enlarged to learn the scale; networks that work in windows need multiples."""
_TYPES = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16}
_REPEATING = {"Loop", "Scan"}
"""Operators that may never end."""


class OnnxUpscaler(Upscaler):
    """An ONNX model with one input and one output: RGB images (B, 3, h, w) in [0, 1], of any height and width.

    Args:
        content: the content of the file.
        name: how messages name the file.
        device: "cpu" or "cuda"; by default the GPU if there is one that onnxruntime can use.
        tile: side of a tile in LR pixels.

    Raises:
        UserError: if a package is missing, the file is damaged, or it is no upscaler of RGB images.
    """

    def __init__(self, content: bytes, name: str, device: str | None = None, tile: int | None = None) -> None:
        properties = _inspect(content, name)
        self._name, self._tile = name, tile or TILE
        self._overlap = _read_overlap(properties)
        self._session, inputs, outputs = _start(content, name, device)
        if len(inputs) != 1 or len(outputs) != 1:
            raise self._refusal(f"it has {len(inputs)} inputs and {len(outputs)} outputs")
        (entry,), (result,) = inputs, outputs
        if entry.type not in _TYPES or result.type not in _TYPES:
            raise self._refusal(f"it maps {one_line(entry.type)} to {one_line(result.type)}")
        if len(entry.shape) != 4 or (entry.shape[1] != 3 and isinstance(entry.shape[1], int)):
            raise self._refusal(f"its input has the shape {_shown(entry.shape)}")
        if isinstance(entry.shape[2], int) or isinstance(entry.shape[3], int):
            raise self._refusal(f"its input has the fixed shape {_shown(entry.shape)}")
        self._input, self._type = entry.name, _TYPES[entry.type]
        self.scale = self._measure_scale()

    def parts(self, lr: Tensor) -> Iterator[Part]:
        """Enlarge an image in tiles; see `Upscaler.parts`.

        Raises:
            UserError: if the model fails, or returns another size than that of the enlarged tile.
        """
        channels, height, width = lr.shape
        scale, largest = self.scale, torch.iinfo(lr.dtype).max
        across = spans(width, self._tile, self._overlap)
        for rows, columns in product(spans(height, self._tile, self._overlap), across):
            tile = lr[:, rows.seen, columns.seen].expand(3, -1, -1).float() / largest
            sr = self._run(tile)
            if sr.shape != (3, tile.shape[1] * scale, tile.shape[2] * scale):
                raise self._wrong_size(sr, tile)
            sr = sr[:, rows.kept(scale), columns.kept(scale)]
            values = sr.mean(dim=0, keepdim=True) if channels == 1 else sr
            yield Part(rows.own.start * scale, columns.own.start * scale, values.to(lr.device))

    def _run(self, tile: Tensor) -> Tensor:
        """Enlarge (3, h, w) to (3, s*h, s*w), float32 on the CPU."""
        batch = tile.cpu().to(self._type)[None].contiguous().numpy()
        try:
            (sr,) = self._session.run(None, {self._input: batch})
        except Exception as error:  # onnxruntime raises exceptions of many classes, which have no public names
            raise self._refusal(f"it fails on an image of {tile.shape[2]}x{tile.shape[1]} ({_reason(error)})") from None
        return torch.from_numpy(sr[0]).float() if getattr(sr, "ndim", 0) == 4 else torch.from_numpy(sr).float()

    def _measure_scale(self) -> int:
        height, width = _PROBE
        tile = torch.full((3, height, width), 0.5)
        sr = self._run(tile)
        scale = sr.shape[1] // height if sr.dim() == 3 else 0
        if sr.shape != (3, scale * height, scale * width) or not 1 <= scale <= _MOST_SCALE:
            raise self._wrong_size(sr, tile)
        return scale

    def _wrong_size(self, sr: Tensor, tile: Tensor) -> UserError:
        return self._refusal(f"it makes {_shown(sr.shape)} of an image {_shown(tile.shape)}")

    def _refusal(self, reason: str) -> UserError:
        return UserError(
            f"{self._name} cannot be used: {reason}; expected an ONNX model with one input and one output, which "
            f"enlarges RGB images (batch, 3, height, width) of any size by an integer of at most {_MOST_SCALE}"
        )


def load_onnx(url: str, device: str | None = None, tile: int | None = None) -> OnnxUpscaler:
    """Load an ONNX model.

    Args:
        url: path or URL of the file.
        device: as for `OnnxUpscaler`.
        tile: as for `OnnxUpscaler`.

    Raises:
        UserError: if the file cannot be read, is too large, or is no upscaler of RGB images.
    """
    try:
        size = storage.size(url)
        if size is not None and size > MOST_BYTES:
            raise UserError(f"{url} has {size:,} bytes, expected an ONNX model of at most {MOST_BYTES:,}")
        content = storage.read(url)
    except OSError as error:
        raise UserError(f"cannot read {url}: {one_line(error)}; expected an ONNX model") from None
    if content is None:
        raise UserError(f"cannot read {url}: there is no such file; expected an ONNX model")
    return OnnxUpscaler(content, url, device, tile)


def missing_package(package: str, purpose: str) -> UserError:
    """Return the error for a package of the extra `onnx` that is not installed."""
    return UserError(f"{purpose} needs the package {package}, expected pip install 'sr-pipeline[onnx]'")


def _inspect(content: bytes, name: str) -> Mapping[str, str]:
    """Refuse models that read other files or may never end, and return the metadata of others."""
    try:
        import onnx  # here, because it belongs to an extra
    except ImportError:
        raise missing_package("onnx", name) from None
    try:
        model = onnx.load_model_from_string(content)
        for graph in _graphs(model):
            if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _tensors(graph)):
                raise UserError(f"{name} has weights in other files, expected an ONNX model in one file")
            if repeating := _REPEATING.intersection(node.op_type for node in graph.node):
                raise UserError(f"{name} has the operator {min(repeating)}, expected an upscaler without it")
        return {entry.key: entry.value for entry in model.metadata_props}
    except UserError:
        raise
    except Exception as error:  # protobuf raises exceptions of several classes, and RecursionError is possible
        raise _damaged(name, error) from None


def _graphs(model: Any) -> Iterator[Any]:
    """Yield the graph of a model, its functions, and all graphs inside of nodes."""
    waiting = [model.graph, *model.functions]
    while waiting:
        graph = waiting.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                waiting += [attribute.g] if attribute.HasField("g") else []
                waiting += attribute.graphs


def _tensors(graph: Any) -> Iterator[Any]:
    """Yield the tensors of a graph or function, without those of graphs inside of nodes."""
    if hasattr(graph, "initializer"):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from [attribute.t, *attribute.tensors]
            for sparse in [attribute.sparse_tensor, *attribute.sparse_tensors]:
                yield from (sparse.values, sparse.indices)


class _Argument(NamedTuple):
    """An input or output of a model."""

    name: str
    type: str
    shape: list[int | str | None]


def _start(content: bytes, name: str, device: str | None) -> tuple[Any, list[_Argument], list[_Argument]]:
    """Return a session of onnxruntime, its inputs and its outputs."""
    try:
        import onnxruntime  # here, because it belongs to an extra
    except ImportError:
        raise missing_package("onnxruntime", name) from None
    available = onnxruntime.get_available_providers()
    cuda = "CUDAExecutionProvider"
    if device == "cuda" and cuda not in available:
        raise UserError("the device cuda cannot be used by the installed onnxruntime, expected onnxruntime-gpu")
    on_gpu = cuda in available and (device or best_device().type) == "cuda"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # errors are raised as well
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # PyTorch computes in between
    # TF32 would keep 10 bits of fp32 factors, and networks of this project do without it, too.
    providers = [(cuda, {"use_tf32": "0"}), "CPUExecutionProvider"] if on_gpu else ["CPUExecutionProvider"]
    try:
        session = onnxruntime.InferenceSession(content, options, providers, enable_fallback=0)
        inputs, outputs = (
            [_Argument(argument.name, argument.type, argument.shape) for argument in arguments]
            for arguments in (session.get_inputs(), session.get_outputs())
        )
        return session, inputs, outputs
    except Exception as error:  # onnxruntime raises exceptions of many classes, which have no public names
        raise _damaged(name, error) from None


def _read_overlap(properties: Mapping[str, str]) -> int:
    text = properties.get(OVERLAP, "")
    return int(text) if text.isdecimal() and len(text) < 4 and int(text) <= _MOST_OVERLAP else DEFAULT_OVERLAP


def _damaged(name: str, error: Exception) -> UserError:
    return UserError(f"cannot read {name}: {_reason(error)}; expected an ONNX model")


def _reason(error: Exception) -> str:
    return one_line(error, 200) or type(error).__name__


def _shown(shape: Any) -> str:
    return one_line("x".join(map(str, shape)), 80)
