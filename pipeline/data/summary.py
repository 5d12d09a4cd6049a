"""Show what a patch set holds: a text summary, the rejected images and a sheet of tiles."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
from PIL import Image

from pipeline import storage
from pipeline.data.patchset import PatchSet

NAMED = 20
"""Rejected images that a summary names."""

_COLUMNS = 4
_GAP = 8


def describe(patch_set: PatchSet) -> str:
    """Return the counts, sizes and settings of a patch set as lines of text."""
    records = patch_set.images
    tiles, flat = sum(patch_set.row_groups), sum(record.flat for record in records)
    rejections = Counter(record.rejected.kind for record in records if record.rejected)
    sizes = [shard.bytes / 1e6 for shard in patch_set.all_shards]
    groups = patch_set.row_groups
    applied = patch_set.manifest.settings.degradation.model_dump().items()
    degradation = ", ".join(f"{key} {value}" for key, value in applied if value)
    lines = {
        "patch set": patch_set.url,
        "scale": f"x{patch_set.scale}, LR made by {degradation}",
        "images": f"{len(records)}: {sum(bool(r.tiles) for r in records)} to train on, "
        f"{len(patch_set.holdout_names)} held out, {sum(rejections.values())} rejected",
        **{f"  rejected, {kind}": f"{count}" for kind, count in rejections.most_common()},
        "tiles": f"{tiles} of {patch_set.tile}x{patch_set.tile}, in row groups of {max(groups, default=0)}; "
        f"{flat} ({flat / max(tiles + flat, 1):.1%}) dropped as flat",
        "files": f"{len(sizes)} shards, {sum(sizes):.1f} MB, {min(sizes):.1f} to {max(sizes):.1f} MB each",
    }
    width = max(map(len, lines))
    return "\n".join(f"{key:{width}}  {value}" for key, value in lines.items())


def list_rejected(patch_set: PatchSet, most: int | None) -> list[str]:
    """Return a line for each rejected image with its name and the reason.

    Args:
        patch_set: the patch set.
        most: images to name; one more line says how many others there are. None names all.
    """
    lines = [storage.printable(f"rejected {r.name}: {r.rejected}") for r in patch_set.images if r.rejected]
    if most is None or len(lines) <= most:
        return lines
    return [*lines[:most], f"and {len(lines) - most} more rejected images: patchset show --all names them"]


def contact_sheet(patch_set: PatchSet, pairs: int, seed: int) -> Image.Image:
    """Draw random tiles: each HR tile beside its LR tile, enlarged to the same size without interpolation.

    Args:
        patch_set: the tiles' patch set.
        pairs: the most tiles to draw.
        seed: chooses the tiles.
    """
    count = sum(patch_set.row_groups)
    chosen = random.Random(seed).sample(range(count), min(pairs, count))  # noqa: S311
    first = np.cumsum([0, *patch_set.row_groups])
    side, columns = patch_set.tile, min(_COLUMNS, max(len(chosen), 1))
    rows = -(-len(chosen) // columns)
    size = columns * (2 * side + _GAP) + _GAP, rows * (side + _GAP) + _GAP
    sheet = Image.new("RGB", size, "white")
    for position, tile in enumerate(sorted(chosen)):
        group = int(np.searchsorted(first, tile, side="right")) - 1
        hr, lr = (tiles[tile - first[group]] for tiles in patch_set.read_group(group))
        x, y = _GAP + position % columns * (2 * side + _GAP), _GAP + position // columns * (side + _GAP)
        sheet.paste(Image.fromarray(hr), (x, y))
        sheet.paste(Image.fromarray(lr).resize((side, side), Image.Resampling.NEAREST), (x + side, y))
    return sheet
