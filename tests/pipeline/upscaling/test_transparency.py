"""Colours that nobody sees must not reach what is visible."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from pipeline.data.images import decode
from pipeline.networks.upscalers import NetworkUpscaler
from pipeline.upscaling.encoding import encode_image
from pipeline.upscaling.images import decode_image, enlarge_image
from pipeline.upscaling.transparency import cover_hidden_colours
from sr_model.networks.srresnet import SRResNet
from sr_model.pixels import Pixels
from tests.pipeline.data.formats.encoders import saved

SHAPE = (5, 6)
ALPHA = arrays.arrays(np.uint8, SHAPE, elements=st.sampled_from([0, 0, 1, 128, 255]))
COLOURS = arrays.arrays(np.uint8, (*SHAPE, 3))


@given(COLOURS, COLOURS, ALPHA)
def test_the_result_does_not_depend_on_hidden_colours(first: Pixels, second: Pixels, alpha: Pixels) -> None:
    visible = alpha > 0
    second[visible] = first[visible]
    covered = cover_hidden_colours(first, alpha)
    assert np.array_equal(covered, cover_hidden_colours(second, alpha))
    assert np.array_equal(covered[visible], first[visible])


@given(COLOURS, ALPHA)
def test_sixteen_bits_are_covered_alike(image: Pixels, alpha: Pixels) -> None:
    deep, deep_alpha = (values.astype(np.uint16) * 257 for values in (image, alpha))
    assert np.array_equal(cover_hidden_colours(deep, deep_alpha), cover_hidden_colours(image, alpha).astype(int) * 257)


@given(COLOURS, ALPHA)
def test_a_hidden_pixel_has_the_colour_of_a_nearest_visible_one(image: Pixels, alpha: Pixels) -> None:
    covered = cover_hidden_colours(image, alpha)
    visible = np.argwhere(alpha > 0)
    for y, x in np.argwhere(alpha == 0) if len(visible) else ():
        distances = ((visible - [y, x]) ** 2).sum(axis=1)
        nearest = visible[distances == distances.min()]
        assert any((covered[y, x] == image[ny, nx]).all() for ny, nx in nearest)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_an_enlarged_file_shows_no_hidden_colour(mode: str) -> None:
    """A bright disc on transparent black, white or noise gives the same enlarged file, without a dark rim."""
    torch.manual_seed(0)
    upscaler = NetworkUpscaler(SRResNet(4, channels=8, blocks=1).eval())
    y, x = np.mgrid[:40, :40]
    disc = (y - 20) ** 2 + (x - 20) ** 2 < 150
    enlarged = []
    for hidden in (0, 255, np.random.default_rng(0).integers(0, 256, (40, 40, 3))):
        colours = np.where(disc[:, :, None], [220, 200, 40], hidden).astype(np.uint8)
        image = Image.fromarray(np.dstack([colours, disc * np.uint8(255)])).convert(mode)
        image = Image.merge(mode, [*image.split()[:-1], Image.fromarray(disc * np.uint8(255))])
        large = enlarge_image(upscaler, decode_image(saved(image), 10**4))
        enlarged.append(encode_image(large, ".png"))
    assert enlarged[0] == enlarged[1] == enlarged[2]
    darkest = {"RGBA": 40, "LA": 180}[mode]
    assert decode(enlarged[0], 10**6).min() >= darkest - 12
