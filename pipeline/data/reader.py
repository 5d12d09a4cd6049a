"""Read training samples from a patch set, one micro-batch after another.

One thread cuts the samples and several others read tiles ahead. The tiles come from the patch set, where a window of
each lane is read at a time, or from an unpacked copy in memory (see `pipeline.data.tiles`). Both give the same batches.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from pipeline.data.patchset import PatchSet
from pipeline.data.sampler import Ints, SampleOrder, Window, augmentations, micro_batches
from pipeline.data.tiles import Tiles
from sr_model.pixels import Pixels

_READERS = 4
"""Threads that read row groups; several requests at once hide the latency of an object store."""


class Batch(NamedTuple):
    """A rank's samples of one micro-batch."""

    lr: Pixels
    """(n, crop/scale, crop/scale, 3) uint8."""
    hr: Pixels
    """(n, crop, crop, 3) uint8."""
    orientation: npt.NDArray[np.uint8]
    """(n,); how to flip and turn both, as in `sampler.Augmentations`. It is faster to do so for the whole batch on the
    device."""


class BatchReader:
    """Reads a rank's micro-batches ahead of time, one step after another.

    Memory holds `ahead` micro-batches and, unless tiles are mapped, the row groups of two windows for each of the
    rank's lanes.

    Args:
        patch_set: the patch set to read.
        order: determines the samples of each step.
        batch: global batch size.
        micro_batch: the most samples in a micro-batch.
        crop: side of a training patch in HR pixels.
        augment: flip and turn the patches.
        rank: this worker's rank.
        world: number of workers.
        tiles: where to read row groups from; the default is the patch set itself.
        pin: put batches in page-locked memory, from which a GPU copies asynchronously.
        ahead: number of micro-batches to have ready.
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
        self._lanes: dict[int, _Lane] = {}

    def sizes(self, step: int) -> list[int]:
        """Return the sizes of the rank's micro-batches in a step.

        All ranks have the same number of micro-batches; one without samples has the size 0.
        """
        return micro_batches(self._order.shares(step, self._batch, self._world), self._micro, self._rank)

    def read(self, start: int, stop: int) -> Iterator[Batch]:
        """Yield the micro-batches of the steps [start, stop), `len(sizes(step))` for each step.

        Raises:
            OSError: if a row group cannot be read.
        """
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
                        for batch in self._read_step(step, pool):
                            put(batch)
                            if closed.is_set():
                                return
                put(None)
            except Exception as error:  # raised again in the consumer's thread
                put(error)
            finally:
                self._lanes = {}

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

    @property
    def loaded_groups(self) -> int:
        """Number of row groups in memory or being read."""
        windows = [window for lane in self._lanes.values() for window in lane.windows.values()]
        return sum(len(window.groups) for window in windows)

    def _read_step(self, step: int, pool: ThreadPoolExecutor) -> Iterator[Batch]:
        share = self._order.share(step, self._batch, self._rank, self._world)
        sizes = self.sizes(step)
        for positions in np.split(share, np.cumsum(sizes)[:-1]):
            yield self._cut_batch(positions, pool)

    def _cut_batch(self, positions: Ints, pool: ThreadPoolExecutor) -> Batch:
        count, scale, side = len(positions), self._set.scale, self._crop // self._set.scale
        hr, lr, orientation = (
            torch.empty(shape, dtype=torch.uint8, pin_memory=self._pin).numpy()
            for shape in ((count, self._crop, self._crop, 3), (count, side, side, 3), (count,))
        )
        for i, position in enumerate(positions.tolist()):
            window, index = self._order.locate(position)
            loaded = self._loaded_window(window, pool)
            tile_hr, tile_lr = loaded.tiles(index)
            y, x = loaded.y[index], loaded.x[index]
            lr[i] = tile_lr[y : y + side, x : x + side]
            y, x = y * scale, x * scale
            hr[i] = tile_hr[y : y + self._crop, x : x + self._crop]
            orientation[i] = loaded.orientation[index]
        return Batch(lr, hr, orientation)

    def _loaded_window(self, window: Window, pool: ThreadPoolExecutor) -> _LoadedWindow:
        """Return a window whose row groups are in memory or being read, and start reading the lane's next window."""
        lane = self._lanes.get(window.lane)
        if lane is None or lane.current != window:
            before = lane.windows if lane else {}
            known = {number: tiles for loaded in before.values() for number, tiles in loaded.groups.items()}

            def read_group(number: int) -> _Group:
                if number not in known:
                    known[number] = pool.submit(self._tiles.read_group, number)
                return known[number]

            needed = (window, self._order.next_window(window))
            lane = _Lane(window, {w: before.get(w) or self._load_window(w, read_group) for w in needed})
            self._lanes[window.lane] = lane
        return lane.windows[window]

    def _load_window(self, window: Window, read_group: Callable[[int], _Group]) -> _LoadedWindow:
        samples = self._order.samples(window)
        slack = (self._set.tile - self._crop) // self._set.scale
        chosen = augmentations(samples, self._order.seed, slack, self._augment)
        group = np.searchsorted(self._first_tile, samples.tile, side="right") - 1
        return _LoadedWindow(
            {number: read_group(number) for number in self._order.window_groups(window)},
            group.tolist(),
            (samples.tile - self._first_tile[group]).tolist(),
            chosen.y.tolist(),
            chosen.x.tolist(),
            chosen.orientation.tolist(),
        )


_Group = Future[tuple[Pixels, Pixels]] | tuple[Pixels, Pixels]
"""The HR and LR tiles of a row group, perhaps still being read."""


@dataclass
class _LoadedWindow:
    """A window's row groups and, for each of its samples in order, its location, crop and orientation."""

    groups: dict[int, _Group]
    group: list[int]
    """Number of the sample's row group."""
    row: list[int]
    """Row of the sample's tile within its row group."""
    y: list[int]
    """Origin of the crop within the tile, LR pixels."""
    x: list[int]
    orientation: list[int]

    def tiles(self, index: int) -> tuple[Pixels, Pixels]:
        """Return the HR and LR tile of a sample, after waiting for its row group if necessary."""
        number, row = self.group[index], self.row[index]
        tiles = self.groups[number]
        if isinstance(tiles, Future):
            tiles = self.groups[number] = tiles.result()
        return tiles[0][row], tiles[1][row]


@dataclass(frozen=True)
class _Lane:
    """The loaded windows of a lane."""

    current: Window
    windows: dict[Window, _LoadedWindow]
    """The current window and the next one."""
