"""Choose where training holds its tiles: on the device, in an unpacked copy on the node, or in the patch set itself."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import filelock
import torch

from pipeline import storage
from pipeline.data.held import HeldTiles, held_bytes, load_tiles, map_tiles
from pipeline.data.parquet import DamagedShardError
from pipeline.data.patchset import PatchSet
from pipeline.settings import UserError
from sr_model.pixels import Pixels

READERS = 4
"""Threads that read row groups; several requests at once hide the latency of an object store."""

_AT_ONCE = 32
"""Row groups that are in memory while all of them are read in order."""

_DEVICE_SHARE = 0.4
"""Share of a GPU's memory that "auto" uses for tiles; training needs the rest."""

_PART = 512
"""Tiles of an unpacked copy that are copied to the device at once."""

_CPU = torch.device("cpu")
_FILES = ("hr", "lr")
_FINISHED = "finished.json"


class RowGroups(Protocol):
    """A place to read row groups from, such as a `PatchSet`."""

    def read_group(self, number: int) -> tuple[Pixels, Pixels]:
        """Read a row group: HR (n, tile, tile, 3) and LR (n, tile/scale, tile/scale, 3), uint8."""
        ...


Tiles = RowGroups | HeldTiles
"""Where a reader finds tiles: it streams row groups, or cuts crops from tiles that are held."""


def open_tiles(
    patch_set: PatchSet,
    how: Literal["auto", "map", "stream", "device"],
    budget_mb: float,
    scratch: str | None = None,
    device: torch.device = _CPU,
    memory_mb: float = math.inf,
) -> Tiles:
    """Decide where tiles are held, and put them there if necessary.

    The batches are the same in all cases, so the ranks of a training may decide differently. All processes of a node
    share one unpacked copy. A copy that is unfinished, was changed since, or is one of other shards is made again.

    Args:
        patch_set: the tiles' patch set.
        how: "device" holds them on the device, "map" in an unpacked copy that is mapped into memory, and "stream"
            reads row groups from the patch set. "auto" holds them on a GPU if they take at most 40% of `memory_mb`,
            else in a copy if it fits, and streams otherwise.
        budget_mb: size in MB up to which "auto" makes a copy; it also leaves half of the free disk space.
        scratch: folder on this node for unpacked patch sets; the default is in the system's temporary folder.
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
                return load_tiles(patch_set, _read_all(patch_set, scratch), device)
        if how == "device":
            raise UserError(
                f"data.hold is device, but the tiles take {size_mb:.0f} MB and a worker may use {memory_mb:.0f} MB of "
                f"the memory of {device}: expected another data.hold, such as auto"
            )
    return _open_copy(patch_set, how == "auto", budget_mb, scratch)


def _open_copy(patch_set: PatchSet, auto: bool, budget_mb: float, scratch: str | None) -> Tiles:
    """Open the node's unpacked copy after making it if necessary; if `auto`, stream if that is impossible."""
    root = Path(scratch) if scratch else _default_scratch()
    try:
        root.mkdir(parents=True, exist_ok=True)
        folder = root / patch_set.name
        with filelock.FileLock(f"{folder}.lock"):
            if not _is_finished(patch_set, folder):
                if auto and held_bytes(patch_set) > min(budget_mb * 1e6, shutil.disk_usage(root).free / 2):
                    return patch_set
                _unpack(patch_set, folder)
        return map_tiles(patch_set, folder)
    except DamagedShardError:
        raise
    except (OSError, NotImplementedError) as error:  # the latter is filelock's, where there are no locks
        if auto:
            return patch_set
        raise UserError(
            f"cannot unpack the patch set into {root}: {error}, expected data.scratch to name a folder with room"
        ) from None


def _read_all(patch_set: PatchSet, scratch: str | None) -> Iterator[tuple[Pixels, Pixels]]:
    """Read all tiles in order, from the node's unpacked copy if there is one."""
    copy = None
    with suppress(OSError, UserError, ValueError):  # such as a copy that another process just removes
        folder = (Path(scratch) if scratch else _default_scratch()) / patch_set.name
        if _is_finished(patch_set, folder):
            copy = map_tiles(patch_set, folder)
    if copy is None:
        yield from _read_row_groups(patch_set)
    else:
        for hr, lr in zip(copy.hr.split(_PART), copy.lr.split(_PART), strict=True):
            yield hr.numpy(), lr.numpy()


def _read_row_groups(patch_set: PatchSet) -> Iterator[tuple[Pixels, Pixels]]:
    count = len(patch_set.row_groups)
    with ThreadPoolExecutor(READERS, thread_name_prefix="tiles") as pool:
        for first in range(0, count, _AT_ONCE):
            yield from pool.map(patch_set.read_group, range(first, min(first + _AT_ONCE, count)))


@dataclass(frozen=True)
class _Copy:
    """The content of finished.json, which is written last and makes an unpacked copy count."""

    shards: str
    """Fingerprint of the shards' checksums."""
    files: dict[str, tuple[int, int]]
    """Size in bytes and time of the last change in nanoseconds, by name."""


def _default_scratch() -> Path:
    try:
        return storage.private_folder("sr-pipeline")
    except OSError as error:
        raise UserError(f"{error}; data.scratch can also name a folder of your own") from None


def _describe(patch_set: PatchSet, folder: Path) -> _Copy:
    stats = {name: (folder / name).stat() for name in _FILES}
    shards = storage.fingerprint([shard.sha256 for shard in patch_set.shards])
    return _Copy(shards, {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()})


def _is_finished(patch_set: PatchSet, folder: Path) -> bool:
    known = storage.read_expendable(str(folder / _FINISHED), _Copy)
    try:
        return known is not None and known == _describe(patch_set, folder)
    except FileNotFoundError:
        return False


def _unpack(patch_set: PatchSet, folder: Path) -> None:
    """Write the copy. What is read from the shards is compared with their checksums there."""
    shutil.rmtree(folder, ignore_errors=True)  # a killed worker or an earlier version may have left it
    folder.mkdir(mode=0o700)
    try:
        with (folder / "hr").open("wb") as hr_file, (folder / "lr").open("wb") as lr_file:
            for hr, lr in _read_row_groups(patch_set):
                hr_file.write(hr.data.cast("B"))
                lr_file.write(lr.data.cast("B"))
        for name in _FILES:
            storage.flush(str(folder / name))
        storage.write_document(str(folder / _FINISHED), _describe(patch_set, folder))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
