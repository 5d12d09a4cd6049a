"""Choose where training reads its tiles: from the device, from copies of shards on the node, or from the patch set."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Literal

import torch

from pipeline import storage
from pipeline.data.copies import CopiedShards
from pipeline.data.held import HeldTiles, held_bytes, load_tiles
from pipeline.data.patchset import PatchSet
from pipeline.data.windows import RowGroups
from pipeline.settings import UserError
from sr_model.pixels import Pixels

_AT_ONCE = 96
"""Row groups that are in memory while all of them are read in order."""

_DEVICE_SHARE = 0.4
"""Share of a GPU's memory that "auto" uses for tiles; training needs the rest."""

_CPU = torch.device("cpu")

Tiles = RowGroups | HeldTiles
"""Where a reader finds tiles: it reads row groups, or gathers crops from tiles that a device holds."""


def open_tiles(
    patch_set: PatchSet,
    how: Literal["auto", "map", "stream", "device"],
    budget_mb: float,
    scratch: str | None = None,
    device: torch.device = _CPU,
    memory_mb: float = math.inf,
) -> Tiles:
    """Decide where tiles are read from, and copy them to the device if necessary.

    The batches are the same in all cases, so the ranks of a training may decide differently. Local shards are mapped
    into memory in any case.

    Args:
        patch_set: the tiles' patch set.
        how: "device" holds the tiles on the device; "map" copies the shards of a patch set in an object store to this
            node while training reads them; "stream" makes no copies. "auto" holds the tiles on a GPU if they take at
            most 40% of `memory_mb`, and otherwise copies as many shards as fit.
        budget_mb: size in MB of the shards that "auto" copies at most; it also leaves half of the free disk space.
        scratch: folder on this node for copied shards; the default is in the system's temporary folder.
        device: the device that trains. If it is a CPU, "device" is the process's own memory.
        memory_mb: MB of the device's memory that this process may use.

    Raises:
        UserError: if the device has too little memory or the folder cannot be used.
        DamagedShardError: if a shard is missing or damaged.
    """
    if how == "stream":
        return patch_set
    if how == "device" or (how == "auto" and device.type != "cpu"):
        size_mb = held_bytes(patch_set) / 1e6
        with suppress(torch.OutOfMemoryError):  # another process may take memory meanwhile
            if size_mb <= memory_mb * (1 if how == "device" else _DEVICE_SHARE):
                return load_tiles(patch_set, _read_all(patch_set), device)
        if how == "device":
            raise UserError(
                f"data.hold is device, but the tiles take {size_mb:.0f} MB and a worker may use {memory_mb:.0f} MB of "
                f"the memory of {device}: expected another data.hold, such as auto"
            )
    if storage.is_local(storage.locate(patch_set.url)[0]):
        return patch_set
    try:
        root = Path(scratch) if scratch else storage.private_folder("sr-pipeline")
        return CopiedShards(patch_set, root / patch_set.name, budget_mb if how == "auto" else math.inf)
    except OSError as error:
        if how == "auto":
            return patch_set
        raise UserError(
            f"cannot copy shards to this node: {error}, expected data.scratch to name a folder of your own with room"
        ) from None


def _read_all(patch_set: PatchSet) -> Iterator[tuple[Pixels, Pixels]]:
    """Read all tiles in order."""
    count = patch_set.row_groups.count
    with ThreadPoolExecutor(patch_set.readers, thread_name_prefix="tiles") as pool:
        for first in range(0, count, _AT_ONCE):
            yield from pool.map(patch_set.read_group, range(first, min(first + _AT_ONCE, count)))
