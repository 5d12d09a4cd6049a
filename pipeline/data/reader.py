"""Training samples from a patch set: one micro-batch after the other, cut in a thread, tiles read ahead by others.

Tiles come from wherever the patch set lies, a window of each lane at a time; or, where the set fits a budget, from an
unpacked copy that all workers of a node map into memory. Both give the same batches.
"""

from __future__ import annotations

import os
import queue
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import filelock
import numpy as np
import numpy.typing as npt
import torch

from pipeline.data.patchset import PatchSet
from pipeline.data.sampler import Ints, SampleOrder, Window, augmentations, micro_batches
from pipeline.settings import UserError
from sr_model.pixels import Pixels

_READERS = 4
"""Threads that fetch row groups: the latency of an object store is hidden by asking for several at once."""


class Batch(NamedTuple):
    """A rank's samples of one micro-batch."""

    lr: Pixels
    """(n, crop/scale, crop/scale, 3)"""
    hr: Pixels
    """(n, crop, crop, 3)"""
    orientation: npt.NDArray[np.uint8]
    """(n,); how both are to be turned, which is quicker on the whole batch and on the device: `sampler.Augmentations`.
    """


class Tiles(Protocol):
    """Where row groups are read from: a `PatchSet`, or a copy of it in memory."""

    def read_group(self, number: int) -> tuple[Pixels, Pixels]:
        """Tiles of a row group, (n, tile, tile, 3) and (n, tile/scale, tile/scale, 3)."""
        ...


class BatchReader:
    """Reads a rank's micro-batches of one step after the other, ahead of time.

    Memory: for each lane of the rank the row groups of two windows (none where tiles are mapped), and `ahead`
    micro-batches.

    Args:
        patch_set: what to read.
        order: which samples make a step.
        batch: global batch size.
        micro_batch: the most samples to give at once.
        crop: HR pixels, side of a training patch.
        augment: whether to mirror and turn.
        rank: this worker.
        world: number of workers.
        tiles: where to read row groups from; the patch set itself where not given.
        pin: whether batches lie in page-locked memory, from which a GPU copies by itself.
        ahead: micro-batches to have ready.
    """

    def __init__(
        self,
        patch_set: PatchSet,
        order: SampleOrder,
        *,
        batch: int,
        micro_batch: int,
        crop: int,
        augment: bool,
        rank: int = 0,
        world: int = 1,
        tiles: Tiles | None = None,
        pin: bool = False,
        ahead: int = 4,
    ) -> None:
        self._set, self._order, self._tiles = patch_set, order, tiles or patch_set
        self._batch, self._micro, self._crop, self._augment = batch, micro_batch, crop, augment
        self._rank, self._world, self._pin, self._ahead = rank, world, pin, ahead
        self._first_tile = np.cumsum([0, *patch_set.row_groups])
        self._held: dict[int, tuple[Window, dict[Window, _HeldWindow]]] = {}  # lane -> its window, that and the next

    def sizes(self, step: int) -> list[int]:
        """Samples of each of the rank's micro-batches in a step; as many micro-batches on all ranks, 0 for none."""
        return micro_batches(self._order.shares(step, self._batch, self._world), self._micro, self._rank)

    def read(self, start: int, stop: int) -> Iterator[Batch]:
        """The micro-batches of steps [start, stop), `len(sizes(step))` of each."""
        ready: queue.Queue[Batch | Exception | None] = queue.Queue(self._ahead)
        closed = threading.Event()

        def put(item: Batch | Exception | None) -> None:
            while not closed.is_set():
                try:
                    ready.put(item, timeout=0.2)
                    return
                except queue.Full:
                    continue

        def produce() -> None:
            try:
                with ThreadPoolExecutor(_READERS, thread_name_prefix="tiles") as pool:
                    for step in range(start, stop):
                        for batch in self._step(step, pool):
                            put(batch)
                            if closed.is_set():
                                return
                put(None)
            except Exception as error:  # handed to the consumer, whose thread raises it
                put(error)
            finally:
                self._held = {}

        thread = threading.Thread(target=produce, name="batch-reader", daemon=True)
        thread.start()
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            closed.set()
            thread.join()

    def _step(self, step: int, pool: ThreadPoolExecutor) -> Iterator[Batch]:
        share = self._order.share(step, self._batch, self._rank, self._world)
        sizes = self.sizes(step)
        for positions in np.split(share, np.cumsum(sizes)[:-1]):
            yield self._cut(positions, pool)

    def _cut(self, positions: Ints, pool: ThreadPoolExecutor) -> Batch:
        count, scale, side = len(positions), self._set.scale, self._crop // self._set.scale
        hr, lr, orientation = (
            torch.empty(shape, dtype=torch.uint8, pin_memory=self._pin).numpy()
            for shape in ((count, self._crop, self._crop, 3), (count, side, side, 3), (count,))
        )
        for i, position in enumerate(positions.tolist()):
            window, index = self._order.place(position)
            held = self._window(window, pool)
            tile_hr, tile_lr = held.tiles(index)
            y, x = held.y[index], held.x[index]
            lr[i] = tile_lr[y : y + side, x : x + side]
            y, x = y * scale, x * scale
            hr[i] = tile_hr[y : y + self._crop, x : x + self._crop]
            orientation[i] = held.orientation[index]
        return Batch(lr, hr, orientation)

    def _window(self, window: Window, pool: ThreadPoolExecutor) -> _HeldWindow:
        """A window whose row groups are at hand or being read; those of the lane's next one begin to be read."""
        current, lane = self._held.get(window.lane, (None, {}))
        if current != window:
            known = {number: tiles for held in lane.values() for number, tiles in held.groups.items()}

            def group(number: int) -> _Group:
                if number not in known:
                    known[number] = pool.submit(self._tiles.read_group, number)
                return known[number]

            lane = {w: lane.get(w) or self._hold(w, group) for w in (window, self._order.next_window(window))}
            self._held[window.lane] = window, lane
        return lane[window]

    def _hold(self, window: Window, read: Callable[[int], _Group]) -> _HeldWindow:
        samples = self._order.samples(window)
        room = (self._set.tile - self._crop) // self._set.scale
        how = augmentations(samples, self._order.seed, room, self._augment)
        group = np.searchsorted(self._first_tile, samples.tile, side="right") - 1
        return _HeldWindow(
            {number: read(number) for number in self._order.window_groups(window)},
            group.tolist(),
            (samples.tile - self._first_tile[group]).tolist(),
            how.y.tolist(),
            how.x.tolist(),
            how.orientation.tolist(),
        )


