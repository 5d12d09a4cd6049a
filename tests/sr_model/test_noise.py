"""Noise is a function of where it is used, and normal."""

import numpy as np
import pytest
import torch

from sr_model.noise import beside_noise, hashed, noise_of_image, noise_of_samples, normal, uniform


def splitmix(*parts: int) -> int:
    """SplitMix64 in Python's integers, which do not wrap by themselves."""
    state, mask = 0, 2**64 - 1
    for part in parts:
        z = ((state ^ (part & mask)) + 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        state = z ^ (z >> 31)
    return state


@pytest.mark.parametrize("parts", [(0,), (1, 2, 3), (-5, 2**62), (-(2**63), 2**63 - 1)])
def test_integers_are_hashed_with_splitmix(parts: tuple[int, ...]) -> None:
    assert int(hashed(*parts)) & (2**64 - 1) == splitmix(*parts)


def test_numbers_have_their_distributions() -> None:
    bits = hashed(3, torch.arange(200_000))
    values, shares = normal(bits).double(), uniform(bits).double()
    assert values.isfinite().all()
    assert abs(values.mean()) < 0.01
    assert abs(values.std() - 1) < 0.01
    assert abs((values**4).mean() - 3) < 0.1
    assert 0 < shares.min() < shares.max() < 1
    assert abs(shares.mean() - 0.5) < 0.003
    neighbours = values.view(-1, 2).T.numpy()
    assert abs(np.corrcoef(neighbours)[0, 1]) < 0.01


def test_a_part_of_an_image_has_the_noise_of_the_whole() -> None:
    whole = noise_of_image(5, 4, slice(0, 9), slice(0, 7))
    assert torch.equal(noise_of_image(5, 4, slice(3, 6), slice(2, 7)), whole[:, :, 3:6, 2:7])
    assert not torch.allclose(noise_of_image(6, 4, slice(0, 9), slice(0, 7)), whole)


def test_images_of_a_batch_have_the_same_noise_beside_them() -> None:
    lr = torch.rand(2, 3, 5, 4)
    both = beside_noise(lr, 1, 2, slice(2, 7), slice(0, 4))
    assert torch.equal(both[:, :3], lr)
    assert torch.equal(both[0, 3:], both[1, 3:])
    assert beside_noise(lr, 1, 0, slice(0, 5), slice(0, 4)) is lr


def test_a_sample_has_its_noise_in_any_batch() -> None:
    positions = torch.from_numpy(np.random.default_rng(0).permutation(50))
    whole = noise_of_samples(2, positions, torch.Size((50, 3, 4, 4)))
    part = noise_of_samples(2, positions[10:13], torch.Size((3, 3, 4, 4)))
    assert torch.equal(part, whole[10:13])
    assert abs(np.corrcoef(whole[:2].flatten(1).numpy())[0, 1]) < 0.6
