"""Models that draw images in steps: one seed gives one image, however it is computed."""

from pathlib import Path

import pytest
import torch

from pipeline import api
from pipeline.exporting import FORMATS, About
from pipeline.exporting.export import export
from pipeline.networks import upscalers
from pipeline.networks.loading import load_upscaler
from pipeline.networks.sources import find_model
from pipeline.networks.upscalers import BicubicUpscaler, Consistent, NetworkUpscaler
from pipeline.networks.upscaling import upscale
from pipeline.networks.weights import to_safetensors
from pipeline.settings import UserError
from pipeline.upscale import main
from sr_model.metrics import consistency
from sr_model.networks.sampling import Sampling
from tests.pipeline.networks.test_upscalers import SMALL, exact, image
from tests.sr_model.networks.test_refiner import make


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A file of weights."""
    file = tmp_path / "refiner.safetensors"
    file.write_bytes(to_safetensors(make(), 4))
    return str(file)


def test_tiles_and_strips_agree_about_the_noise() -> None:
    net = make()
    net.sampling = Sampling(2, seed=3)
    lr = image(height=24, width=40)
    whole = NetworkUpscaler(net, "fp32").enlarge(lr)
    assert (whole.float() - exact(net, lr).clamp(0, 255)).abs().max() <= 0.501
    for other in (
        NetworkUpscaler(net, "fp32", tile=16).enlarge(lr),
        NetworkUpscaler(net, "fp32").enlarge_several([lr, lr])[1],
        upscale(net, lr, tile=32),
    ):
        assert (other.int() - whole.int()).abs().max() <= 1


def test_half_precision_rounds_dark_pixels_finely() -> None:
    torch.manual_seed(0)
    net = make(trained=False)
    net.sampling = Sampling(2)
    lr = torch.randint(0, 12, (3, 24, 24), dtype=torch.uint8)
    exact, rounded = (
        torch.cat([part.flatten() for _, _, part in NetworkUpscaler(net, precision).parts(lr)])
        for precision in ("fp32", "bf16")
    )
    assert (rounded - exact).square().mean().sqrt() * 255 < 0.3


def test_a_seed_repeats_an_image_and_steps_change_it(model: str) -> None:
    lr = image(height=12, width=12)

    def draw(steps: int | None = None, seed: int | None = None) -> torch.Tensor:
        upscaler = api.load_model(model, "cpu", "fp32", steps=steps, seed=seed)
        assert upscaler.samples
        return api.upscale(lr, upscaler)

    first = draw(2, 1)
    assert torch.equal(draw(2, 1), first)
    assert not torch.equal(draw(2, 2), first)
    own = draw()
    assert torch.equal(draw(4, 0), own), "4 are the network's own steps"
    assert not torch.equal(own, first)


def test_a_model_that_makes_its_image_at_once_has_no_steps(tmp_path: Path) -> None:
    file = tmp_path / "net.safetensors"
    file.write_bytes(to_safetensors(SMALL, 4))
    for name in ("bicubic", str(file)):
        with pytest.raises(UserError, match=r"makes its image at once, so it has neither steps nor a seed"):
            load_upscaler(find_model(name), sampling=Sampling(2))
    for steps in (0, 101, 2.5, "4"):
        with pytest.raises(UserError, match=f"the number of steps is {steps!r}, expected a whole number from 1 to 100"):
            api.load_model(str(file), steps=steps)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"the seed is 1\.5, expected an integer of 64 bits"):
        api.load_model(str(file), seed=1.5)  # type: ignore[arg-type]


def test_images_that_are_drawn_are_not_averaged(model: str) -> None:
    with pytest.raises(UserError, match="the self-ensemble averages eight images, which blurs"):
        api.load_model(model, "cpu", self_ensemble=True)
    assert api.load_model(model, "cpu", consistent=True).samples


def test_the_command_refuses_steps_for_such_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "in.png")
    command = ["upscale", f"{tmp_path}/in.png", f"{tmp_path}/out.png", "--model", "bicubic", "--steps", "4"]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert not (tmp_path / "out.png").exists()


def test_a_consistent_image_is_reduced_to_its_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upscalers, "_BICUBIC_STRIP", 1)  # so that strips have eight rows
    net = make(trained=False)
    net.sampling = Sampling(2)
    lr = image(height=30, width=21)
    plain = NetworkUpscaler(net, "fp32")
    before, after = (consistency(some.enlarge(lr), lr) for some in (plain, Consistent(plain)))
    assert after > before + 3
    monkeypatch.setattr(upscalers, "_BICUBIC_STRIP", 2**30)
    whole = Consistent(BicubicUpscaler(4)).enlarge(lr)
    monkeypatch.setattr(upscalers, "_BICUBIC_STRIP", 1)
    assert torch.equal(Consistent(BicubicUpscaler(4)).enlarge(lr), whole), "strips do not show"


def test_formats_without_noise_refuse_it(model: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="draws noise, and an ONNX model cannot"):
        export(find_model(model), FORMATS["onnx"], f"{tmp_path}/model.onnx", "fp32", About())
    written = export(find_model(model), FORMATS["safetensors"], f"{tmp_path}/copy.safetensors", "fp32", About())
    assert "Refiner" in written
    assert api.load_model(f"{tmp_path}/copy.safetensors").samples
