"""Scores of single images and their means."""

import math

import numpy as np
import pytest

from pipeline.evaluation import scoring
from sr_model.pixels import Pixels


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
