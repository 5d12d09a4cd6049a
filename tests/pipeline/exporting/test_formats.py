"""Files of weights in every format: metadata, sizes, and the names of layers that other projects use."""

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file
from torch import Tensor

from pipeline.networks import bundled
from pipeline.networks.loading import load_upscaler
from pipeline.networks.sources import find_model
from pipeline.networks.weights import load_network, to_safetensors
from sr_model.networks.edsr import EDSR
from sr_model.networks.settings import STAGES
from sr_model.networks.srresnet import SRResNet
from tests.pipeline.exporting.running import run

ABOUT = ["--author", "A. Uthor", "--license", "Apache-2.0", "--description", "Sharp.", "--tag", "photo", "--tag", "x"]


def random_edsr(scale: int, residual_scale: float = 1.0, channels: int = 8) -> EDSR:
    torch.manual_seed(0)
    return EDSR(scale, channels, blocks=2, residual_scale=residual_scale, init="paper").eval()


@pytest.fixture
def edsr(tmp_path: Path) -> Path:
    file = tmp_path / "edsr.safetensors"
    file.write_bytes(to_safetensors(random_edsr(4, 0.5), 4))
    return file


@pytest.fixture
def srresnet(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    file = tmp_path / "srresnet.safetensors"
    file.write_bytes(to_safetensors(SRResNet(2, channels=8, blocks=1), 2))
    return file


def test_safetensors_have_the_metadata_of_modelspec(
    srresnet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.safetensors"
    run(srresnet, out, "--format", "safetensors", *ABOUT)
    assert capsys.readouterr().out == f"{out}: SRResNet x2, fp32\n"
    with safetensors.safe_open(out, "pt") as file:
        found = file.metadata()
    content = out.read_bytes()
    (header,) = struct.unpack_from("<Q", content)
    assert len(found.pop("modelspec.date")) == len("2026-01-01")
    assert found == {
        "format": "pt",
        "scale": "2",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "srresnet",
        "modelspec.implementation": "sr-pipeline",
        "modelspec.title": "SRResNet x2",
        "modelspec.description": "Sharp.",
        "modelspec.author": "A. Uthor",
        "modelspec.license": "Apache-2.0",
        "modelspec.tags": "photo, x",
        "modelspec.usage_hint": "enlarges RGB images in [0, 1] by 2",
        "modelspec.hash_sha256": f"0x{hashlib.sha256(content[8 + header :]).hexdigest()}",
    }
    own, exported = load_file(srresnet), load_network(str(out)).state_dict()
    assert all(torch.equal(exported[name], value) for name, value in own.items())

    run(srresnet, out, "--format", "safetensors", "--precision", "fp16")
    assert {value.dtype for value in load_file(out).values()} == {torch.float16, torch.int64}
    assert "modelspec.author" not in safetensors.safe_open(out, "pt").metadata()


def test_a_folder_for_hugging_face_is_a_model(edsr: Path, tmp_path: Path) -> None:
    out = tmp_path / "hub"
    run(edsr, out, "--format", "huggingface", *ABOUT)
    assert sorted(file.name for file in out.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert json.loads((out / "config.json").read_text()) == {
        "model_type": "edsr",
        "architectures": ["EDSR"],
        "library_name": "sr-pipeline",
        "scale": 4,
        "torch_dtype": "float32",
        "channels": 8,
        "blocks": 2,
        "residual_scale": 0.5,
    }
    _, front, text = (out / "README.md").read_text().split("---\n", 2)
    card = yaml.safe_load(front)
    assert card["license"] == "apache-2.0"
    assert card["pipeline_tag"] == "image-to-image"
    assert card["tags"] == ["super-resolution", "edsr", "photo", "x"]
    assert "# EDSR x4" in text
    assert "Sharp." in text

    image = torch.randint(0, 256, (3, 9, 8), dtype=torch.uint8)
    own, exported = (
        load_upscaler(find_model(str(place)), device="cpu", precision="fp32").enlarge(image) for place in (edsr, out)
    )
    assert torch.equal(own, exported)


def test_a_folder_of_something_else_is_not_overwritten(
    edsr: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in (
        ("README.md", "# My project"),
        ("config.json", '{"library_name": "other"}'),
        ("config.json", "[]"),
        ("config.json", "no JSON"),
        ("model.safetensors", ""),
    ):
        folder = tmp_path / f"{name} {len(content)}"
        folder.mkdir()
        (folder / name).write_text(content)
        with pytest.raises(SystemExit, match="2"):
            run(edsr, f"{folder}/", "--format", "huggingface")
        said = capsys.readouterr().err
        assert f"{folder}/{name} exists and belongs to no earlier export, expected a new folder" in said
        assert [(file.name, file.read_text()) for file in folder.iterdir()] == [(name, content)]
    for title in ("First", "Second"):
        run(edsr, tmp_path / "hub", "--format", "huggingface", "--title", title)
        assert f"# {title}\n" in (tmp_path / "hub/README.md").read_text()


def test_a_card_beside_the_weights_is_taken_over(tmp_path: Path) -> None:
    run(bundled.DEFAULT, tmp_path / "hub", "--format", "huggingface")
    own = Path(bundled.weights(bundled.DEFAULT)).with_name("README.md")
    assert (tmp_path / "hub/README.md").read_bytes() == own.read_bytes()


def test_an_entry_for_openmodeldb_describes_the_file_beside_it(
    edsr: Path, srresnet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for model, architecture, size in ((edsr, "rcan", ["8nf", "1nrg", "2nrb"]), (srresnet, "srresnet", ["8nf", "1nb"])):
        out = tmp_path / f"4x-{architecture}.json"
        run(model, out, "--format", "openmodeldb", "--url", "https://example.org/model", *ABOUT)
        entry, weights = json.loads(out.read_text()), out.with_suffix(".safetensors").read_bytes()
        assert (entry["architecture"], entry["size"]) == (architecture, size)
        assert (entry["author"], entry["license"], entry["tags"]) == ("A. Uthor", "Apache-2.0", ["photo", "x"])
        (resource,) = entry["resources"]
        assert resource == {
            "platform": "pytorch",
            "type": "safetensors",
            "size": len(weights),
            "sha256": hashlib.sha256(weights).hexdigest(),
            "urls": ["https://example.org/model"],
        }
    with pytest.raises(SystemExit, match="2"):
        run(edsr, tmp_path / "x.json", "--format", "openmodeldb")
    assert "expected --author NAME" in capsys.readouterr().err


def test_an_entry_replaces_no_other_weights(edsr: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry, weights = tmp_path / "x.json", tmp_path / "x.safetensors"
    for description in ("First.", "Second."):
        run(edsr, entry, "--format", "openmodeldb", "--author", "A", "--description", description)
        assert json.loads(entry.read_text())["description"] == description
    weights.write_bytes(edsr.read_bytes())
    with pytest.raises(SystemExit, match="2"):
        run(edsr, entry, "--format", "openmodeldb", "--author", "A")
    assert "x.safetensors exists and " in capsys.readouterr().err
    assert weights.read_bytes() == edsr.read_bytes()


@pytest.mark.parametrize(
    ("value", "precision", "message"),
    [
        (65520.0, "fp16", "bn_body.running_var of {} has values up to 6.55e+04, which fp16 cannot hold, expected fp32"),
        (float("inf"), "fp32", "bn_body.running_var of {} has values that are infinite or no numbers, expected finite"),
        (float("nan"), "fp16", "bn_body.running_var of {} has values that are infinite or no numbers, expected finite"),
    ],
)
def test_weights_that_are_not_finite_are_refused(
    value: float, precision: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = SRResNet(2, channels=8, blocks=1)
    assert isinstance(net.bn_body.running_var, Tensor)
    net.bn_body.running_var[3] = value
    own, out = tmp_path / "own.safetensors", tmp_path / "out.safetensors"
    own.write_bytes(to_safetensors(net, 2))
    with pytest.raises(SystemExit, match="2"):
        run(own, out, "--format", "safetensors", "--precision", precision)
    assert message.format(own) in capsys.readouterr().err
    assert not out.exists()


Layers = Callable[[str, Tensor], Tensor]


def as_edsr(conv: Layers, lr: Tensor, scale: int, names: dict[str, str], stage_step: int) -> Tensor:
    """An EDSR from weights with other names."""
    y = x = conv(names["first"], lr)
    for block in range(2):
        one, two = (names["block"].format(block, names[which]) for which in ("one", "two"))
        y = y + conv(two, F.relu(conv(one, y)))
    x = x + conv(names["body"], y)
    for stage, factor in enumerate(STAGES[scale]):
        x = F.pixel_shuffle(conv(names["stage"].format(stage * stage_step), x), factor)
    return conv(names["last"], x)


def as_rcan(conv: Layers, lr: Tensor, scale: int) -> Tensor:
    """RCAN of one group with two blocks, as the paper draws it."""
    head = y = conv("head.0", lr)
    for block in range(2):
        name = f"body.0.body.{block}.body"
        branch = conv(f"{name}.2", F.relu(conv(f"{name}.0", y)))
        pooled = branch.mean((2, 3), keepdim=True)
        attention = conv(f"{name}.3.conv_du.2", F.relu(conv(f"{name}.3.conv_du.0", pooled))).sigmoid()
        y = y + branch * attention
    group = head + conv("body.0.body.2", y)
    x = head + conv("body.1", group)
    for stage, factor in enumerate(STAGES[scale]):
        x = F.pixel_shuffle(conv(f"tail.0.{2 * stage}", x), factor)
    return conv("tail.1", x)


BASICSR = {
    "first": "conv_first", "block": "body.{}.conv{}", "one": "1", "two": "2", "body": "conv_after_body",
    "stage": "upsample.{}", "last": "conv_last",
}  # fmt: skip
MMAGIC = {**BASICSR, "stage": "upsample.{}.upsample_conv"}
EDSR_PYTORCH = {
    "first": "head.0", "block": "body.{}.body.{}", "one": "0", "two": "2", "body": "body.2", "stage": "tail.0.{}",
    "last": "tail.1",
}  # fmt: skip


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize("residual_scale", [1.0, 0.5])
def test_other_layouts_compute_the_same(scale: int, residual_scale: float, tmp_path: Path) -> None:
    """The references follow the published code; test_other_tools.py compares with that code itself."""
    net = random_edsr(scale, residual_scale, channels=20)
    own, out = tmp_path / "own.safetensors", tmp_path / "out.safetensors"
    own.write_bytes(to_safetensors(net, scale))
    lr = torch.rand(2, 3, 9, 7)
    with torch.no_grad():
        expected = net(lr)
    for form in ("rcan", "basicsr", "mmagic", "edsr-pytorch"):
        run(own, out, "--format", form)
        weights = load_file(out)
        used: set[str] = set()

        def conv(name: str, x: Tensor, weights: dict[str, Tensor] = weights, used: set[str] = used) -> Tensor:
            used |= {f"{name}.weight", f"{name}.bias"}
            weight = weights[f"{name}.weight"]
            return F.conv2d(x, weight, weights[f"{name}.bias"], padding=weight.shape[-1] // 2)

        if form == "rcan":
            sr = as_rcan(conv, lr, scale)
        elif form == "edsr-pytorch":  # with values up to 255
            sr = conv("add_mean", as_edsr(conv, conv("sub_mean", 255 * lr), scale, EDSR_PYTORCH, 2)) / 255
        else:
            basicsr = form == "basicsr"
            sr = as_edsr(conv, lr, scale, BASICSR if basicsr else MMAGIC, 2 if basicsr else 1)
        assert used == weights.keys()
        difference = (sr - expected).abs().max().item()
        print(f"{form} x{scale}: differs by at most {difference:.1e}")
        assert difference <= 1e-5


def test_what_a_format_cannot_hold_is_one_sentence(
    srresnet: Path, edsr: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.safetensors"
    other.write_bytes(safetensors.torch.save({"x": torch.zeros(2)}))
    out = tmp_path / "out.safetensors"
    for arguments, message in (
        (
            [srresnet, out, "--format", "rcan"],
            "is a SRResNet, which the format rcan cannot hold: expected",
        ),
        (["bicubic", out, "--format", "safetensors"], "bicubic has no weights of this project"),
        ([other, out, "--format", "safetensors"], "the weights are not those of SRResNet"),
        ([edsr, tmp_path / "out.pth", "--format", "rcan"], "out.pth does not end in .safetensors"),
        ([edsr, edsr, "--format", "safetensors"], "edsr.safetensors is the model itself"),
        ([edsr, out, "--format", "onnx"], "out.safetensors does not end in .onnx"),
    ):
        with pytest.raises(SystemExit, match="2"):
            run(*arguments)
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert message in said
        assert said.count("\n") == 1
    assert not out.exists()
