"""Copies of a patch set's shards on this node, made while training reads the patch set from an object store."""

from __future__ import annotations

import shutil
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import filelock
import numpy as np

from pipeline import storage
from pipeline.data.parquet import DamagedShardError
from pipeline.data.patchset import PatchSet
from pipeline.data.record_tables import ShardFile, Shards
from sr_model.pixels import Pixels

_COPIERS = 4
"""Shards that a process copies at the same time."""
_RESERVED_SHARE, _RESERVED_BYTES = 0.1, 1e9
"""Share of a disk, and bytes, of which the larger one stays free: checkpoints and other programs need room, too."""


class CopiedShards:
    """A patch set in an object store whose shards are copied to a folder of this node, one whole shard after another.

    A row group is read from the copy of its shard as soon as that is complete, and from the store before. So reading
    never waits for copies, and shards for which there is no room stay in the store. All processes of a node share the
    copies, and each shard is copied by one of them. Copying ends with this object.

    Args:
        patch_set: the patch set in the store.
        folder: where the copies go; it is made if necessary.
        budget_mb: MB of shards to copy at most. With a limit, half of the free disk space is left, too; without one, at
            least a tenth of the disk and 1 GB.

    Raises:
        OSError: if the folder cannot be made.
    """

    def __init__(self, patch_set: PatchSet, folder: Path, budget_mb: float) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        storage.sweep(str(folder))
        self._set, self._folder = patch_set, folder
        self._copies = patch_set.at(str(folder))
        shards = _that_fit(patch_set.shards, folder, budget_mb)
        stop = threading.Event()
        weakref.finalize(self, stop.set)
        for _ in range(_COPIERS):
            copy = threading.Thread(target=_copy_shards, args=(patch_set.url, shards, folder, stop), daemon=True)
            copy.start()

    @property
    def readers(self) -> int:
        """See `PatchSet.readers`."""
        return self._set.readers

    def read_group(self, number: int) -> tuple[Pixels, Pixels]:
        """Read a row group as `PatchSet.read_group` does, from a copy if there is one."""
        shard = self._set.shard_of(number)
        if _is_copied(shard, self._folder):
            try:
                return self._copies.read_group(number)
            except DamagedShardError:
                (self._folder / shard.file).unlink(missing_ok=True)
        return self._set.read_group(number)

    def at_hand(self, number: int) -> tuple[Pixels, Pixels] | None:
        """See `PatchSet.at_hand`; a copy that was removed meanwhile stays mapped."""
        return self._copies.at_hand(number)

    def prefetch(self, numbers: Sequence[int]) -> None:
        """See `PatchSet.prefetch`."""
        self._copies.prefetch(numbers)

    def copied(self) -> int:
        """Return the number of shards that have a complete copy."""
        return sum(_is_copied(shard, self._folder) for shard in self._set.shards)


def _is_copied(shard: ShardFile, folder: Path) -> bool:
    try:
        return (folder / shard.file).stat().st_size == shard.bytes
    except OSError:
        return False


def _that_fit(shards: Shards, folder: Path, budget_mb: float) -> Iterator[ShardFile]:
    """Return the first shards, of which as many are taken as fit."""
    copied = sum(shard.bytes for shard in shards if _is_copied(shard, folder))
    disk = shutil.disk_usage(folder)
    if budget_mb == float("inf"):
        room = copied + disk.free - max(_RESERVED_SHARE * disk.total, _RESERVED_BYTES)
    else:
        room = min(1e6 * budget_mb, copied + disk.free / 2)
    return iter(shards[: int(np.searchsorted(np.cumsum(shards.bytes), room, side="right"))])


def _copy_shards(url: str, shards: Iterator[ShardFile], folder: Path, stop: threading.Event) -> None:
    for shard in shards:
        if stop.is_set():
            return
        try:
            with filelock.FileLock(folder / f"{shard.file}.lock", blocking=False):
                if not _is_copied(shard, folder):
                    _copy_shard(f"{url}/{shard.file}", shard, folder)
        except filelock.Timeout:  # another process copies this one
            continue
        except (OSError, NotImplementedError) as error:  # the latter is filelock's, where there are no locks
            storage.report_once(
                f"cannot copy shards to {folder} ({storage.one_line(error, 200)}): the others are read from {url}"
            )
            return


def _copy_shard(url: str, shard: ShardFile, folder: Path) -> None:
    fs, path = storage.locate(url)
    with storage.create(str(folder / shard.file), sync=False) as part:  # a damaged copy is noticed by its checksums
        storage.with_retries(url, lambda: fs.get_file(path, str(part)))
        if part.stat().st_size != shard.bytes:
            raise DamagedShardError(url, "is missing or incomplete")
