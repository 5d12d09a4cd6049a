from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from sr_model.squeezenet import SqueezeNetDistance
from tests.conftest import DATA


def squeezenet() -> dict[str, Tensor]:
    file = Path(DATA, "weights", "squeezenet1_1_features.safetensors")
    if not file.exists():
        pytest.skip(f"no SqueezeNet weights in {file.parent}")
    weights: dict[str, Tensor] = safetensors.torch.load_file(file)
    return weights


def test_the_judging_distance_orders_images_as_people_do() -> None:
    from skimage import data

    distance = SqueezeNetDistance(squeezenet())
    hr = torch.from_numpy(data.astronaut()[:192, 120:312].copy()).permute(2, 0, 1)[None] / 255
    padded = F.pad(hr, (2, 2, 2, 2), mode="reflect")
    much, little = F.avg_pool2d(padded, 5, 1), F.avg_pool2d(padded[:, :, 1:-1, 1:-1], 3, 1)
    brighter = hr + (much - hr).square().mean().sqrt()
    assert distance(hr, hr).item() == 0
    assert distance(much, hr).item() > distance(little, hr).item() > 5 * distance(brighter.clamp(0, 1), hr).item()


def test_the_judging_distance_is_that_of_unit_vectors() -> None:
    weights = squeezenet()
    distance = SqueezeNetDistance({name: torch.zeros_like(value) for name, value in weights.items()})
    assert distance(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32)).item() == 0
    first = {**{n: torch.zeros_like(v) for n, v in weights.items()}, "features.0.weight": weights["features.0.weight"]}
    sr, hr = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    a, b = (
        F.conv2d((x - mean[:, None, None]) / std[:, None, None], weights["features.0.weight"], stride=2).relu()
        for x in (sr, hr)
    )
    a, b = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
    expected = (a - b).square().sum(1).mean((1, 2))
    torch.testing.assert_close(SqueezeNetDistance(first)(sr, hr), expected, atol=1e-5, rtol=1e-4)
