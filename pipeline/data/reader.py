"""Read training samples from a patch set, one micro-batch after another.

A thread prepares micro-batches ahead of time. Held tiles (see `pipeline.data.tiles`) need only the places of the crops,
which are then gathered with one operation, on a GPU if it holds the tiles. From a streamed patch set, several threads
read a window of each lane at a time, and crops are cut one by one. Both give the same batches.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from pipeline.data.held import HeldTiles
from pipeline.data.patchset import PatchSet
from pipeline.data.sampler import Ints, SampleOrder, Window, augmentations, micro_batches
from pipeline.data.tiles import READERS, RowGroups, Tiles
from sr_model.pixels import Pixels

T = TypeVar("T")

_PLANNED = 1024
"""Samples whose places are computed at once; doing so for each micro-batch would take longer."""


class Batch(NamedTuple):
    """A rank's samples of one micro-batch, in the CPU's memory or on the device that holds the tiles."""

    lr: Tensor
    """(n, crop/scale, crop/scale, 3) uint8."""
    hr: Tensor
    """(n, crop, crop, 3) uint8."""
    orientation: Tensor
    """(n,) int64; how to flip and turn both, as in `sampler.Augmentations`. It is faster to do so for the whole batch
    on the device."""


class BatchReader:
    """Reads a rank's micro-batches ahead of time, one step after another.

    Memory holds `ahead` micro-batches and, if the patch set is streamed, the row groups of two windows for each of the
    rank's lanes. If a GPU holds the tiles, only places of crops are ready ahead of time, and a micro-batch is gathered
    when it is asked for, without waiting for the GPU.

    Args:
        patch_set: the patch set to read.
        order: determines the samples of each step.
        batch: global batch size.
        micro_batch: the most samples in a micro-batch.
        crop: side of a training patch in HR pixels.
        augment: flip and turn the patches.
        rank: this worker's rank.
        world: number of workers.
        tiles: where tiles are; the default is the patch set itself, which is streamed.
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
        self._slack = (patch_set.tile - crop) // patch_set.scale
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
        tiles = self._tiles
        if isinstance(tiles, HeldTiles):
            planned = self._plan(tiles, start, stop)
            if tiles.device.type == "cpu":
                batches = _read_ahead((self._gather(tiles, places) for places in planned), self._ahead)
            else:  # the calling thread gathers, so that the GPU does so between the caller's other work
                batches = (self._gather(tiles, places) for places in _read_ahead(planned, self._ahead))
        else:
            batches = _read_ahead(self._stream(tiles, start, stop), self._ahead)
        with closing(batches):
            yield from batches

    @property
    def loaded_groups(self) -> int:
        """Number of streamed row groups in memory or being read."""
        windows = [window for lane in self._lanes.values() for window in lane.windows.values()]
        return sum(len(window.groups) for window in windows)

    def _shares(self, steps: range) -> list[Ints]:
        """Return the positions of each of the rank's micro-batches."""
        return [
            positions
            for step in steps
            for positions in np.split(
                self._order.share(step, self._batch, self._rank, self._world), np.cumsum(self.sizes(step))[:-1]
            )
        ]

    def _plan(self, tiles: HeldTiles, start: int, stop: int) -> Generator[Tensor]:
        """Yield (3, n) int64 for each micro-batch: the crops' first HR and LR pixels, and their orientations."""
        at_once = -(-_PLANNED * self._world // self._batch)
        for first in range(start, stop, at_once):
            shares = self._shares(range(first, min(first + at_once, stop)))
            samples = self._order.samples_at(np.concatenate(shares))
            chosen = augmentations(samples, self._order.seed, self._slack, self._augment)
            places = np.stack([*tiles.first_pixels(samples.tile, chosen.y, chosen.x), chosen.orientation])
            for part in np.split(places, np.cumsum([len(share) for share in shares])[:-1], axis=1):
                rows = torch.from_numpy(np.ascontiguousarray(part))
                yield rows.pin_memory() if self._pin else rows

    def _gather(self, tiles: HeldTiles, places: Tensor) -> Batch:
        places = places.to(tiles.device, non_blocking=True)
        hr, lr = tiles.gather(places[:2], self._crop, self._pin and tiles.device.type == "cpu")
        return Batch(lr, hr, places[2])

    def _stream(self, tiles: RowGroups, start: int, stop: int) -> Generator[Batch]:
        try:
            with ThreadPoolExecutor(READERS, thread_name_prefix="tiles") as pool:
                for step in range(start, stop):
                    for positions in self._shares(range(step, step + 1)):
                        yield self._cut_batch(positions, tiles, pool)
        finally:
            self._lanes = {}

    def _cut_batch(self, positions: Ints, tiles: RowGroups, pool: ThreadPoolExecutor) -> Batch:
        count, scale, side = len(positions), self._set.scale, self._crop // self._set.scale
        batch = Batch(
            torch.empty((count, side, side, 3), dtype=torch.uint8, pin_memory=self._pin),
            torch.empty((count, self._crop, self._crop, 3), dtype=torch.uint8, pin_memory=self._pin),
            torch.empty(count, dtype=torch.int64, pin_memory=self._pin),
        )
        lr, hr, orientation = (part.numpy() for part in batch)
        for i, position in enumerate(positions.tolist()):
            window, index = self._order.locate(position)
            loaded = self._loaded_window(window, tiles, pool)
            tile_hr, tile_lr = loaded.tiles(index)
            y, x = loaded.y[index], loaded.x[index]
            lr[i] = tile_lr[y : y + side, x : x + side]
            y, x = y * scale, x * scale
            hr[i] = tile_hr[y : y + self._crop, x : x + self._crop]
            orientation[i] = loaded.orientation[index]
        return batch

    def _loaded_window(self, window: Window, tiles: RowGroups, pool: ThreadPoolExecutor) -> _LoadedWindow:
        """Return a window whose row groups are in memory or being read, and start reading the lane's next window."""
        lane = self._lanes.get(window.lane)
        if lane is None or lane.current != window:
            before = lane.windows if lane else {}
            known = {number: group for loaded in before.values() for number, group in loaded.groups.items()}

            def read_group(number: int) -> _Group:
                if number not in known:
                    known[number] = pool.submit(tiles.read_group, number)
                return known[number]

            needed = (window, self._order.next_window(window))
            lane = _Lane(window, {w: before.get(w) or self._load_window(w, read_group) for w in needed})
            self._lanes[window.lane] = lane
        return lane.windows[window]

    def _load_window(self, window: Window, read_group: Callable[[int], _Group]) -> _LoadedWindow:
        samples = self._order.samples(window)
        chosen = augmentations(samples, self._order.seed, self._slack, self._augment)
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


def _read_ahead(items: Generator[T], ahead: int) -> Generator[T]:
    """Iterate in a thread that has `ahead` items ready. The thread ends when this generator is closed."""
    ready: queue.Queue[T | Exception | None] = queue.Queue(ahead)
    closed = threading.Event()

    def put(item: T | Exception | None) -> None:
        while not closed.is_set():
            try:
                ready.put(item, timeout=0.2)
                return
            except queue.Full:
                continue

    def produce() -> None:
        try:
            with closing(items):
                for item in items:
                    put(item)
                    if closed.is_set():
                        return
            put(None)
        except Exception as error:  # raised again in the consumer's thread
            put(error)

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
