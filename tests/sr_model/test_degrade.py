"""References here are exact: at a scale of 4, Keys' kernel at odd eighths has the denominator 1024."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter

from sr_model.degrade import Form, add_noise, blur, downscale, imresize, upscale_bicubic

# h(x) = 1.5|x|^3 - 2.5|x|^2 + 1 up to 1, -0.5|x|^3 + 2.5|x|^2 - 4|x| + 2 up to 2, at x = 1/8, 3/8, …, 15/8, times 1024.
# An output pixel of the x4 reduction lies between the inputs 4i+1 and 4i+2, so that its 16 taps are at these places.
# Their sum, 4096 on both sides together, is the norm.
HALF = [987, 745, 399, 93, -49, -75, -45, -7]
TAPS = [*reversed(HALF), *HALF]


def reduce_by_4(row: list[int], mirror: bool) -> list[float]:
    n = len(row)
    out = []
    for i in range(n // 4):
        total = 0
        for k, weight in enumerate(TAPS):
            j = 4 * i + 1 - 7 + k
            j = (-1 - j if j < 0 else 2 * n - 1 - j if j >= n else j) if mirror else min(max(j, 0), n - 1)
            total += weight * row[j]
        out.append(total / 4096)
    return out


ROW = [10, 200, 30, 90, 255, 0, 17, 44, 128, 99, 3, 250, 71, 66, 180, 5, 222, 31, 8, 140, 60, 77, 199, 12]


@pytest.mark.parametrize(("form", "mirror"), [("matlab", True), ("legacy", False)])
def test_one_axis_is_the_written_out_sum(form: Form, mirror: bool) -> None:
    image = torch.tensor(ROW).expand(8, 24)  # columns are constant: the vertical pass changes nothing
    expected = reduce_by_4(ROW, mirror)
    if form == "legacy":
        expected = [min(max(float(np.floor(v + 0.5)), 0.0), 255.0) for v in expected]
    result = imresize(image, (2, 6), form)
    torch.testing.assert_close(result, torch.tensor([expected, expected], dtype=torch.float64), rtol=0, atol=1e-12)


def test_matlab_on_a_ramp_of_sixteen() -> None:
    """Output of MATLAB for imresize(0:15, 1/4): mirrored borders pull the ends in, by the sums of TAPS."""
    ramp = torch.arange(16).expand(8, 16)
    # First output: sum of TAPS[k] * |mirrored index|: indices 5 4 3 2 1 0 | 0 1 2 … 9 of the sixteen taps.
    first = sum(w * j for w, j in zip(TAPS, [5, 4, 3, 2, 1, 0, *range(10)], strict=True)) / 4096
    result = imresize(ramp, (2, 4))[0]
    torch.testing.assert_close(result[0].item(), first)
    torch.testing.assert_close(result + result.flip(0), torch.full((4,), 15.0, dtype=torch.float64))


def test_legacy_rounds_half_up_after_the_vertical_pass() -> None:
    """A column of the impulse 255 in row 1 gives 255*987/4096 = 61.4… -> 61 first, then 61*987/4096 = 14.69… -> 15."""
    image = torch.zeros(1, 16, 16, dtype=torch.uint8)
    image[0, 5, 5] = 255
    assert downscale(image, 4, "legacy")[0, 1, 1] == 15
    assert downscale(image, 4, "matlab")[0, 1, 1] == 15  # 255 * (987/4096)^2 = 14.81
    image[0, 5, 5] = (
        42  # 10.12 -> 10, then 2.41 -> 2; in one go 2.44 -> 2; 45: 10.84 -> 11, then 2.65 -> 3 against 2.61
    )
    assert downscale(image, 4, "legacy")[0, 1, 1] == 2


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize("form", ["matlab", "legacy"])
@given(value=st.integers(0, 255))
def test_a_constant_image_stays_constant(scale: int, form: Form, value: int) -> None:
    image = torch.full((3, 4 * scale, 5 * scale), value, dtype=torch.uint8)
    assert (downscale(image, scale, form) == value).all()
    assert (upscale_bicubic(downscale(image, scale, form), scale, form) == value).all()


@given(seed=st.integers(0, 2**31), scale=st.sampled_from([2, 3, 4, 8]), form=st.sampled_from(["matlab", "legacy"]))
def test_mirrored_images_give_mirrored_results(seed: int, scale: int, form: Form) -> None:
    hr = torch.randint(0, 256, (3, 3 * scale, 4 * scale), generator=torch.Generator().manual_seed(seed)).byte()
    assert torch.equal(downscale(hr.flip(-1), scale, form), downscale(hr, scale, form).flip(-1))
    assert torch.equal(downscale(hr.flip(-2), scale, form), downscale(hr, scale, form).flip(-2))


def test_a_batch_is_its_images() -> None:
    hr = torch.randint(0, 256, (5, 3, 24, 32)).byte()
    assert torch.equal(downscale(hr, 4), torch.stack([downscale(image, 4) for image in hr]))


def test_refuses_a_size_that_does_not_divide() -> None:
    with pytest.raises(ValueError, match="30x21, expected multiples of the scale 4"):
        downscale(torch.zeros(3, 21, 30, dtype=torch.uint8), 4)


@given(
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([2, 3, 4, 8]),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    form=st.sampled_from(["matlab", "legacy"]),
)
def test_the_fast_form_is_the_resize_of_any_size(seed: int, scale: int, size: tuple[int, int], form: Form) -> None:
    generator = torch.Generator().manual_seed(seed)
    hr = torch.randint(0, 256, (3, size[0] * scale, size[1] * scale), generator=generator).byte()
    exact = imresize(hr, size, form)
    tie = (exact - exact.floor() - 0.5).abs() < 1e-9  # floating point may fall to either side of a half
    expected = torch.floor(exact + 0.5).clamp(0, 255).byte()
    assert torch.equal(downscale(hr, scale, form)[~tie], expected[~tie])


def test_noise_is_pinned() -> None:
    """A changed generator would make other patch sets under the same name."""
    noisy = add_noise(torch.full((2, 3), 100, dtype=torch.uint8), 10.0, b"seed")
    assert noisy.tolist() == [[99, 94, 94], [120, 96, 127]]
    large = add_noise(torch.full((300, 300), 128, dtype=torch.uint8), 12.0, b"x").double()
    assert abs(large.mean() - 128) < 0.2
    assert abs(large.std() - 12) < 0.2


def test_blur_is_a_gaussian_and_knows_no_strips() -> None:
    impulse = torch.zeros(1, 31, 31, dtype=torch.uint8)
    impulse[0, 15, 15] = 255
    x = torch.arange(-15, 16).double()
    kernel = torch.exp(-(x**2) / (2 * 1.5**2))
    kernel /= kernel.sum()
    expected = torch.floor(255 * kernel[:, None] * kernel + 0.5)
    assert (blur(impulse, 1.5)[0].double() - expected).abs().max() <= 1
    tall = torch.randint(0, 256, (3, 600, 20)).byte()
    whole = [gaussian_filter(plane, 2.0, mode="reflect", output=np.float64) for plane in tall.double().numpy()]
    assert (blur(tall, 2.0).double() - torch.floor(torch.from_numpy(np.stack(whole)) + 0.5)).abs().max() <= 1


@pytest.mark.parametrize(("name", "count"), [("Set5", 5), ("Set14", 14)])
def test_makes_the_published_files_bit_for_bit(benchmarks: Path, name: str, count: int) -> None:
    files = sorted((benchmarks / name / "HR").glob("*.png"))
    assert len(files) == count
    for file in files:
        hr, lr = (np.asarray(Image.open(benchmarks / name / kind / file.name)) for kind in ("HR", "LRbicx4"))
        axes = (2, 0, 1) if hr.ndim == 3 else (0, 1)
        made = downscale(torch.tensor(hr).permute(*axes), 4, "legacy")
        assert torch.equal(made, torch.tensor(lr).permute(*axes)), file.name
