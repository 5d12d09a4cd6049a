"""Models between two others."""

import runpy
import sys
from pathlib import Path

import pytest
import safetensors
import torch
from torch import Tensor, nn

from pipeline.networks.interpolation import interpolate, mix
from pipeline.networks.sources import find_model
from pipeline.networks.weights import build_network, read_weights, to_safetensors
from pipeline.settings import UserError
from sr_model.networks.settings import EDSRSettings, SRCNNSettings, SRResNetSettings


def make(folder: Path, name: str, scale: int = 2, batch_norm: bool = False, channels: int = 4, seed: int = 0) -> str:
    """Write a small model, and return its path."""
    net = build_network(scale, SRResNetSettings(channels=channels, blocks=1, batch_norm=batch_norm, init="paper"), seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.num_batches_tracked is not None
            nn.init.normal_(module.running_mean)
            module.num_batches_tracked.add_(seed + 1)
    path = folder / f"{name}.safetensors"
    path.write_bytes(to_safetensors(net, scale))
    return str(path)


def between(a: str, b: str, out: Path, *alphas: float) -> list[dict[str, Tensor]]:
    made = interpolate(find_model(a), find_model(b), alphas, str(out))
    return [read_weights(mixture.file) for mixture in made.mixtures]


def test_the_ends_are_both_models_and_the_middle_is_their_mean(tmp_path: Path) -> None:
    a, b = make(tmp_path, "a"), make(tmp_path, "b", seed=1)
    first, second = read_weights(a), read_weights(b)
    start, middle, end = between(a, b, tmp_path / "out", 0, 0.5, 1)
    for name, value in first.items():
        assert torch.equal(start[name], value)
        assert torch.equal(end[name], second[name])
        torch.testing.assert_close(middle[name], (value + second[name]) / 2)
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "alpha-0.safetensors", "alpha-0.5.safetensors", "alpha-1.safetensors",
    }  # fmt: skip


def test_a_model_mixed_with_itself_stays_as_it_is() -> None:
    weights = {"a": torch.rand(5), "count": torch.tensor(3)}
    for alpha in (0.1, 1 / 3, 0.9):
        assert all(torch.equal(value, weights[name]) for name, value in mix(weights, weights, alpha).items())


def test_a_file_says_what_it_was_made_of(tmp_path: Path) -> None:
    a, b = make(tmp_path, "a"), make(tmp_path, "b", seed=1)
    between(a, b, tmp_path / "mixed.safetensors", 0.2)
    with safetensors.safe_open(tmp_path / "mixed.safetensors", "pt") as opened:
        about = opened.metadata()
    assert about["alpha"] == "0.2"
    assert about["scale"] == "2"
    assert about["model_a_sha256"] != about["model_b_sha256"]


def test_statistics_of_batch_norm_are_mixed_and_counters_are_not(tmp_path: Path) -> None:
    a, b = (make(tmp_path, name, batch_norm=True, seed=seed) for seed, name in enumerate("ab"))
    made = interpolate(find_model(a), find_model(b), [0.25], str(tmp_path / "mixed.safetensors"))
    assert made.remark.startswith("BatchNorm's statistics are interpolated like the weights")
    mixed, first, second = (read_weights(file) for file in (made.mixtures[0].file, a, b))
    mean = "bn_body.running_mean"
    torch.testing.assert_close(mixed[mean], 0.75 * first[mean] + 0.25 * second[mean])
    assert mixed["bn_body.num_batches_tracked"] == first["bn_body.num_batches_tracked"] == 1


def test_only_models_of_one_network_are_mixed(tmp_path: Path) -> None:
    a = make(tmp_path, "a")
    (tmp_path / "edsr.safetensors").write_bytes(
        to_safetensors(build_network(2, EDSRSettings(channels=4, blocks=1), 0), 2)
    )
    (tmp_path / "srcnn.safetensors").write_bytes(to_safetensors(build_network(2, SRCNNSettings(channels=8), 0), 2))
    others = {
        str(tmp_path / "edsr.safetensors"): "is a SRResNet x2 and .* a EDSR x2: expected two models of one network",
        str(tmp_path / "srcnn.safetensors"): "is a SRResNet x2 and .* a SRCNN x2: expected two models of one network",
        make(tmp_path, "x3", scale=3): "expected two models of one network",
        make(
            tmp_path, "wide", channels=8
        ): "are both SRResNet, but conv_first.weight is 4 x 3 x 9 x 9 and 8 x 3 x 9 x 9",
        make(tmp_path, "bn", batch_norm=True): "are both SRResNet, but only one has body.0.bn1.weight",
        "bicubic": "bicubic has no weights of this project",
    }
    for other, message in others.items():
        with pytest.raises(UserError, match=message):
            between(a, other, tmp_path / "out", 0.5)
    with pytest.raises(UserError, match="is one of both models, expected another name"):
        between(a, make(tmp_path, "b", seed=1), Path(a), 0.5)
    (tmp_path / "linked").symlink_to(tmp_path)
    with pytest.raises(UserError, match="is one of both models, expected another name"):
        between(a, make(tmp_path, "b", seed=1), tmp_path / "linked" / Path(a).name, 0.5)
    assert not (tmp_path / "out").exists()


def run_command(*arguments: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["interpolate", *arguments])
        runpy.run_module("pipeline.interpolate", run_name="__main__")


def test_the_command_writes_the_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b, out = make(tmp_path, "a"), make(tmp_path, "b", seed=1), str(tmp_path / "between")
    run_command(a, b, "--alpha", "0.2", "0.8", "-o", out)
    assert capsys.readouterr().out.splitlines() == [
        f"{out}/alpha-0.2.safetensors: alpha 0.2",
        f"{out}/alpha-0.8.safetensors: alpha 0.8",
    ]
    for options, message in (
        (["--alpha", "2", "-o", out], "'2' is not a number from 0 to 1"),
        (["--alpha", "0.1", "0.2", "-o", "x.safetensors"], "x.safetensors is one file, expected a folder for 2 models"),
        (["--alpha", "0.1", "-o", out, "--csv", "x.csv"], "need --sets, expected the sets to score on"),
    ):
        with pytest.raises(SystemExit):
            run_command(a, b, *options)
        assert message in capsys.readouterr().err
