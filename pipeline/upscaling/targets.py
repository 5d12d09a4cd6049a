"""The files that an upscaled image can be written to."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.settings import UserError

OPAQUE, TRANSPARENT = (".jpg", ".jpeg", ".bmp"), (".png", ".webp", ".tif", ".tiff")
"""Endings of files that hold no transparency, and of files that do."""


def check_target(image: Path, out: Path) -> None:
    """Check that an upscaled image can be written.

    Args:
        image: the file that is upscaled.
        out: the file to write.

    Raises:
        UserError: if the name has no ending of an image, or the file cannot be written there.
    """
    suffixes = TRANSPARENT + OPAQUE
    if out.suffix.lower() not in suffixes:
        raise UserError(f"{out} is not the name of an image, expected one that ends in {', '.join(suffixes)}")
    if out.exists() and out.samefile(image):
        raise UserError(f"{out} is the input image, expected another name for the upscaled image")
    folder = out.absolute().parent
    if not folder.is_dir() or out.is_dir():
        reason = f"{out} is a folder" if out.is_dir() else f"{folder} is not a folder"
        raise UserError(f"{out} cannot be written: {reason}")
    if not os.access(folder, os.W_OK):
        raise UserError(f"{out} cannot be written: there is no permission to write to {folder}")
