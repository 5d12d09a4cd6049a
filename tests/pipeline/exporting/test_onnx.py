"""ONNX models that are exported, and ONNX models as upscalers, from here and from elsewhere."""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from skimage import data
from torch import Tensor

from pipeline.networks import bundled, onnx_upscaler
from pipeline.networks.loading import load_upscaler
from pipeline.networks.onnx_upscaler import OnnxUpscaler, load_onnx
from pipeline.networks.sources import find_model
from pipeline.networks.weights import load_network, to_safetensors
from pipeline.settings import UserError
from sr_model.networks.edsr import EDSR
from sr_model.networks.srresnet import SRResNet
from sr_model.networks.super_resolver import SuperResolver
from tests import onnx_models
from tests.pipeline.exporting.running import run

PHOTO = torch.from_numpy(data.chelsea()[100:140, 100:150]).permute(2, 0, 1)


def export_to(folder: Path, net: SuperResolver, *options: str) -> Path:
    """Export a network, and return the ONNX file; model.safetensors is beside it."""
    (folder / "model.safetensors").write_bytes(to_safetensors(net, net.scale))
    run(folder, folder / "model.onnx", "--format", "onnx", *options)
    return folder / "model.onnx"


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    net = SRResNet(4, channels=8, blocks=2, batch_norm=True, init="paper")
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            assert module.running_mean is not None
            assert module.running_var is not None
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    options = ("--author", "A. Uthor", "--license", "Apache-2.0", "--tag", "photo")
    return export_to(tmp_path_factory.mktemp("single"), net, *options)


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    net = EDSR(3, channels=16, blocks=2, residual_scale=0.5, init="paper")
    return export_to(tmp_path_factory.mktemp("half"), net, "--precision", "fp16")


def difference(file: Path, weights: str) -> float:
    """Largest difference from PyTorch on a photograph, as a share of the value range."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    batch = torch.stack([PHOTO, PHOTO.flip(2)]) / 255
    with torch.no_grad():
        expected = load_network(weights)(batch)
    (sr,) = session.run(None, {"lr": batch.numpy()})
    return float((torch.from_numpy(sr) - expected).abs().max())


def test_differs_from_pytorch_by_rounding(single: Path, half: Path) -> None:
    for file, most in ((single, 2e-5), (half, 3e-3)):
        found = difference(file, str(file.with_name("model.safetensors")))
        print(f"{file.parent.name}: differs by at most {found:.1e}")
        assert found <= most


@pytest.mark.long
@pytest.mark.parametrize(("precision", "most"), [("fp32", 2e-5), ("fp16", 3e-3)])
def test_the_bundled_model_differs_from_pytorch_by_rounding(precision: str, most: float, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    run(bundled.DEFAULT, file, "--format", "onnx", "--precision", precision)
    found = difference(file, bundled.weights(bundled.DEFAULT))
    print(f"{bundled.DEFAULT} in {precision}: differs by at most {found:.1e}")
    assert found <= most


def test_the_file_describes_itself(single: Path, half: Path) -> None:
    model = onnx.load(single)
    onnx.checker.check_model(model, full_check=True)
    assert [file.name for file in single.parent.iterdir() if file.suffix not in (".safetensors", ".onnx")] == []
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    shapes = [[size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
              for value in (*model.graph.input, *model.graph.output)]  # fmt: skip
    assert shapes == [["batch", 3, "height", "width"], ["batch", 3, "4*height", "4*width"]]
    # BatchNorm is in the convolutions, and the last convolution comes before the last shuffle.
    kinds = Counter(node.op_type for node in model.graph.node)
    assert kinds == {"Conv": 9, "PRelu": 5, "Add": 3, "DepthToSpace": 2}
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert len(properties.pop("date")) == len("2026-01-01")
    assert properties == {
        "title": "SRResNet x4",
        "architecture": "srresnet",
        "scale": "4",
        "receptive_radius": "13",
        "channels": "RGB",
        "range": "0..1",
        "precision": "fp32",
        "author": "A. Uthor",
        "license": "Apache-2.0",
        "tags": "photo",
    }
    weights = {tensor.data_type for tensor in onnx.load(half).graph.initializer if len(tensor.dims) == 4}
    assert weights == {TensorProto.FLOAT16}


def levels(a: Tensor, b: Tensor) -> int:
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    return int((a.int() - b.int()).abs().max())


@pytest.mark.parametrize("tile", [16, None])
def test_an_exported_model_is_an_upscaler(single: Path, half: Path, tile: int | None) -> None:
    images = [PHOTO, PHOTO[:1], PHOTO.to(torch.uint16) * 257]
    for file, most in ((single, (1, 1, 2)), (half, (1, 1, 200))):
        found, expected = (
            load_upscaler(find_model(str(model)), device="cpu", precision="fp32", tile=tile)
            for model in (file, file.parent)
        )
        assert isinstance(found, OnnxUpscaler)
        assert found.scale == expected.scale
        for image, limit in zip(images, most, strict=True):
            assert levels(found.enlarge(image), expected.enlarge(image)) <= limit


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_models_of_other_programs_are_upscalers(kind: int, tmp_path: Path) -> None:
    file = tmp_path / "other.onnx"
    for shape in (onnx_models.RGB, (1, 3, "h", "w"), (None, "c", None, None)):
        file.write_bytes(onnx_models.repeating(3, shape, kind).SerializeToString())
        upscaler = load_onnx(str(file), tile=16)
        assert upscaler.scale == 3
        assert torch.equal(upscaler.enlarge(PHOTO), PHOTO.repeat_interleave(3, 1).repeat_interleave(3, 2))


def cropping(multiple: int) -> Any:
    """A model that enlarges the largest part of an image whose sides are multiples of a number."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], start=2),
        helper.make_node("Div", ["shape", "multiple"], ["windows"]),
        helper.make_node("Mul", ["windows", "multiple"], ["ends"]),
        helper.make_node("Slice", ["x", "starts", "ends", "axes"], ["part"]),
        helper.make_node("Resize", ["part", "", "factors"], ["y"], mode="nearest"),
    ]
    constants = {
        "multiple": np.array([multiple, multiple]),
        "starts": np.array([0, 0]),
        "axes": np.array([2, 3]),
        "factors": np.array([1, 1, 2, 2], np.float32),
    }
    return onnx_models.model(nodes, constants=constants)


