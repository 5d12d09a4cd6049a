"""The command `python -m pipeline.upscale`: what it keeps of an image, and what it refuses."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import safetensors.torch
import tifffile
import torch
from PIL import Image
from skimage import data

from pipeline import upscale
from pipeline.data import benchmark_sets
from pipeline.evaluation import scoring
from pipeline.networks import bundled, upscaling
from pipeline.networks.upscalers import BicubicUpscaler
from pipeline.networks.weights import contiguous, load_network
from pipeline.reporting import records
from pipeline.settings import Degradation, UserError
from sr_model.networks import from_weights
from sr_model.networks.srresnet import SRResNet
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weights of a small untrained network, which interpolates."""
    file = tmp_path_factory.mktemp("model") / "model.safetensors"
    torch.manual_seed(0)
    safetensors.torch.save_file(contiguous(SRResNet(4, channels=8, blocks=1)), file)
    return str(file)


def photo(mode: str = "RGB", size: tuple[int, int] = (60, 44)) -> Image.Image:
    image = Image.fromarray(data.astronaut()).crop((180, 40, 180 + size[0], 40 + size[1]))
    if "A" not in mode:
        return image.convert(mode)
    alpha = Image.fromarray(np.tile(np.arange(size[0], dtype=np.uint8) * 4, (size[1], 1)))
    image = image.convert(mode.removesuffix("A"))
    image.putalpha(alpha)
    return image


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA"])
@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_grey_and_transparency_are_kept(tmp_path: Path, model: str, mode: str, suffix: str) -> None:
    source, out = tmp_path / "in.png", tmp_path / f"out{suffix}"
    photo(mode).save(source)
    run(source, out, "--model", model)
    with Image.open(out) as upscaled:
        assert upscaled.size == (240, 176)
        if suffix != ".webp":  # which has no grey
            assert upscaled.mode == mode
        channels = zip(upscaled.convert("RGBA").split(), photo(mode).convert("RGBA").split(), strict=True)
        difference = np.stack(
            [
                np.asarray(channel, float) - np.asarray(small.resize(channel.size, Image.Resampling.BICUBIC), float)
                for channel, small in channels
            ],
            axis=-1,
        )
    assert np.abs(difference).mean() < 3
    assert np.abs(difference[..., 3]).max() <= 1


def test_what_a_format_cannot_hold_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    opaque, clear, deep = (str(tmp_path / f"{name}.png") for name in ("opaque", "clear", "deep"))
    whole = photo("RGBA")
    whole.putalpha(255)
    whole.save(opaque)
    photo("RGBA").save(clear)
    Path(deep).write_bytes(imagecodecs.png_encode(np.asarray(photo()).astype(np.uint16) * 257))
    frames = [photo("RGB", (30, 20)).rotate(turn) for turn in (0, 90, 180)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=70, loop=0)
    for source, message in (
        (opaque, ""),
        (clear, f"{clear} is transparent, which .jpg cannot hold: it was put on white\n"),
        (deep, f"{deep} has 16 bits a sample, of which .jpg holds 8\n"),
        (str(tmp_path / "a.gif"), f"{tmp_path}/a.gif is an animation of 3 frames, of which .jpg holds the first\n"),
    ):
        run(source, "-o", tmp_path / "out.jpg", "--model", "bicubic")
        size = "120x80" if source.endswith("gif") else "240x176"
        assert capfd.readouterr().out == f"{message}{tmp_path}/out.jpg: {size}\n"
    run(tmp_path / "a.gif", tmp_path / "out.webp", "--model", "bicubic")
    assert "out.webp: 120x80, 3 frames" in capfd.readouterr().out
    with Image.open(tmp_path / "out.webp") as upscaled:
        assert upscaled.n_frames == 3  # type: ignore[attr-defined]


def test_sixteen_bits_stay_and_the_result_has_another_factor(tmp_path: Path, model: str) -> None:
    small = np.asarray(photo()).astype(np.uint16) * 257
    (tmp_path / "in.png").write_bytes(imagecodecs.png_encode(small))
    run(tmp_path / "in.png", tmp_path / "out.tif", "--model", model, "--outscale", "2.5")
    large = tifffile.imread(tmp_path / "out.tif")
    assert large.dtype == np.uint16
    assert large.shape == (110, 150, 3)
    assert len(np.unique(large)) > 1000
    reference = np.asarray(photo().resize((150, 110), Image.Resampling.BICUBIC), float)
    assert np.abs(large / 257 - reference).mean() < 4


