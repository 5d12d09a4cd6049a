"""ST-LPIPS with the weights that the package ships."""

import numpy as np
import pytest
import torch
from skimage import data
from torch import Tensor

from pipeline.networks import features
from sr_model import stlpips
from sr_model.stlpips import STLPIPS

CPU = torch.device("cpu")
REFERENCE = {"blurred": 0.430639, "coarse": 0.097238, "noisy": 0.139676}
"""Values of the package stlpips-pytorch 0.0.2 (alex, shift_tolerant, fp32) for the images of `versions`."""


def versions() -> tuple[dict[str, Tensor], Tensor]:
    """Return three damaged versions of a photograph and the photograph, (1, 3, 96, 131) in [0, 1]."""
    photo = data.astronaut()[:96, 180:311]
    wide = np.pad(photo.astype(float), ((2, 2), (2, 2), (0, 0)), mode="reflect")
    blurred = sum(wide[y : y + 96, x : x + 131] for y in range(5) for x in range(5)) / 25
    noise = np.random.RandomState(0).standard_normal(photo.shape)
    damaged = {"blurred": blurred, "coarse": photo // 32 * 32 + 16, "noisy": photo + 12 * noise}
    return {name: unit(image) for name, image in damaged.items()}, unit(photo)


def unit(image: np.ndarray) -> Tensor:
    eight_bit = np.clip(np.round(image), 0, 255).astype(np.uint8)
    return torch.from_numpy(eight_bit).permute(2, 0, 1)[None] / 255


@pytest.fixture(scope="module")
def metric() -> STLPIPS:
    return features.load_st_lpips(CPU)


def test_it_is_the_published_metric(metric: STLPIPS) -> None:
    """The shipped weights are rounded to fp16, which changes values by at most 2e-4."""
    damaged, photo = versions()
    found = metric(torch.cat(list(damaged.values())), photo)
    assert dict(zip(damaged, found.tolist(), strict=True)) == pytest.approx(REFERENCE, abs=2e-4)
    assert metric(photo, photo).item() == 0


def test_bands_of_a_large_image_add_up_to_the_whole(metric: STLPIPS, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    hr = torch.rand(1, 3, 645, 30, generator=generator)
    sr = (hr + 0.1 * torch.randn(hr.shape, generator=generator)).clamp(0, 1)
    whole = metric(sr, hr).item()
    heights = []
    hooked = metric.scaling.register_forward_hook(lambda module, inputs, output: heights.append(output.shape[2]))
    monkeypatch.setattr(stlpips, "_BAND", 1)
    assert metric(sr, hr).item() == pytest.approx(whole, abs=1e-6)
    hooked.remove()
    assert len(heights) == 2 * 3
    assert max(heights) < 645


@pytest.mark.parametrize("shape", [(1, 1), (20, 40), (21, 21)])
def test_small_images_have_a_distance(metric: STLPIPS, shape: tuple[int, int]) -> None:
    hr = torch.full((1, 3, *shape), 0.4)
    assert metric(hr, hr).item() == 0
    assert metric(hr + 0.2, hr).item() > 0


def test_weights_of_another_network_are_refused() -> None:
    with pytest.raises(ValueError, match="expected ST-LPIPS's names"):
        STLPIPS({"features.0.weight": torch.zeros(1)})