_Group = Future[tuple[Pixels, Pixels]] | tuple[Pixels, Pixels]


@dataclass
class _HeldWindow:
    """A window's row groups, and for each of its samples, in order, where it lies and how it is cut and turned."""

    groups: dict[int, _Group]
    group: list[int]
    row: list[int]
    y: list[int]
    x: list[int]
    orientation: list[int]

    def tiles(self, index: int) -> tuple[Pixels, Pixels]:
        """HR and LR tile of a sample, waiting for its row group if need be."""
        number, row = self.group[index], self.row[index]
        tiles = self.groups[number]
        if isinstance(tiles, Future):
            tiles = self.groups[number] = tiles.result()
        return tiles[0][row], tiles[1][row]


class MappedTiles:
    """All tiles of a patch set in two raw files, mapped into memory: `hr` (tiles, tile, tile, 3) uint8, and `lr`."""

    def __init__(self, patch_set: PatchSet, folder: Path) -> None:
        rows, side, small = sum(patch_set.row_groups), patch_set.tile, patch_set.tile // patch_set.scale
        hr = np.memmap(folder / "hr", np.uint8, "r", shape=(rows, side, side, 3))
        lr = np.memmap(folder / "lr", np.uint8, "r", shape=(rows, small, small, 3))
        self._hr, self._lr = np.asarray(hr), np.asarray(lr)  # plain arrays, which are quicker to index
        self._ends = np.cumsum(patch_set.row_groups).tolist()

    def read_group(self, number: int) -> tuple[Pixels, Pixels]:
        """Tiles of a row group, as views."""
        rows = slice(self._ends[number - 1] if number else 0, self._ends[number])
        return self._hr[rows], self._lr[rows]


def hold(patch_set: PatchSet, how: str, budget_mb: float, scratch: str | None = None) -> Tiles:
    """Decide where tiles are read from, and unpack them on this node if they are to be mapped and nobody did.

    Args:
        patch_set: whose tiles.
        how: "stream" reads row groups where they lie; "map" unpacks; "auto" unpacks what fits the budget.
        budget_mb: MB that "auto" may unpack, at most half of the free disk.
        scratch: folder on this node for unpacked sets; one in the system's temporary folder where not given.

    Raises:
        UserError: if the folder cannot be used.
    """
    if how == "stream":
        return patch_set
    root = Path(scratch or f"{tempfile.gettempdir()}/sr-pipeline-{os.getuid()}")
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not scratch and root.stat().st_uid != os.getuid():  # in a folder that everyone may write to
            raise UserError(f"{root} belongs to another user, expected data.scratch to name a folder of your own")
        folder = root / patch_set.name
        with filelock.FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                bytes_ = sum(patch_set.row_groups) * patch_set.tile**2 * 3 * (1 + patch_set.scale**-2)
                if how == "auto" and bytes_ > min(budget_mb * 1e6, shutil.disk_usage(root).free / 2):
                    return patch_set
                _unpack(patch_set, folder)
        return MappedTiles(patch_set, folder)
    except OSError as error:
        if how == "auto":
            return patch_set
        raise UserError(
            f"cannot unpack the patch set into {root}: {error}, expected data.scratch to name a folder with room"
        ) from None


def _unpack(patch_set: PatchSet, folder: Path) -> None:
    part = Path(f"{folder}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a worker that was killed
    part.mkdir()
    try:
        with (part / "hr").open("wb") as hr_file, (part / "lr").open("wb") as lr_file:
            for number in range(len(patch_set.row_groups)):
                hr, lr = patch_set.read_group(number)
                hr_file.write(hr.data.cast("B"))
                lr_file.write(lr.data.cast("B"))
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    part.rename(folder)
