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
    totals, tiles = patch_set.manifest.totals, patch_set.tiles
    flat = sum(record.flat for record in patch_set.images())
    rejections = Counter(record.rejected.kind for record in patch_set.rejected() if record.rejected)
    sizes = np.concatenate([patch_set.shards.bytes, patch_set.holdout.bytes]) / 1e6
    applied = patch_set.manifest.settings.degradation.model_dump(mode="json").items()
    shown = {key: " to ".join(map(str, value)) if isinstance(value, list) else value for key, value in applied if value}
    degradation = ", ".join(f"{key} {value}" for key, value in shown.items())
    lines = {
        "patch set": patch_set.url,
        "scale": f"x{patch_set.scale}, LR made by {degradation}",
        "images": f"{totals.images}: {totals.trained} to train on, "
        f"{patch_set.held_out} held out, {sum(rejections.values())} rejected",
        **{f"  rejected, {kind}": f"{count}" for kind, count in rejections.most_common()},
        "tiles": f"{tiles} of {patch_set.tile}x{patch_set.tile}, in row groups of {patch_set.row_groups.largest}; "
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
    lines = [storage.printable(f"rejected {r.name}: {r.rejected}") for r in patch_set.rejected()]
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
    count, table = patch_set.tiles, patch_set.row_groups
    chosen = random.Random(seed).sample(range(count), min(pairs, count))  # noqa: S311
    side, columns = patch_set.tile, min(_COLUMNS, max(len(chosen), 1))
    rows = -(-len(chosen) // columns)
    size = columns * (2 * side + _GAP) + _GAP, rows * (side + _GAP) + _GAP
    sheet = Image.new("RGB", size, "white")
    for position, tile in enumerate(sorted(chosen)):
        group, row = (int(place[0]) for place in table.locate(np.array([tile])))
        hr, lr = (tiles[row] for tiles in patch_set.read_group(group))
        x, y = _GAP + position % columns * (2 * side + _GAP), _GAP + position // columns * (side + _GAP)
        sheet.paste(Image.fromarray(hr), (x, y))
        sheet.paste(Image.fromarray(lr).resize((side, side), Image.Resampling.NEAREST), (x + side, y))
    return sheet
