import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from sr_model.degrade import downscale, upscale_bicubic
from sr_model.metrics import consistency, luma, phase_energy, psnr, score, ssim, ssim_rgb


@pytest.mark.parametrize(
    ("rgb", "y"),
    [((0, 0, 0), 16), ((255, 255, 255), 235), ((255, 0, 0), 81), ((0, 255, 0), 145), ((0, 0, 255), 41)],
)
def test_luma_of_pure_colours_is_that_of_bt601(rgb: tuple[int, int, int], y: int) -> None:
    """16 + 65.481 = 81.481, 16 + 128.553 = 144.553, 16 + 24.966 = 40.966: rounded as rgb2ycbcr does."""
    assert luma(torch.tensor(rgb, dtype=torch.uint8).view(3, 1, 1)).item() == y


def test_psnr_is_the_hand_computed_value() -> None:
    a = torch.zeros(4, 4, dtype=torch.float64)
    b = a.clone()
    b[0, 0] = 8  # MSE 64/16 = 4: 10 log10(255^2 / 4) = 42.1102
    assert psnr(a, b) == pytest.approx(42.1102, abs=1e-4)
    assert math.isnan(psnr(a, a + math.nan))


def test_psnr_is_at_most_100_so_that_means_are_finite() -> None:
    """A difference of 1 in one of n values gives 48.13 + 10 log10(n) dB."""
    a = torch.zeros(400, 400, dtype=torch.float64)
    b = a.clone()
    assert psnr(a, a) == 100
    b[0, 0] = 1
    assert psnr(a, b) == 100
    b[0, :2] = 1
    assert psnr(a, b) == pytest.approx(10 * math.log10(255**2 * 400 * 400 / 2))
    assert psnr(a, b) < 100


@pytest.mark.parametrize("value", [0, 128, 255])
@pytest.mark.parametrize("channels", [1, 3])
def test_flat_images_have_finite_scores(value: int, channels: int) -> None:
    flat = torch.full((channels, 32, 32), value, dtype=torch.uint8)
    equal = score(flat, flat, 4)
    assert (equal.psnr_y, equal.psnr_rgb) == (100, 100)
    assert equal.ssim_y == pytest.approx(1)
    other = score(255 - flat, flat, 4)
    assert all(map(math.isfinite, (other.psnr_y, other.ssim_y, other.psnr_rgb)))


def test_the_peak_is_255_even_for_a_dark_image() -> None:
    hr = torch.full((3, 32, 32), 20, dtype=torch.uint8)
    assert score(hr + 1, hr, 4).psnr_rgb == pytest.approx(20 * math.log10(255))


def test_the_border_is_left_out() -> None:
    hr = torch.randint(0, 256, (3, 40, 40)).byte()
    sr = hr.clone()
    sr[:, :4], sr[:, :, :4], sr[:, -4:], sr[:, :, -4:] = 0, 0, 0, 0
    assert score(sr, hr, 4).psnr_y == 100
    assert score(sr, hr, 3).psnr_y < 40


def test_ssim_equals_its_formula() -> None:
    """Wang et al. 2004, equation 13, written out with an 11x11 Gaussian window, inside the image only."""
    rng = np.random.default_rng(0)
    a = rng.uniform(0, 255, (24, 30))
    b = np.clip(a + rng.normal(0, 30, a.shape), 0, 255)
    t = np.arange(11) - 5
    g = np.exp(-(t**2) / (2 * 1.5**2))
    window = np.outer(g, g) / g.sum() ** 2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for y in range(24 - 10):
        for x in range(30 - 10):
            p, q = a[y : y + 11, x : x + 11], b[y : y + 11, x : x + 11]
            mp, mq = (window * p).sum(), (window * q).sum()
            vp, vq = (window * p * p).sum() - mp**2, (window * q * q).sum() - mq**2
            cov = (window * p * q).sum() - mp * mq
            values.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    assert ssim(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(np.mean(values), abs=1e-6)


def reference_ssim(a: Tensor, b: Tensor) -> float:
    """SSIM of scikit-image, which computes it with other code."""
    return float(
        structural_similarity(
            a.numpy(), b.numpy(), data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
    )


sides = st.integers(11, 40)
"""Sides of images, from the smallest one that SSIM can measure."""


@given(sides, sides, st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 30, 500]))
def test_ssim_is_that_of_scikit_image_on_random_images(height: int, width: int, seed: int, noise: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width))
    noisy = (image + rng.integers(-noise, noise + 1, image.shape)).clip(0, 255)
    a, b = torch.from_numpy(image).double(), torch.from_numpy(noisy).double()
    value = ssim(a, b)
    assert value == pytest.approx(reference_ssim(a, b), abs=1e-9)
    assert value == pytest.approx(ssim(b, a), abs=1e-12)
    assert -1 <= value <= 1 + 1e-12
    assert ssim(a, a) == pytest.approx(1, abs=1e-12)


