import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.data.degradation import as_tensor, degrade, spoil, tile_cutter
from pipeline.settings import Degradation, UserError
from pipeline.settings.command_line import parse
from sr_model.degrade import add_noise, blur, downscale
from sr_model.pixels import Pixels
from tests.conftest import random_image

IMAGE = "ab" * 32
"""Hash of an image's content."""
HR = random_image(192, 256)


def compressed(image: Pixels, quality: int) -> Pixels:
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, "JPEG", quality=quality)
    return np.asarray(Image.open(sink))


def test_single_values_give_the_same_names_and_bytes_as_before_there_were_ranges() -> None:
    settings = Degradation(blur=1.2, noise=10, jpeg=60, seed=3)
    assert settings.model_dump_json() == '{"blur":1.2,"bicubic":"matlab","noise":10.0,"jpeg":60,"seed":3}'
    assert Degradation().model_dump_json() == '{"blur":0.0,"bicubic":"matlab","noise":0.0,"jpeg":null,"seed":0}'
    reduced = downscale(blur(as_tensor(HR).permute(2, 0, 1), 1.2), 4, "matlab").permute(1, 2, 0)
    expected = compressed(add_noise(reduced, 10, f"3 {IMAGE}".encode()).numpy(), 60)
    assert np.array_equal(degrade(HR, 4, settings, IMAGE), expected)
    cut = tile_cutter(HR, 4, 64, settings, IMAGE)
    assert np.array_equal(cut(64, 128), expected[16:32, 32:48])


@given(key=st.text(max_size=8), low=st.integers(1, 100), more=st.integers(0, 40))
def test_draws_are_within_their_ranges_and_repeat(key: str, low: int, more: int) -> None:
    settings = Degradation(blur=(0.2, 1.5), noise=(low / 2, low), jpeg=(low, min(low + more, 100)))
    drawn = settings.drawn(key)
    assert isinstance(drawn.blur, float)
    assert 0.2 <= drawn.blur <= 1.5
    assert isinstance(drawn.noise, float)
    assert low / 2 <= drawn.noise <= low
    assert isinstance(drawn.jpeg, int)
    assert low <= drawn.jpeg <= min(low + more, 100)
    assert drawn == settings.drawn(key)
    assert drawn == drawn.drawn(key)


def test_a_key_has_the_same_values_in_all_versions() -> None:
    """They shape patch sets whose names do not have them."""
    drawn = Degradation(blur=(0, 2), noise=(0, 10), jpeg=(40, 95), seed=3).drawn("image")
    assert drawn.blur == pytest.approx(1.409105841)
    assert drawn.noise == pytest.approx(4.669567293)
    assert drawn.jpeg == 61


def test_blur_and_noise_are_uniform_in_their_ranges() -> None:
    settings = Degradation(blur=(1, 3), noise=(10, 20))
    values = np.array([(one.blur, one.noise) for one in (settings.drawn(str(number)) for number in range(2000))])
    quartiles = np.quantile(values, [0.25, 0.5, 0.75], axis=0)
    assert quartiles == pytest.approx(np.array([[1.5, 12.5], [2, 15], [2.5, 17.5]]), rel=0.03)


def test_draws_cover_their_range_and_depend_on_the_seed() -> None:
    settings = Degradation(jpeg=(40, 43), clean=0.25)
    drawn = [settings.drawn(str(number)).jpeg for number in range(2000)]
    shares = {quality: drawn.count(quality) / len(drawn) for quality in set(drawn)}
    assert shares == pytest.approx({None: 0.25, 40: 0.19, 41: 0.19, 42: 0.19, 43: 0.19}, abs=0.03)
    other = settings.model_copy(update={"seed": 1})
    assert [other.drawn(str(number)).jpeg for number in range(2000)] != drawn


def test_a_tile_is_a_part_of_the_whole_image_with_the_values_that_are_drawn_for_the_tile() -> None:
    settings = Degradation(blur=(0.5, 2), jpeg=(30, 90))
    cut = tile_cutter(HR, 4, 64, settings, IMAGE)
    blurred = degrade(HR, 4, Degradation(blur=settings.drawn(IMAGE).blur), IMAGE)
    qualities = set()
    for y, x in ((0, 0), (64, 64), (52, 100), (128, 192)):
        drawn = settings.drawn(f"{IMAGE} {y} {x}")
        whole = spoil(blurred, Degradation(jpeg=drawn.jpeg), "")
        assert np.array_equal(cut(y, x), whole[y // 4 : y // 4 + 16, x // 4 : x // 4 + 16])
        qualities.add(drawn.jpeg)
    assert len(qualities) > 1


def test_a_clean_tile_is_reduced_alone_and_noise_differs_between_tiles() -> None:
    settings = Degradation(blur=1.5, noise=(5, 10), clean=0.5)
    cut = tile_cutter(HR, 4, 32, settings, IMAGE)
    clean, blurred = (degrade(HR, 4, Degradation(blur=value), IMAGE).astype(int) for value in (0, 1.5))
    origins = [(y, x) for y in range(0, 192, 32) for x in range(0, 256, 32)]
    states = []
    for y, x in origins:
        part = (slice(y // 4, y // 4 + 8), slice(x // 4, x // 4 + 8))
        states.append(np.array_equal(cut(y, x), clean[part]))
        assert states[-1] or 3 < (cut(y, x) - blurred[part]).std() < 13
    assert 10 < sum(states) < 38


def test_a_grey_image_stays_grey() -> None:
    grey = HR[:, :, :1]
    assert degrade(grey, 4, Degradation(noise=3, jpeg=50), IMAGE).shape == (48, 64, 1)


def test_its_label_says_what_is_done() -> None:
    assert Degradation(seed=5).label == ""
    assert Degradation(bicubic="legacy", jpeg=60).label == "-legacy-jpeg60"
    assert Degradation(blur=1.5, noise=(2, 5), jpeg=60).label == "-blur1.5-noise2to5-jpeg60"


@pytest.mark.parametrize("value", ["40,95", "[40, 95]"])
def test_a_range_is_written_as_a_list(value: str) -> None:
    assert parse([f"preprocess.degradation.jpeg={value}"], "train", "").preprocess.degradation.jpeg == (40, 95)


@pytest.mark.parametrize(
    "option", ["jpeg=95,40", "jpeg=0", "jpeg=0,40", "jpeg=1,2,3", "jpeg=good", "jpeg=true", "blur=nan", "noise=1,inf"]
)
def test_another_range_is_refused_in_a_sentence(option: str) -> None:
    name, _, _ = option.partition("=")
    with pytest.raises(UserError, match=rf"^preprocess\.degradation\.{name} is .*, expected "):
        parse([f"preprocess.degradation.{option}"], "train", "")
