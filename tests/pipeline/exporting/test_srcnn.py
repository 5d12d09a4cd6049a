"""SRCNN in the formats that can hold it."""

import json
from pathlib import Path

import onnxruntime
import pytest
import torch

from pipeline.networks.loading import load_upscaler
from pipeline.networks.sources import find_model
from pipeline.networks.weights import load_network, to_safetensors
from sr_model.networks.srcnn import SRCNN
from tests.pipeline.exporting.running import run

LR = torch.rand(2, 3, 11, 14, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def srcnn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("srcnn") / "srcnn.safetensors"
    file.write_bytes(to_safetensors(SRCNN(3, colour="y", channels=8), 3))
    return file


def test_an_onnx_model_of_any_size(srcnn: Path, tmp_path: Path) -> None:
    run(srcnn, tmp_path / "model.onnx", "--format", "onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    net = load_network(str(srcnn))
    for lr in (LR, LR[:1, :, :1, :2]):  # borders are mirrored also in an image that is smaller than the kernel
        (sr,) = session.run(None, {"lr": lr.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(sr), net(lr), rtol=0, atol=1e-5)


def test_weights_and_a_folder_for_the_hub(srcnn: Path, tmp_path: Path) -> None:
    run(srcnn, tmp_path / "out.safetensors", "--format", "safetensors")
    run(srcnn, tmp_path / "hub", "--format", "huggingface")
    config = json.loads((tmp_path / "hub/config.json").read_text())
    assert (config["model_type"], config["scale"]) == ("srcnn", 3)
    assert {key: config[key] for key in ("kernels", "colour", "channels")} == {
        "kernels": "9-5-5", "colour": "y", "channels": 8,
    }  # fmt: skip
    assert "last_rate" not in config
    image = LR[0].mul(255).byte()
    expected = load_upscaler(find_model(str(srcnn))).enlarge(image)
    for written in (tmp_path / "out.safetensors", tmp_path / "hub"):
        assert torch.equal(load_upscaler(find_model(str(written))).enlarge(image), expected)


@pytest.mark.parametrize("form", ["rcan", "basicsr", "edsr-pytorch", "mmagic"])
def test_layouts_of_edsr_cannot_hold_it(
    srcnn: Path, tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(srcnn, tmp_path / "out.safetensors", "--format", form)
    assert f"is a SRCNN, which the format {form} cannot hold: expected a network of edsr" in capsys.readouterr().err
