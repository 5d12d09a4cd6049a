"""The Python API: every kind of image comes back as the same kind, and the examples of its reference run."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps

from pipeline import api
from pipeline.settings import UserError
from sr_model import metrics
from sr_model.degrade import upscale_bicubic
from sr_model.pixels import to_pixels, to_tensor
from tests.conftest import ROOT, random_image

BICUBIC = api.load_model("bicubic", scale=2)
RGB = random_image(12, 17)
EXPECTED = to_pixels(upscale_bicubic(to_tensor(RGB), 2))


def test_an_array_comes_back_as_an_array() -> None:
    assert np.array_equal(api.upscale(RGB, BICUBIC), EXPECTED)
    for grey in (RGB[:, :, 0], RGB[:, :, :1]):
        assert np.array_equal(api.upscale(grey, BICUBIC).squeeze(), EXPECTED[:, :, 0])
        assert api.upscale(grey, BICUBIC).ndim == grey.ndim
    deep = api.upscale(RGB.astype(np.uint16) * 257, BICUBIC)
    assert deep.dtype == np.uint16
    assert np.abs(deep / 257 - EXPECTED).max() <= 0.5 + 1 / 257


def test_a_tensor_comes_back_as_a_tensor() -> None:
    chw, expected = to_tensor(RGB), to_tensor(EXPECTED)
    assert torch.equal(api.upscale(chw, BICUBIC), expected)
    assert torch.equal(api.upscale(torch.stack([chw, chw]), BICUBIC), torch.stack([expected, expected]))
    for dtype in (torch.float32, torch.float64, torch.float16):
        unit = api.upscale((chw.double() / 255).to(dtype)[None], BICUBIC)
        assert (unit.shape, unit.dtype) == ((1, 3, 24, 34), dtype)
        assert (unit[0].double() * 255 - expected).abs().max() <= (0.8 if dtype == torch.float16 else 0.51)
        assert 0 <= unit.min() <= unit.max() <= 1


@pytest.mark.parametrize("mode", ["L", "RGB", "LA", "RGBA"])
def test_a_pil_image_comes_back_in_its_mode(mode: str) -> None:
    image = Image.fromarray(RGB).convert(mode)
    image.info["icc_profile"] = b"profile"
    larger = api.upscale(image, BICUBIC)
    assert (larger.mode, larger.size, larger.info["icc_profile"]) == (mode, (34, 24), b"profile")
    if mode == "RGB":
        assert np.array_equal(np.asarray(larger), EXPECTED)
    if mode in ("LA", "RGBA"):
        assert larger.getchannel("A").getextrema() == (255, 255)


def test_other_modes_become_what_they_show() -> None:
    rgb = Image.fromarray(RGB)
    modes = {"1": "L", "P": "RGB", "CMYK": "RGB", "I;16": "I;16"}
    images = {mode: rgb.convert(mode) for mode in ("1", "P", "CMYK")}
    images["I;16"] = Image.fromarray(RGB[:, :, 0].astype(np.uint16) * 257)
    for mode, image in images.items():
        assert api.upscale(image, BICUBIC).mode == modes[mode]
    deep = np.asarray(api.upscale(images["I;16"], BICUBIC))
    assert np.abs(deep / 257 - EXPECTED[:, :, 0]).max() <= 0.5 + 1 / 257


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_an_orientation_in_a_file_is_applied_before_and_after_pillow_has_loaded_it(tmp_path: Path, kind: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(RGB).save(tmp_path / "turned", kind, exif=exif)
    for loaded in (False, True):
        with Image.open(tmp_path / "turned") as image:
            if loaded:
                image.load()
            larger = api.upscale(image, BICUBIC)
        with Image.open(tmp_path / "turned") as image:
            upright = np.asarray(ImageOps.exif_transpose(image))
        assert larger.size == (24, 34)
        assert larger.getexif().get(ExifTags.Base.Orientation) is None
        assert np.array_equal(np.asarray(larger), api.upscale(upright, BICUBIC))
        with Image.open(tmp_path / "turned") as image:
            assert api.score(image, upright, border=0).psnr_rgb == 100


def test_damaged_metadata_do_not_spoil_an_image() -> None:
    for exif in (b"rubbish", b"Exif\0\0II*\0\x08", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\1"):
        image = Image.fromarray(RGB)
        image.info["exif"] = exif
        assert np.array_equal(np.asarray(api.upscale(image, BICUBIC)), EXPECTED)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 4), np.uint8), r"the array has the shape \(4, 4, 4\), expected \(H, W\)"),
        (np.zeros((0, 4), np.uint8), r"the array has the shape \(0, 4\)"),
        (np.zeros((4, 4)), "the array is float64, expected uint8"),
        (torch.zeros(4, 4), r"the tensor has the shape \(4, 4\), expected \(C, H, W\)"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "the tensor is torch.int64, expected uint8"),
        (torch.full((3, 4, 4), 255.0), r"the tensor has values from 255 to 255, expected floating-point values in"),
        (torch.full((3, 4, 4), torch.nan), "the tensor has values from nan to nan"),
        (torch.zeros(3, 0, 4), r"the tensor has the shape \(3, 0, 4\)"),
        (Image.new("I", (4, 4)), "the image has the mode I, which states no range of values, expected L or I;16"),
        (Image.new("F", (4, 4)), "the image has the mode F, "),
        ("photo.png", "the image is a str, expected a PIL image, a NumPy array or a tensor"),
    ],
)
def test_what_is_no_image_is_refused(image: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        api.upscale(image, BICUBIC)
    with pytest.raises(ValueError, match=f"^{message}"):
        api.score(image, RGB)


def test_a_model_is_found_by_any_name() -> None:
    assert api.load_model().scale == api.load_model(device="cpu", precision="fp32", tile=64).scale == 4
    assert api.upscale(np.zeros((4, 5), np.uint8), "bicubic").shape == (16, 20)
    assert api.load_model("bicubic", scale=3, self_ensemble=True).scale == 3
    with pytest.raises(UserError, match=r"^there is no model nothing: expected"):
        api.upscale(RGB, "nothing")


def test_a_pair_of_any_kind_has_one_score() -> None:
    hr, sr = random_image(40, 44), random_image(40, 44)[::-1].copy()
    expected = metrics.score(to_tensor(sr), to_tensor(hr), border=4)
    found = api.score(sr, hr)
    assert (found.psnr_y, found.ssim_y, found.psnr_rgb) == (expected.psnr_y, expected.ssim_y, expected.psnr_rgb)
    deep = hr.astype(np.uint16) * 257
    for other in (Image.fromarray(hr), to_tensor(hr), to_tensor(hr) / 255, deep, Image.fromarray(hr).convert("RGBA")):
        assert api.score(sr, other) == found
    assert api.score(hr, hr) == api.PairScore(100.0, 1.0, 100.0, 1.0)
    with pytest.raises(ValueError, match="expected equal shapes"):
        api.score(hr, hr[:-1])


def test_the_examples_of_the_reference_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(random_image(16, 24)).save("photo.png")
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "docs/reference/python.md").read_text(), re.DOTALL)
    assert len(examples) == 3
    for example in examples:
        exec(example, {})
    assert Image.open("larger.png").size == (96, 64)
