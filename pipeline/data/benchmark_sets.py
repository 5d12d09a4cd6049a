"""List the image pairs of a benchmark set, such as Set5, in the layouts in which such sets are published."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from pipeline.data.listing import SourceImage
from pipeline.data.sources import list_source
from pipeline.settings import UserError


@dataclass(frozen=True)
class BenchmarkImage:
    """A ground-truth image and, if the set includes one, its published LR file."""

    name: str
    hr: str
    """URL of the ground truth, as `sources.read_bytes` takes it."""
    lr: str | None
    """URL of the LR file; None if the LR image is computed from the ground truth."""
    version: str
    """It changes when the content of one of the files changes."""


def list_images(name: str, source: str, scale: int, cache: str) -> list[BenchmarkImage]:
    """List a benchmark set that has one of these layouts.

    - `HR/` or `GTmod12/` beside `LR_bicubic/X4/` or `LRbicx4/`; an LR file has its HR file's name, perhaps with `x4`
      appended.
    - `image_SRF_4/*_HR.png` beside `*_LR.png`, or such files without a folder.
    - HR images alone; their LR images are computed.

    Args:
        name: the set's name, for messages.
        source: a source as in `sources.list_images`.
        scale: upscaling factor, which selects the LR files.
        cache: folder or URL that keeps downloads.

    Raises:
        UserError: if the source does not exist, holds no image, or lacks the LR file of some HR image.
        OSError: if a download fails.
    """
    images = list_source(source, cache)
    if not images:
        raise UserError(f"benchmark {name}: {source} holds no image, expected HR/ and LR*/ or images")
    hr: dict[str, SourceImage] = {}
    lr: dict[str, SourceImage] = {}
    for image in images:
        path = PurePosixPath(image.name)
        parent, stem = str(path.parent), path.stem
        if parent.endswith(("HR", "GTmod12")):
            hr[stem] = image
        elif parent.endswith((f"LRbicx{scale}", f"LR_bicubic/X{scale}")):
            lr[stem.removesuffix(f"x{scale}")] = image
        elif pair := re.fullmatch(rf"(.+)_SRF_{scale}_(HR|LR)", stem):
            (hr if pair[2] == "HR" else lr)[pair[1]] = image
    if not hr:
        return [BenchmarkImage(PurePosixPath(p.name).stem, p.url, None, p.version) for p in images]
    missing = sorted(set(hr) - set(lr))
    if lr and missing:
        raise UserError(f"benchmark {name}: {source} has no LR file for {', '.join(missing)}")
    return [
        BenchmarkImage(stem, p.url, lr[stem].url, f"{p.version} {lr[stem].version}")
        if lr
        else BenchmarkImage(stem, p.url, None, p.version)
        for stem, p in sorted(hr.items())
    ]
