"""Scores of single images and their means."""

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pipeline.data import degradation
from pipeline.data.locations import FileLocation
from pipeline.evaluation import measuring, scoring
from pipeline.networks import features
from pipeline.networks.devices import tf32
from pipeline.settings import Degradation
from pipeline.settings.command_line import parse
from pipeline.training import memory
from sr_model.metrics import score
from sr_model.pixels import Pixels, to_tensor
from tests.conftest import DATA, random_image

CPU = torch.device("cpu")


@pytest.mark.parametrize("value", [0, 255])
def test_a_flat_image_among_others_leaves_means_finite(value: int) -> None:
    """A black frame is enlarged without an error by every method, and its PSNR of 100 dB enters the mean."""
    flat: Pixels = np.full((96, 96, 3), value, np.uint8)
    enlarged = scoring.bicubic_image(flat[::4, ::4].copy(), 4)
    score = scoring.score_image(enlarged, flat, 4)
    assert score.psnr_y == 100
    mean = scoring.mean_scores([{"psnr_y": score.psnr_y, "ssim_y": score.ssim_y}, {"psnr_y": 25.0, "ssim_y": 0.8}])
    assert mean["psnr_y"] == 62.5
    assert math.isfinite(mean["ssim_y"])


@pytest.mark.parametrize("shape", [(2000, 2500), (12, 416_000)])
def test_scoring_a_large_image_takes_little_memory(shape: tuple[int, int]) -> None:
    """A single map of its values in float64 would take 40 MB."""
    hr = torch.zeros(1, *shape, dtype=torch.uint8)
    score(hr[:, :, :600], hr[:, :, :600], 0)
    memory.reset_peak(CPU)
    before = memory.peak_mb(CPU)
    assert score(hr, hr, 0).psnr_y == 100
    assert memory.peak_mb(CPU) - before < 20


@pytest.fixture(scope="module")
def squeezenet() -> str:
    file = DATA / "weights" / "squeezenet1_1_features.safetensors"
    if not file.exists():
        pytest.skip(f"no SqueezeNet weights in {file.parent}")
    return str(file)


def test_tf32_is_off_while_features_are_compared(squeezenet: str) -> None:
    seen = []

    def note(module: nn.Module, inputs: object, output: object) -> None:
        seen.append((torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()))

    hooked = features.load_distance(squeezenet, CPU).features[0].register_forward_hook(note)
    image = to_tensor(random_image(40, 40))
    with tf32(True):
        scoring.feature_distance(squeezenet, image, image)
    hooked.remove()
    assert seen == [(False, "highest")] * 2


def test_the_distance_of_a_grey_image_is_that_of_equal_channels(squeezenet: str) -> None:
    sr, hr = (random_image(40, 40, seed)[:, :, :1] for seed in (0, 1))
    grey = scoring.feature_distance(squeezenet, to_tensor(sr), to_tensor(hr))
    rgb = scoring.feature_distance(squeezenet, *(to_tensor(image.repeat(3, axis=2)) for image in (sr, hr)))
    assert grey == rgb > 0


def test_lr_images_are_degraded_before_they_are_enlarged(tmp_path: Path) -> None:
    hr = random_image(64, 64)
    for name, pixels in (("hr", hr), ("lr", hr[::4, ::4])):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    files = FileLocation(str(tmp_path / "hr.png")), FileLocation(str(tmp_path / "lr.png"))
    content = hashlib.sha256((tmp_path / "hr.png").read_bytes()).hexdigest()
    noisy, blurred = Degradation(noise=5, jpeg=60), Degradation(blur=1.5, jpeg=(40, 60))
    _, lr, origin = scoring.load_pair(*files, 4, 10**6, noisy)
    assert np.array_equal(lr, degradation.spoil(hr[::4, ::4], noisy, content))
    assert origin == "files of the set, with noise 5 and JPEG quality 60"
    _, lr, origin = scoring.load_pair(*files, 4, 10**6, blurred)
    assert np.array_equal(lr, degradation.degrade(hr, 4, blurred, content))
    assert origin == "made by this pipeline with MATLAB's bicubic, with blur 1.5 and JPEG quality 40 to 60"
    clean = Degradation(blur=1.5, clean=0.999999)
    _, lr, origin = scoring.load_pair(*files, 4, 10**6, clean)
    assert np.array_equal(lr, degradation.degrade(hr, 4, clean.cleaned(), content)), "made as those with blur are"
    assert origin.startswith("made by this pipeline")
    assert np.array_equal(scoring.load_pair(*files, 4, 10**6)[1], hr[::4, ::4])


def test_the_name_of_a_set_and_the_identity_of_scores_say_what_was_done() -> None:
    def evaluation(*options: str) -> tuple[set[str], str]:
        config = parse(["evaluate.benchmarks=builtin=builtin", *options], "evaluate", "")
        images = measuring.list_images(config)
        return {image.set for image in images}, measuring.Evaluation(4, images, [], []).identify(config)

    (plain, identity), (same, known), (jpeg, other) = (
        evaluation(*options) for options in ([], ["evaluate.degradation.seed=1"], ["evaluate.degradation.jpeg=60"])
    )
    assert (plain, same, jpeg) == ({"builtin"}, {"builtin"}, {"builtin-jpeg60"})
    assert identity == known != other
