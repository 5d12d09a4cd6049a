"""Choose where training reads its tiles: from the device, from copies of shards on the node, or from the patch set."""

from __future__ import annotations

import math
import time
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

_PATIENCE_S = 20
"""Seconds without progress after which copies are no longer waited for, because there is no room for the others."""

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
    sharing: int = 1,
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
        sharing: processes of this node that open the patch set. If several of them hold tiles of a patch set in an
            object store, they first copy as many shards as fit to this node, each of which then leaves the store once.

    Raises:
        UserError: if the device has too little memory or the folder cannot be used.
        DamagedShardError: if a shard is missing or damaged.
    """
    if how == "stream":
        return patch_set
    local = storage.is_local(storage.locate(patch_set.url)[0])
    if how == "device" or (how == "auto" and device.type != "cpu"):
        size_mb = held_bytes(patch_set) / 1e6
        with suppress(torch.OutOfMemoryError):  # another process may take memory meanwhile
            if size_mb <= memory_mb * (1 if how == "device" else _DEVICE_SHARE):
                shared = sharing > 1 and not local
                source = _copy_first(patch_set, budget_mb, scratch) if shared else patch_set
                return load_tiles(patch_set, _read_all(source, patch_set.row_groups.count), device)
        if how == "device":
            raise UserError(
                f"data.hold is device, but the tiles take {size_mb:.0f} MB and a worker may use {memory_mb:.0f} MB of "
                f"the memory of {device}: expected another data.hold, such as auto"
            )
    if local:
        return patch_set
    try:
        return CopiedShards(patch_set, _folder(patch_set, scratch), budget_mb if how == "auto" else math.inf)
    except OSError as error:
        if how == "auto":
            return patch_set
        raise UserError(
            f"cannot copy shards to this node: {error}, expected data.scratch to name a folder of your own with room"
        ) from None


def _folder(patch_set: PatchSet, scratch: str | None) -> Path:
    """Return the folder of this node for copied shards."""
    root = Path(scratch) if scratch else storage.private_folder("sr-pipeline")
    return root / patch_set.name


def _copy_first(patch_set: PatchSet, budget_mb: float, scratch: str | None) -> RowGroups:
    """Return the patch set as it is read from this node, when all shards that fit have been copied to it."""
    try:
        folder = _folder(patch_set, scratch)
        copies = CopiedShards(patch_set, folder, budget_mb)
    except OSError:
        return patch_set
    size, changed = -1, time.monotonic()
    while copies.copied() < len(patch_set.shards) and time.monotonic() - changed < _PATIENCE_S:
        time.sleep(0.1)
        if (now := _bytes_in(folder)) != size:
            size, changed = now, time.monotonic()
    return copies


def _bytes_in(folder: Path) -> int:
    """Return the size of the files in a folder, in which other processes make and rename files."""
    size = 0
    for file in folder.iterdir():
        with suppress(FileNotFoundError):
            size += file.stat().st_size
    return size


def _read_all(tiles: RowGroups, count: int) -> Iterator[tuple[Pixels, Pixels]]:
    """Read all `count` row groups in order."""
    with ThreadPoolExecutor(tiles.readers, thread_name_prefix="tiles") as pool:
        for first in range(0, count, _AT_ONCE):
            yield from pool.map(tiles.read_group, range(first, min(first + _AT_ONCE, count)))
