import pytest
import torch
from torch import Tensor

from sr_model.metrics import phase_energy
from sr_model.terms.phase import phase_error


def pattern(period: int, side: int = 64) -> Tensor:
    """A pattern with a single brighter pixel in each period, (1, 3, side, side)."""
    image = torch.zeros(1, 3, side, side)
    image[..., ::period, ::period] = 0.1
    return image


@pytest.mark.parametrize("period", [2, 3, 4])
def test_an_error_that_is_a_pattern_alone_has_the_energy_of_its_variance(period: int) -> None:
    hr = torch.rand(1, 3, 64, 64)
    error = pattern(period)
    variance = (1 / period**2 - 1 / period**4) * 0.1**2
    assert phase_error(hr + error, hr, period).tolist() == pytest.approx([variance], rel=1e-3)


def test_brightness_and_slopes_are_no_pattern_and_noise_cancels_out() -> None:
    hr = torch.rand(1, 3, 64, 64)
    slope = torch.linspace(0, 0.3, 64).expand(1, 3, 64, 64)
    assert phase_error(hr + 0.2, hr, 4).item() < 1e-10
    assert phase_error(hr + slope, hr, 4).item() < 1e-10
    noise = 0.1 * torch.randn(1, 3, 64, 64)
    assert phase_error(hr + noise, hr, 4).item() < 0.03 * noise.square().mean()


def test_it_judges_each_image_alone_down_to_two_periods() -> None:
    hr = torch.rand(2, 3, 8, 8)
    sr = hr.clone()
    sr[1] += pattern(4, 8)[0]
    clean, patterned = phase_error(sr, hr, 4).tolist()
    assert clean == 0
    assert patterned > 1e-4


def test_a_network_that_follows_it_loses_the_pattern_that_the_metric_measures() -> None:
    torch.manual_seed(0)  # the energy of the true image is small and random: the ratio varies from 0.9 to 1.4
    hr = torch.rand(1, 3, 96, 96) * 0.2 + 0.4
    sr = (hr + pattern(4, 96)).requires_grad_()
    optimizer = torch.optim.SGD([sr], lr=1000.0)

    def energy() -> float:
        return phase_energy((sr.detach()[0].clamp(0, 1) * 255).round().to(torch.uint8))

    before, truth = energy(), phase_energy((hr[0] * 255).round().to(torch.uint8))
    for _ in range(300):
        optimizer.zero_grad()
        phase_error(sr, hr, 4).sum().backward()
        optimizer.step()
    assert before > 10 * truth
    assert energy() < 1.5 * truth
