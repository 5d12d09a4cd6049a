"""Choose where training reads its tiles from: the patch set itself, or an unpacked copy that is mapped into memory."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import filelock
import numpy as np

from pipeline import storage
from pipeline.data.parquet import DamagedShardError
from pipeline.data.patchset import PatchSet
from pipeline.settings import UserError
from sr_model.pixels import Pixels

_FILES = ("hr", "lr")
_FINISHED = "finished.json"


class Tiles(Protocol):
    """A place to read row groups from: a `PatchSet` or `MappedTiles`."""

    def read_group(self, number: int) -> tuple[Pixels, Pixels]:
        """Read a row group: HR (n, tile, tile, 3) and LR (n, tile/scale, tile/scale, 3), uint8."""
        ...


class MappedTiles:
    """The tiles of a patch set in two raw files that are mapped into memory.

    Args:
        patch_set: the patch set that was unpacked.
        folder: holds `hr`, (tiles, tile, tile, 3) uint8, and `lr`, (tiles, tile/scale, tile/scale, 3) uint8.
    """

    def __init__(self, patch_set: PatchSet, folder: Path) -> None:
        rows, side, small = sum(patch_set.row_groups), patch_set.tile, patch_set.tile // patch_set.scale
        hr = np.memmap(folder / "hr", np.uint8, "r", shape=(rows, side, side, 3))
        lr = np.memmap(folder / "lr", np.uint8, "r", shape=(rows, small, small, 3))
        self._hr, self._lr = np.asarray(hr), np.asarray(lr)  # plain arrays are faster to index
        self._ends = np.cumsum(patch_set.row_groups).tolist()

    def read_group(self, number: int) -> tuple[Pixels, Pixels]:
        """Return the tiles of a row group as views."""
        rows = slice(self._ends[number - 1] if number else 0, self._ends[number])
        return self._hr[rows], self._lr[rows]


def open_tiles(
    patch_set: PatchSet, how: Literal["auto", "map", "stream"], budget_mb: float, scratch: str | None = None
) -> Tiles:
    """Decide where tiles are read from, and unpack them on this node if necessary.

    All processes of a node share one unpacked copy. A copy that is unfinished, was changed since, or is one of other
    shards is made again.

    Args:
        patch_set: the tiles' patch set.
        how: "stream" reads row groups from the patch set, "map" unpacks them, and "auto" unpacks them if they fit.
        budget_mb: size in MB up to which "auto" unpacks; it also leaves half of the free disk space.
        scratch: folder on this node for unpacked patch sets; the default is in the system's temporary folder.

    Raises:
        UserError: if the folder cannot be used.
        DamagedShardError: if a shard is missing or damaged.
    """
    if how == "stream":
        return patch_set
    root = Path(scratch) if scratch else _default_scratch()
    try:
        root.mkdir(parents=True, exist_ok=True)
        folder = root / patch_set.name
        with filelock.FileLock(f"{folder}.lock"):
            if not _is_finished(patch_set, folder):
                size = sum(patch_set.row_groups) * patch_set.tile**2 * 3 * (1 + patch_set.scale**-2)
                if how == "auto" and size > min(budget_mb * 1e6, shutil.disk_usage(root).free / 2):
                    return patch_set
                _unpack(patch_set, folder)
        return MappedTiles(patch_set, folder)
    except DamagedShardError:
        raise
    except (OSError, NotImplementedError) as error:  # the latter is filelock's, where there are no locks
        if how == "auto":
            return patch_set
        raise UserError(
            f"cannot unpack the patch set into {root}: {error}, expected data.scratch to name a folder with room"
        ) from None


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
            for number in range(len(patch_set.row_groups)):
                hr, lr = patch_set.read_group(number)
                hr_file.write(hr.data.cast("B"))
                lr_file.write(lr.data.cast("B"))
        for name in _FILES:
            storage.flush(str(folder / name))
        storage.write_document(str(folder / _FINISHED), _describe(patch_set, folder))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
