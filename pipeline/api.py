"""Trained models from Python: load one, upscale images, score a pair.

    from pipeline import api

    larger = api.upscale(image)

docs/reference/python.md shows all calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from pipeline.networks.bundled import DEFAULT
from pipeline.networks.engine import Precision
from pipeline.networks.loading import load_upscaler
from pipeline.networks.sources import find_model
from pipeline.networks.upscalers import Consistent, SelfEnsemble, Upscaler
from pipeline.settings.sampling import chosen_sampling
from pipeline.upscaling.images import DecodedImage, enlarge_image
from sr_model import metrics
from sr_model.networks.sampling import Solver

AnyImage = TypeVar("AnyImage", Image.Image, npt.NDArray[np.uint8], npt.NDArray[np.uint16], Tensor)
ImageLike = Image.Image | npt.NDArray[np.uint8] | npt.NDArray[np.uint16] | Tensor

_DEEP_MODES = ("I;16", "I;16B", "I;16L")


@dataclass(frozen=True)
class PairScore:
    """Similarity of an image to its ground truth; both have 8 bits."""

    psnr_y: float
    """PSNR on the luma of BT.601 in dB, at most 100; 100 for equal images."""
    ssim_y: float
    """SSIM of Wang et al. 2004 on the luma of BT.601, at most 1."""
    psnr_rgb: float
    """PSNR over all channels in dB, at most 100."""
    ssim_rgb: float
    """Mean over the channels of the SSIM of each channel, at most 1."""


def load_model(
    model: str = DEFAULT,
    device: str | None = None,
    precision: Precision = "auto",
    *,
    scale: int = 4,
    self_ensemble: bool = False,
    tile: int | None = None,
    steps: int | None = None,
    seed: int | None = None,
    solver: Solver | None = None,
    consistent: bool = False,
) -> Upscaler:
    """Load a model.

    Args:
        model: name of a bundled model, a .safetensors or .onnx file at a path or URL, the folder of a training or of a
            workflow, models:/NAME@ALIAS or runs:/ID of MLflow, or "bicubic".
        device: "cpu" or "cuda"; by default the GPU if there is one.
        precision: "fp32", "bf16", "fp16", or "auto" for the fastest one that changes an 8-bit image by less than
            0.01 dB.
        scale: the factor of "bicubic"; networks have their own.
        self_ensemble: average the image's eight orientations, which takes eight times as long and gains about 0.1 dB.
        tile: LR pixels, widest part of an image that is computed at once; by default what there is memory for.
        steps: steps in which a model that refines draws an image, from 1 to 100; by default its own number.
        seed: the noise that such a model starts from, an integer of 64 bits; by default 0. The same seed gives the same
            image.
        solver: "euler", the default, or "heun", which computes such a model twice in each step but
            the last.
        consistent: correct images so that, reduced with bicubic interpolation, they are nearly the input.

    Returns:
        The model. `scale` is its factor, and `upscale` takes it.

    Raises:
        UserError: if there is no such model or device, the model cannot be loaded, it does not draw images in steps
            and `steps`, `seed` or `solver` is given, or it does and `self_ensemble` is given.
    """
    upscaler = load_upscaler(find_model(model), scale, device, precision, tile, chosen_sampling(steps, seed, solver))
    if self_ensemble:
        upscaler = SelfEnsemble(upscaler)
    return Consistent(upscaler) if consistent else upscaler


def upscale(image: AnyImage, model: str | Upscaler = DEFAULT) -> AnyImage:
    """Enlarge an image by the model's factor s, in bounded memory.

    Args:
        image: an image in sRGB or grey, one of

            - a PIL image; grey (L, I;16), RGB and their forms with opacity (LA, RGBA) keep their mode, and others
              become RGB or RGBA, except I and F, which are refused; its orientation in EXIF metadata is applied,
            - a NumPy array (H, W), (H, W, 1) or (H, W, 3), uint8 with values in 0..255 or uint16 in 0..65535,
            - a tensor (C, H, W) or (B, C, H, W) on any device with C = 1 or 3: uint8 with values in 0..255, uint16 in
              0..65535, or a floating-point type in [0, 1], which is read in steps of 1/65535 and written without
              rounding, clamped to [0, 1].
        model: a model from `load_model`, or a text for it; a model that is named twice is loaded once.

    Returns:
        The same kind of image with the same channels and type, s times as high and wide; a tensor is on the device of
        the image.

    Raises:
        ValueError: if the image has another shape or type.
        UserError: if there is no such model.
    """
    upscaler = _load_named(model) if isinstance(model, str) else model
    if isinstance(image, Image.Image):
        return _upscale_pil(image, upscaler)
    if isinstance(image, Tensor):
        return _upscale_tensor(image, upscaler)
    pixels = torch.from_numpy(np.require(_checked(image), requirements=["C", "W"]))
    enlarged = upscaler.enlarge(pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1))
    array: npt.NDArray[Any] = (enlarged[0] if pixels.dim() == 2 else enlarged.permute(1, 2, 0)).numpy()
    return array


def score(sr: ImageLike, hr: ImageLike, border: int = 4) -> PairScore:
    """Compare an image with its ground truth by the protocol of super-resolution papers.

    Args:
        sr: the image, of any kind that `upscale` takes except a batch. Opacity is ignored, and images of more than 8
            bits are rounded to 8.
        hr: the ground truth with the same size and channels.
        border: pixels ignored at each side. Papers use the scale.

    Raises:
        ValueError: if sizes or channels differ, a kind is not known, or less than 11 pixels remain inside the border.
    """
    a, b = _eight_bits(sr), _eight_bits(hr)
    found = metrics.score(a, b.to(a.device), border)
    return PairScore(found.psnr_y, found.ssim_y, found.psnr_rgb, metrics.ssim_rgb(a, b.to(a.device), border))


@lru_cache(maxsize=2)
def _load_named(model: str) -> Upscaler:
    return load_model(model)


def _upscale_pil(image: Image.Image, upscaler: Upscaler) -> Image.Image:
    samples = _samples(image)
    channels = samples.shape[2]
    alpha = samples[:, :, -1] if channels in (2, 4) else None
    decoded = DecodedImage(np.ascontiguousarray(samples if alpha is None else samples[:, :, :-1]), alpha)
    result = enlarge_image(upscaler, decoded)
    pixels = result.pixels[:, :, 0] if result.pixels.shape[2] == 1 else result.pixels
    enlarged = Image.fromarray(pixels)
    if result.alpha is not None:
        enlarged.putalpha(Image.fromarray(result.alpha))
    if profile := image.info.get("icc_profile"):
        enlarged.info["icc_profile"] = profile
    return enlarged


def _samples(image: Image.Image) -> npt.NDArray[Any]:
    """Return the values of a PIL image, (H, W, C), upright: grey or RGB, and opacity if C is 2 or 4."""
    image = _upright(image)
    if image.mode in ("I", "F"):
        raise ValueError(f"the image has the mode {image.mode}, which states no range of values, expected L or I;16")
    if image.mode in _DEEP_MODES:
        return np.array(image, np.uint16)[:, :, None]
    transparent = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    grey = image.mode in ("1", "L", "LA", "La")
    samples = np.array(image.convert(("LA" if grey else "RGBA") if transparent else "L" if grey else "RGB"))
    return samples[:, :, None] if samples.ndim == 2 else samples


def _upright(image: Image.Image) -> Image.Image:
    """Apply the orientation that the image's metadata state; damaged metadata count as absent."""
    image.load()  # Pillow reads some metadata with the pixels, and turns TIFF files itself
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image
    except Exception:  # Pillow raises many kinds of exceptions on damaged metadata
        return image


