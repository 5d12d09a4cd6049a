"""Colours that nobody sees must not reach what is visible."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from pipeline.data.images import decode
from pipeline.networks.upscalers import BicubicUpscaler, NetworkUpscaler
from pipeline.upscaling.encoding import encode_image
from pipeline.upscaling.images import DecodedImage, decode_image, enlarge_image
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


@pytest.mark.parametrize("outscale", [None, 3])
def test_an_edge_of_sixteen_bits_does_not_wrap(outscale: float | None) -> None:
    """Filters overshoot at an edge; values beyond the range become its ends, as with 8 bits."""
    step = np.repeat([0, 1], 12).astype(np.uint8) * np.ones((16, 1), np.uint8)
    deep, plain = (
        enlarge_image(
            BicubicUpscaler(2), DecodedImage((step * largest)[:, :, None], np.maximum(step * largest, 1)), outscale
        )
        for largest in (np.uint16(65535), np.uint8(255))
    )
    assert deep.alpha is not None
    assert plain.alpha is not None
    for found, expected in ((deep.alpha, plain.alpha), (deep.pixels, plain.pixels)):
        assert found.dtype == np.uint16
        assert np.abs(found / 257 - expected).max() <= 2
        assert (found.min(), found.max()) == (0, 65535)


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
