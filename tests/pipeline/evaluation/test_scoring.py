"""Scores of single images and their means."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.evaluation import scoring
from pipeline.networks import features
from pipeline.networks.devices import tf32
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