def test_a_model_that_returns_another_size_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    file.write_bytes(cropping(8).SerializeToString())
    upscaler = load_onnx(str(file))
    whole = torch.randint(0, 256, (3, 56, 48), dtype=torch.uint8)
    assert torch.equal(upscaler.enlarge(whole), whole.repeat_interleave(2, 1).repeat_interleave(2, 2))
    with pytest.raises(UserError, match=r"m\.onnx cannot be used: it makes 3x112x96 of an image 3x61x50; expected"):
        upscaler.enlarge(torch.zeros(3, 61, 50, dtype=torch.uint8))


def with_external_weights() -> Any:
    model = onnx_models.repeating()
    (kernel,) = model.graph.initializer
    onnx.external_data_helper.set_external_data(kernel, "/etc/passwd")
    kernel.ClearField("raw_data")
    return model


def with_loop() -> Any:
    """A model that never ends; the operator is inside of a branch."""
    endless = helper.make_graph(
        [helper.make_node("Identity", ["more"], ["still"])],
        "endless",
        [helper.make_tensor_value_info("number", TensorProto.INT64, []),
         helper.make_tensor_value_info("more", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("still", TensorProto.BOOL, [])],
    )  # fmt: skip
    branch = helper.make_graph(
        [helper.make_node("Loop", ["", "true"], [], body=endless), helper.make_node("Identity", ["x"], ["z"])],
        "branch", [], [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
    )  # fmt: skip
    choose = helper.make_node("If", ["true"], ["y"], then_branch=branch, else_branch=branch)
    return onnx_models.model([choose], constants={"true": np.array(True)})


REFUSED: dict[str, Any] = {
    "the fixed shape nx3x64x64": onnx_models.repeating(shape=("n", 3, 64, 64)),
    "the shape nx1xhxw": onnx_models.repeating(shape=("n", 1, "h", "w"), channels=1),
    "the shape nx3": onnx_models.model([helper.make_node("Identity", ["x"], ["y"])], ("n", 3)),
    "maps tensor.int64.": onnx_models.model([helper.make_node("Identity", ["x"], ["y"])], kind=TensorProto.INT64),
    "makes 12x64x48 of an image 3x64x48": onnx_models.model(
        [helper.make_node("Conv", ["x", "k"], ["y"])], constants={"k": np.ones((12, 3, 1, 1), np.float32)}
    ),
    "makes 3x128x48 of": onnx_models.model(
        [helper.make_node("Concat", ["x", "x"], ["y"], axis=2)],
    ),
    "makes 3x1088x816 of": onnx_models.repeating(17),
    "fails on an image of 48x64": onnx_models.model(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])], constants={"shape": np.array([1, 3, 5, 5])}
    ),
    "weights in other files": with_external_weights(),
    "has the operator Loop": with_loop(),
    "cannot read": onnx_models.model([helper.make_node("NoSuchOperator", ["x"], ["y"])]),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_no_upscaler_is_one_sentence(message: str, tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    file.write_bytes(REFUSED[message].SerializeToString())
    with pytest.raises(UserError, match=message) as caught:
        load_onnx(str(file))
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "m.onnx"
    with pytest.raises(UserError, match=r"there is no such file; expected an existing \.onnx file"):
        find_model(str(file))
    for content in (b"", b"no model", onnx_models.repeating().SerializeToString()[:-9]):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"m.onnx.*expected an ONNX model"):
            load_upscaler(find_model(str(file)))
    monkeypatch.setattr(onnx_upscaler, "MOST_BYTES", 100)
    file.write_bytes(bytes(101))
    with pytest.raises(UserError, match="has 101 bytes, expected an ONNX model of at most 100"):
        load_onnx(str(file))


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_one_sentence(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit, match="2"):
        export_to(tmp_path, EDSR(2, channels=4, blocks=1))
    assert f"needs the package {package}, expected pip install 'sr-pipeline[onnx]'" in capsys.readouterr().err
    if package != "onnxscript":
        content = onnx_models.repeating().SerializeToString()
        with pytest.raises(UserError, match=f"m.onnx needs the package {package}, expected pip install"):
            OnnxUpscaler(content, "m.onnx")