def test_orientation_is_applied_and_cmyk_becomes_rgb(tmp_path: Path, model: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo("CMYK").save(tmp_path / "in.jpg", exif=exif)
    run(tmp_path / "in.jpg", tmp_path / "out.jpg", "--model", model)
    with Image.open(tmp_path / "out.jpg") as upscaled:
        assert (upscaled.size, upscaled.mode) == ((176, 240), "RGB")


@pytest.mark.parametrize("grey", [False, True])
def test_tiles_leave_no_seam(grey: bool) -> None:
    net = SRResNet(4, channels=8, blocks=1, init="paper").eval()
    image = np.asarray(photo("L" if grey else "RGB", (90, 70))).reshape(70, 90, -1)
    whole, tiled = (upscaling.upscale_image(net, image, tile).astype(int) for tile in (1000, 32))
    assert np.abs(whole - tiled).max() <= 1  # rounding
    assert (whole != tiled).mean() < 1e-3


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_network_is_read_off_its_weights(scale: int, batch_norm: bool) -> None:
    net = SRResNet(scale, channels=4, blocks=3, batch_norm=batch_norm, init="paper").eval()
    same = from_weights(
        {name: value.half() if value.dtype.is_floating_point else value for name, value in contiguous(net).items()}
    )
    lr = torch.rand(1, 3, 9, 8)
    torch.testing.assert_close(same(lr), net(lr), rtol=0, atol=3e-3)


def run(*argv: object) -> None:
    upscale.main.__wrapped__([str(arg) for arg in argv])  # type: ignore[attr-defined]


def test_whatever_fails_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    image = tmp_path / "in.png"
    photo().save(image)
    fsspec.filesystem("memory").pipe_file("/shop/x.png/none.txt", b"")
    cases = [
        (
            (image, "nonsense://b/o.png"),
            "cannot use nonsense://b/o.png: Protocol not known: nonsense; expected a path,",
        ),
        (("nonsense://b/in.png", tmp_path / "o.png"), "cannot use nonsense://b/in.png: Protocol not known"),
        (
            ("memory://shop/x.png", tmp_path / "o.png"),
            r"x\.png is a folder, expected an image, or memory://shop/x.png/\*",
        ),
    ]
    for argv, message in cases:
        with pytest.raises(UserError, match=message):
            run(*argv, "--model", "bicubic")
    for error, message in (
        (
            torch.OutOfMemoryError("CUDA out of memory"),
            "there is not enough memory on the GPU, expected a smaller --til",
        ),
        (MemoryError(), "there is not enough memory, expected a smaller --tile or a smaller image"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "there is not enough memory, expected"),
        (KeyError("x"), r"KeyError: 'x' \(test_upscale.py, line \d+\)"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(BicubicUpscaler, "enlarge", failing(error))
            with pytest.raises(UserError, match=f"^{image} cannot be upscaled: {message}"):
                run(image, tmp_path / "o.png", "--model", "bicubic")
    assert {file.name for file in tmp_path.iterdir()} == {"in.png"}


def failing(error: Exception) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise error

    return fail


def test_mistakes_are_one_sentence(tmp_path: Path, model: str, capfd: pytest.CaptureFixture[str]) -> None:
    image, clear = tmp_path / "in.png", tmp_path / "clear.png"
    photo().save(image)
    photo("RGBA").save(clear)
    (tmp_path / "broken.png").write_bytes(image.read_bytes()[:200])
    safetensors.torch.save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    cases = [
        ((tmp_path / "none.png", tmp_path / "o.png"), "none.png does not exist, expected a folder, archive, file or"),
        ((image,), "the output is missing, expected IN... OUT, or IN... -o OUT"),
        ((tmp_path / "broken.png", tmp_path / "o.png"), "broken.png cannot be decoded"),
        ((image, tmp_path / "o.txt"), "o.txt is not the name of an image, expected one that ends in .png, .webp"),
        ((image, clear, tmp_path / "o.png"), "o.png is not a folder, expected one for the enlarged images"),
        ((image, clear, image), "in.png is not a folder, expected one for the enlarged images"),
        ((tmp_path, tmp_path), "broken.png is an input image, expected another folder .*, or --suffix TEXT"),
        ((image, "http://localhost/o.png"), "http://localhost/o.png is an address on the web, expected a file, a fol"),
        ((image, tmp_path / "o.png", "--quality", "0"), "'0' is not a whole number from 1 to 100"),
        ((image, tmp_path / "o.png", "--quality", "9"), "--quality changes nothing for .png, expected files ending in"),
        ((image, tmp_path / "o.png", "--tile", "3"), "'3' is not a whole number from 16 to 8192"),
        ((image, tmp_path / "o.png", "--suffix", "a/b"), "'a/b' has a slash, expected a part of a file's name"),
        (
            (image, tmp_path / "o.png", "--suffix", "_x4"),
            "o.png is a file, expected a folder, whose files --suffix and",
        ),
        ((image, tmp_path / "o", "--format", "txt"), "'txt' is no format, expected .png"),
        ((image, image), "in.png is the input image, expected another name"),
        ((image, tmp_path / "none/o.png"), "o.png cannot be written: .*none is not a folder"),
        (
            (image, tmp_path / "o.png", "--max-megapixels", "0.01"),
            "60x44 is more than 625 pixels, expected .* at most 0.01 megapixels after upscaling x4",
        ),
        ((image, tmp_path / "o.png", "--device", "tpu"), "argument --device: invalid choice: .tpu."),
        ((image, tmp_path / "o.png", "--model", "nobody"), "there is no model nobody: expected a bundled model"),
        (
            (image, tmp_path / "o.png", "--model", tmp_path / "other.safetensors"),
            "the weights are not those of SRResNet",
        ),
    ]
    for argv, message in cases:
        argv = argv if "--model" in argv else (*argv, "--model", model)
        with pytest.raises(UserError, match=message):
            run(*argv)
    assert not list(tmp_path.glob("o.*"))
    assert {file.name for file in tmp_path.iterdir()} == {"in.png", "clear.png", "broken.png", "other.safetensors"}


def test_a_device_that_is_not_there_is_one_sentence(tmp_path: Path, model: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    photo().save(tmp_path / "in.png")
    run(tmp_path / "in.png", tmp_path / "cpu.png", "--model", model, "--device", "cpu")
    run(tmp_path / "in.png", tmp_path / "default.png", "--model", model)
    assert (tmp_path / "cpu.png").read_bytes() == (tmp_path / "default.png").read_bytes()
    with pytest.raises(UserError, match=r"^the device cuda cannot be used \(.*\): expected the device cpu"):
        run(tmp_path / "in.png", tmp_path / "cuda.png", "--model", model, "--device", "cuda")
    assert not (tmp_path / "cuda.png").exists()


def test_it_is_a_command(tmp_path: Path, model: str) -> None:
    photo().save(tmp_path / "in.png")
    command = [sys.executable, "-m", "pipeline.upscale", str(tmp_path / "in.png"), str(tmp_path / "out.png")]
    for options in (["--model", model], []):
        done = subprocess.run([*command, *options], capture_output=True, text=True, cwd=ROOT, check=True)
        assert done.stdout == f"{tmp_path}/out.png: 240x176\n"
    failed = subprocess.run(
        [*command, "--model", "x.safetensors"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: cannot read the weights x.safetensors")


RESULTS = str(ROOT / "docs/results")
BELOW_BICUBIC = {"srgan", "srgan·even", "sr3"}
"""Records of models that trade PSNR for detail, or that have learnt too little."""


@pytest.mark.parametrize("label", [record.label for record in records.read_all(RESULTS)])
def test_a_recorded_network_reproduces_its_scores(label: str) -> None:
    record = records.read(RESULTS, label)
    assert record
    net = load_network(records.weights(RESULTS, label))
    images = {image.name: image for image in benchmark_sets.list_images("builtin", "builtin", net.scale, "")}
    scores = {image.name: image.scores for image in record.scores["builtin"].images}
    for name in ("chelsea", "coffee"):
        hr, lr, _ = scoring.load_pair(images[name].hr, None, net.scale, 10**8)
        score = scoring.score_image(upscaling.upscale_image(net, lr), hr, net.scale)
        assert score.psnr_y == pytest.approx(scores[name]["trained"]["psnr_y"], abs=0.01)
        assert score.psnr_y > scores[name]["bicubic"]["psnr_y"] or label in BELOW_BICUBIC


def test_the_bundled_models_are_recorded_ones() -> None:
    recorded = {"srresnet-x4": (RESULTS, "longer")}  # whose scores the test above reproduces
    recorded |= {"srresnet-x4-jpeg": (f"{RESULTS}/others", "jpeg-x4"), "srresnet-x2": (f"{RESULTS}/others", "x2")}
    assert bundled.names() == sorted(recorded)
    for name, (folder, label) in recorded.items():
        assert Path(bundled.weights(name)).read_bytes() == Path(records.weights(folder, label)).read_bytes()
    assert load_network(bundled.weights("srresnet-x2")).scale == 2


def test_the_model_for_jpeg_removes_artefacts_that_the_default_model_amplifies() -> None:
    nets = {name: load_network(bundled.weights(name)) for name in ("srresnet-x4", "srresnet-x4-jpeg")}
    images = {image.name: image for image in benchmark_sets.list_images("builtin", "builtin", 4, "")}
    hr, lr, _ = scoring.load_pair(images["chelsea"].hr, None, 4, 10**8, Degradation(jpeg=60))
    psnr = {name: scoring.score_image(upscaling.upscale_image(net, lr), hr, 4).psnr_y for name, net in nets.items()}
    bicubic = scoring.score_image(scoring.bicubic_image(lr, 4), hr, 4).psnr_y
    assert psnr["srresnet-x4-jpeg"] > max(bicubic, psnr["srresnet-x4"]) + 0.2