@given(st.integers(0, 255), st.integers(0, 255), sides, sides)
def test_ssim_is_that_of_scikit_image_on_constant_images(one: int, other: int, height: int, width: int) -> None:
    a, b = (torch.full((height, width), float(value), dtype=torch.float64) for value in (one, other))
    assert ssim(a, b) == pytest.approx(reference_ssim(a, b), abs=1e-9)


@pytest.mark.parametrize("crop", [(11, 11), (11, 400), (400, 11), (180, 181), (350, 351)])
def test_natural_images_of_any_number_of_blocks_have_the_scores_of_scikit_image(crop: tuple[int, int]) -> None:
    height, width = crop
    photo = data.coffee()[:height, :width]
    noisy = (photo + np.random.default_rng(0).normal(0, 9, photo.shape)).clip(0, 255).astype(np.uint8)
    sr, hr = (torch.from_numpy(image).permute(2, 0, 1) for image in (noisy, photo))
    found = score(sr, hr, 0)
    y, y_true = luma(sr), luma(hr)
    assert found.ssim_y == pytest.approx(reference_ssim(y, y_true), abs=1e-9)
    assert found.psnr_y == psnr(y, y_true)  # equal bits, because errors are sums of integers
    assert found.psnr_y == pytest.approx(peak_signal_noise_ratio(y_true.numpy(), y.numpy(), data_range=255), abs=1e-9)
    assert found.psnr_rgb == psnr(sr.double(), hr.double())


def test_ssim_of_colours_is_the_mean_of_the_channels_of_scikit_image() -> None:
    photo = data.coffee()[:60, :71]
    noisy = (photo + np.random.default_rng(0).normal(0, 9, photo.shape)).clip(0, 255).astype(np.uint8)
    sr, hr = (torch.from_numpy(image).permute(2, 0, 1) for image in (noisy, photo))
    expected = [reference_ssim(a[4:-4, 4:-4].double(), b[4:-4, 4:-4].double()) for a, b in zip(sr, hr, strict=True)]
    assert ssim_rgb(sr, hr, 4) == pytest.approx(np.mean(expected), abs=1e-9)
    assert ssim_rgb(sr[:1], hr[:1], 4) == pytest.approx(score(sr[:1], hr[:1], 4).ssim_y, abs=1e-12)


def test_an_image_is_consistent_with_the_lr_image_that_was_made_of_it() -> None:
    hr = torch.from_numpy(data.coffee()[:64, :80].copy()).permute(2, 0, 1)
    lr = downscale(hr, 4)
    assert consistency(hr, lr) == 100
    enlarged = upscale_bicubic(lr, 4)
    assert consistency(enlarged, lr) == psnr(downscale(enlarged, 4).double(), lr.double()) < 60
    assert consistency((enlarged.int() + 8).clamp(0, 255).byte(), lr) < consistency(enlarged, lr)


def test_a_pattern_of_the_period_has_the_energy_of_its_amplitude() -> None:
    """A pattern that is 3 at one of 16 positions and 0 elsewhere has the variance 9 * (1/16 - 1/256)."""
    photo = torch.from_numpy(data.coffee()[:200, :300].copy()).permute(2, 0, 1)
    slope = torch.arange(100, 200, dtype=torch.uint8).expand(1, 80, 100)
    assert phase_energy(slope) == pytest.approx(0, abs=1e-9)
    pattern = torch.zeros(1, 80, 100, dtype=torch.uint8)
    pattern[:, ::4, ::4] = 3
    assert phase_energy(slope + pattern) == pytest.approx(9 * (1 / 16 - 1 / 256), rel=1e-6)
    assert phase_energy(slope + pattern, 3) < 0.2
    own = phase_energy(photo)
    checked = photo.clone()
    checked[:, ::4, ::4] = (checked[:, ::4, ::4].int() + 12).clamp(max=255).byte()
    assert own > 0
    assert phase_energy(checked) > own + 4
    assert phase_energy(photo[:, :30, :30]) == 0


def test_refuses_unequal_images() -> None:
    with pytest.raises(ValueError, match="expected equal shapes of uint8"):
        score(torch.zeros(3, 40, 40, dtype=torch.uint8), torch.zeros(3, 40, 44, dtype=torch.uint8), 4)


@pytest.mark.parametrize(("name", "psnr_y", "ssim_y"), [("Set5", 28.42, 0.810), ("Set14", 25.99, 0.703)])
def test_bicubic_reads_the_published_values(benchmarks: Path, name: str, psnr_y: float, ssim_y: float) -> None:
    scores = []
    for file in sorted((benchmarks / name / "HR").glob("*.png")):
        hr, lr = (np.asarray(Image.open(benchmarks / name / kind / file.name)) for kind in ("HR", "LRbicx4"))
        pair = [torch.tensor(p)[None] if p.ndim == 2 else torch.tensor(p).permute(2, 0, 1) for p in (lr, hr)]
        scores.append(score(upscale_bicubic(pair[0], 4), pair[1], 4))
    assert np.mean([s.psnr_y for s in scores]) == pytest.approx(psnr_y, abs=0.01)
    assert np.mean([s.ssim_y for s in scores]) == pytest.approx(ssim_y, abs=0.001)