def _upscale_tensor(image: Tensor, upscaler: Upscaler) -> Tensor:
    _check_tensor(image, "(C, H, W) or (B, C, H, W)", (3, 4))
    if image.dim() == 4:
        return torch.stack([_upscale_tensor(one, upscaler) for one in image])
    if image.is_floating_point():
        channels, height, width = image.shape
        deep = _to_integers(image, torch.uint16)
        out = image.new_empty(channels, height * upscaler.scale, width * upscaler.scale)
        for top, left, values in upscaler.parts(deep):
            out[:, top : top + values.shape[1], left : left + values.shape[2]] = values.clamp(0, 1)
        return out
    return upscaler.enlarge(image)


def _check_tensor(image: Tensor, form: str, dims: tuple[int, ...]) -> None:
    if image.dim() not in dims or image.shape[-3] not in (1, 3) or not image.numel():
        raise ValueError(f"the tensor has the shape {tuple(image.shape)}, expected {form}, C = 1 or 3")
    if not image.is_floating_point() and image.dtype not in (torch.uint8, torch.uint16):
        raise ValueError(f"the tensor is {image.dtype}, expected uint8, uint16 or a floating-point type in [0, 1]")


def _to_integers(image: Tensor, dtype: torch.dtype) -> Tensor:
    """Round an image in [0, 1] to integers of a type.

    Raises:
        ValueError: if a value is outside, or not a number.
    """
    low, high = (float(value) for value in image.aminmax())
    if not 0 <= low <= high <= 1:
        raise ValueError(f"the tensor has values from {low:g} to {high:g}, expected floating-point values in [0, 1]")
    return image.float().mul(torch.iinfo(dtype).max).round_().to(dtype)


def _checked(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if not isinstance(image, np.ndarray):
        raise ValueError(f"the image is a {type(image).__name__}, expected a PIL image, a NumPy array or a tensor")
    if image.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"the array is {image.dtype}, expected uint8 with values in 0..255 or uint16 in 0..65535")
    if not image.size or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3)):
        raise ValueError(f"the array has the shape {image.shape}, expected (H, W), (H, W, 1) or (H, W, 3)")
    return image


def _eight_bits(image: ImageLike) -> Tensor:
    """Return an image as (C, H, W) uint8 with C = 1 or 3."""
    if isinstance(image, Image.Image):
        samples = _samples(image)
        image = samples[:, :, :-1] if samples.shape[2] in (2, 4) else samples
    if not isinstance(image, Tensor):
        array = np.require(_checked(image), requirements=["C", "W"])
        image = torch.from_numpy(array)[None] if array.ndim == 2 else torch.from_numpy(array).permute(2, 0, 1)
    _check_tensor(image, "(C, H, W)", (3,))
    if image.is_floating_point():
        return _to_integers(image, torch.uint8)
    return image if image.dtype == torch.uint8 else image.float().div_(257).round_().byte()
