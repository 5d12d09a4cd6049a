"""Read training samples from a patch set, one micro-batch after another.

The places of many samples are planned at once. A thread prepares micro-batches ahead of time: it waits for the row
groups that a few of them need, which other threads read a window ahead, and gathers all crops with one operation. From
held tiles (see `pipeline.data.held`), a GPU gathers the crops if it holds them. All ways give the same batches.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import pairwise
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from pipeline.data.gathering import copy_squares
from pipeline.data.held import HeldTiles
from pipeline.data.patchset import PatchSet
from pipeline.data.random_numbers import Ints
from pipeline.data.sampler import Augmentations, SampleOrder, augmentations, micro_batches
from pipeline.data.tiles import Tiles
from pipeline.data.windows import Loaded, RowGroups, Windows

T = TypeVar("T")

_PLANNED = 1024
"""Samples whose places are computed at once; doing so for each micro-batch would take longer."""
_GATHERED, _GATHERED_BYTES = 128, 2**22
"""Samples, and bytes of their HR patches, that are copied and handed over at once if micro-batches are smaller; doing
so for each micro-batch would take longer."""


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

    Memory holds `ahead` micro-batches, or 4 MB of them if those are more, and as many that are being made or used.
    Unless the tiles are held, it also holds the row groups of two windows for each of the rank's lanes; those of local
    shards are mapped, so the system can drop and read them again. If a GPU holds the tiles, only places of crops are
    ready ahead of time, and micro-batches are gathered when they are asked for, without waiting for the GPU.

    Args:
        patch_set: the patch set to read.
        order: determines the samples of each step.
        batch: global batch size.
        micro_batch: the most samples in a micro-batch.
        crop: side of a training patch in HR pixels.
        augment: flip and turn the patches.
        rank: this worker's rank.
        world: number of workers.
        tiles: where tiles are; the default is the patch set itself.
        pin: put batches in page-locked memory, from which a GPU copies asynchronously.
        ahead: the least number of micro-batches to have ready.
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
        self._together = max(1, min(_GATHERED, _GATHERED_BYTES // (3 * crop**2)) // micro_batch)
        self._slack = (patch_set.tile - crop) // patch_set.scale
        self._windows: Windows | None = None

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
        tiles, ahead = self._tiles, -(-self._ahead // self._together)
        if not isinstance(tiles, HeldTiles):
            parts = _read_ahead(self._read_groups(tiles, start, stop), ahead)
        elif tiles.device.type == "cpu":
            parts = _read_ahead((self._gather(tiles, *each) for each in self._places(tiles, start, stop)), ahead)
        else:  # the calling thread gathers, so that the GPU does so between the caller's other work
            places = _read_ahead(self._places(tiles, start, stop), ahead)
            parts = (self._gather(tiles, *each) for each in places)
        with closing(parts):
            for part in parts:
                yield from part

    @property
    def loaded_groups(self) -> int:
        """Number of row groups in memory or being read, if the tiles are not held."""
        return self._windows.loaded_groups if self._windows else 0

    def _plan(self, start: int, stop: int) -> Generator[_Plan]:
        at_once = -(-_PLANNED * self._world // self._batch)
        for first in range(start, stop, at_once):
            steps = range(first, min(first + at_once, stop))
            positions, counts = self._order.divide(steps, self._batch, self._rank, self._world)
            samples = self._order.samples_at(positions)
            chosen = augmentations(samples, self._order.seed, self._slack, self._augment)
            sizes = [size for shares in counts.tolist() for size in micro_batches(shares, self._micro, self._rank)]
            yield _Plan(positions, samples.tile, chosen, sizes)

    def _places(self, tiles: HeldTiles, start: int, stop: int) -> Generator[tuple[Tensor, list[int]]]:
        """Yield the places of a few micro-batches, and the number of samples in each of them.

        Places are (3, n) int64: the crops' first HR and LR pixels, and their orientations.
        """
        for plan in self._plan(start, stop):
            chosen = plan.chosen
            places = np.stack([*tiles.first_pixels(plan.tile, chosen.y, chosen.x), chosen.orientation])
            for first, last, sizes in plan.parts(self._together):
                rows = torch.from_numpy(np.ascontiguousarray(places[:, first:last]))
                yield rows.pin_memory() if self._pin else rows, sizes

    def _gather(self, tiles: HeldTiles, places: Tensor, sizes: list[int]) -> list[Batch]:
        places = places.to(tiles.device, non_blocking=True)
        hr, lr = tiles.gather(places[:2], self._crop, self._pin and tiles.device.type == "cpu")
        return _split(Batch(lr, hr, places[2]), sizes)

    def _read_groups(self, tiles: RowGroups, start: int, stop: int) -> Generator[list[Batch]]:
        lanes = range(self._rank, self._order.lanes, self._world)
        with closing(Windows(self._order, lanes, tiles)) as windows:
            self._windows = windows
            for plan in self._plan(start, stop):
                yield from self._cut(plan, windows)

    def _cut(self, plan: _Plan, windows: Windows) -> Generator[list[Batch]]:
        """Yield a plan's micro-batches, a few at a time, as soon as the row groups that they need are in memory."""
        side, small, scale = self._set.tile, self._set.tile // self._set.scale, self._set.scale
        window, index = self._order.locate(plan.positions)
        groups, row = self._order.table.locate(plan.tile)
        numbers, slot = np.unique(groups, return_inverse=True)
        in_hr = 3 * scale * (plan.chosen.y * side + plan.chosen.x)
        in_lr = 3 * (plan.chosen.y * small + plan.chosen.x)
        orientation = torch.from_numpy(plan.chosen.orientation.astype(np.int64))
        places = np.zeros((len(numbers), 4), np.int64)
        loaded: dict[int, Loaded] = {}  # keeps the memory at the places
        for first, last, sizes in plan.parts(self._together):
            hr, lr = np.empty(last - first, np.int64), np.empty(last - first, np.int64)
            kept: list[dict[int, Loaded]] = []
            for begin, end in _runs(window[first:last], first):
                if windows.move_to(int(window[begin]), int(index[begin])):
                    kept.append(loaded)  # for the crops from earlier windows in these micro-batches
                    loaded = {}
                needed = slot[begin:end]
                for new in set(needed.tolist()) - loaded.keys():
                    loaded[new] = windows.wait_for(int(numbers[new]))
                    places[new] = loaded[new].places
                hr_tile, hr_stride, lr_tile, lr_stride = places[needed].T
                hr[begin - first : end - first] = hr_tile + row[begin:end] * hr_stride + in_hr[begin:end]
                lr[begin - first : end - first] = lr_tile + row[begin:end] * lr_stride + in_lr[begin:end]
            batch = Batch(
                torch.from_numpy(copy_squares(lr, self._crop // scale, 3 * small)),
                torch.from_numpy(copy_squares(hr, self._crop, 3 * side)),
                orientation[first:last],
            )
            yield _split(Batch(*(part.pin_memory() for part in batch)) if self._pin else batch, sizes)


class _Plan(NamedTuple):
    """The places of a rank's next n samples."""

    positions: Ints
    """(n,) in the whole training."""
    tile: Ints
    """(n,) numbers of the tiles."""
    chosen: Augmentations
    sizes: list[int]
    """Size of each micro-batch; they sum to n."""

    def parts(self, together: int) -> Iterator[tuple[int, int, list[int]]]:
        """Yield begin and end in the n samples of each `together` micro-batches, and their sizes."""
        last = 0
        for at in range(0, len(self.sizes), together):
            sizes = self.sizes[at : at + together]
            first, last = last, last + sum(sizes)
            yield first, last, sizes


def _split(together: Batch, sizes: list[int]) -> list[Batch]:
    """Divide the samples of several micro-batches; the parts share their memory."""
    return [Batch(*parts) for parts in zip(*(part.split(sizes) for part in together), strict=True)]


def _runs(values: Ints, offset: int) -> Iterator[tuple[int, int]]:
    """Yield begin and end of each run of equal values, counted from `offset`."""
    if len(values):
        changes = np.flatnonzero(np.diff(values)) + 1
        yield from pairwise([offset, *(changes + offset).tolist(), offset + len(values)])


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
