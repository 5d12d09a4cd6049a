"""Upscale image files, and keep what the new file can hold: grey, transparency and orientation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from pipeline import storage
from pipeline.data.images import decode_channels
from pipeline.data.rejection import RejectedImageError
from pipeline.networks import bundled
from pipeline.networks.devices import best_device, cuda_fault
from pipeline.networks.upscaling import upscale_image
from pipeline.networks.weights import load_network
from pipeline.settings import UserError
from pipeline.upscaling.targets import OPAQUE, TRANSPARENT, check_target
from pipeline.upscaling.transparency import cover_hidden_colours
from sr_model.networks.super_resolver import SuperResolver

_LONGEST = {".jpg": 65_500, ".jpeg": 65_500, ".webp": 16_383}
"""Longest side in pixels that a format allows."""
_OPTIONS: dict[str, dict[str, Any]] = {".jpg": {"quality": 95}, ".jpeg": {"quality": 95}, ".webp": {"lossless": True}}


def load(model: str, device: str | None = None) -> SuperResolver:
    """Load a network in eval mode.

    Args:
        model: name of a bundled model, or path or URL of a .safetensors file.
        device: "cpu" or "cuda"; by default the GPU if there is one.

    Raises:
        UserError: if there is no such model or device, or no network has the weights of the file.
    """
    if device == "cuda" and (fault := cuda_fault()):
        raise UserError(f"the device cuda cannot be used ({fault}): expected --device cpu, or no --device")
    net = load_network(model if model.endswith(".safetensors") else bundled.weights(model))
    device = device or best_device().type
    return net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def upscale_file(net: SuperResolver, source: Path, target: Path, max_megapixels: float) -> tuple[int, int]:
    """Upscale an image file into another file; grey and transparency are kept, colours become sRGB.

    Args:
        net: the network, in eval mode.
        source: a PNG, JPEG, WebP, TIFF or BMP file.
        target: the file to write; its extension chooses the format.
        max_megapixels: largest output in megapixels; a larger one is refused before the image is decoded.

    Returns:
        Width and height of the upscaled image in pixels.

    Raises:
        UserError: if the image cannot be read, or the target cannot be written or cannot hold it.
    """
    content = _read(source)
    check_target(source, target)
    try:
        image, alpha = decode_channels(content, int(max_megapixels * 1e6) // net.scale**2)
    except RejectedImageError as error:
        limit = f"{max_megapixels:g} megapixels after upscaling x{net.scale} (--max-megapixels)"
        raise UserError(f"{source} {error}, expected an image of at most {limit}") from None
    suffix = target.suffix.lower()
    if alpha is not None and suffix in OPAQUE:
        if alpha.min() < 255:
            raise UserError(
                f"{source} is transparent, which {suffix} cannot hold: expected an output that ends in "
                f"{', '.join(TRANSPARENT)}"
            )
        alpha = None
    side = max(image.shape[:2]) * net.scale
    if side > _LONGEST.get(suffix, side):
        raise UserError(f"{target} would have a side of {side} pixels, more than {suffix} can hold: expected .png")
    if alpha is not None:
        image = cover_hidden_colours(image, alpha)
    sr = upscale_image(net, image, progress=True)
    upscaled = Image.fromarray(sr[:, :, 0] if sr.shape[2] == 1 else sr)
    if alpha is not None:
        upscaled.putalpha(Image.fromarray(alpha).resize(upscaled.size, Image.Resampling.BICUBIC))
    with storage.create(str(target.absolute())) as part:
        upscaled.save(part, Image.registered_extensions()[suffix], **_OPTIONS.get(suffix, {}))
    return upscaled.size


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None
