"""Training batches from a patch set: the samples of one optimizer step after the other, read ahead in a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pipeline.patchset import Bytes, PatchSet
from pipeline.sampler import SampleOrder, Window, augmentations


class Batch(NamedTuple):
    """A rank's samples of one optimizer step."""

    step: int
    lr: Bytes
    """(n, crop/scale, crop/scale, 3)"""
    hr: Bytes
    """(n, crop, crop, 3)"""


class BatchReader:
    """Reads a rank's samples of one step after the other, ahead of time, in a thread.

    Memory: for each lane of the rank the row groups of one window, and `ahead` batches.

    Args:
        patch_set: what to read.
        order: which samples make a step.
        batch: global batch size.
        crop: HR pixels, side of a training patch.
        augment: whether to flip and turn.
        rank: this worker.
        world: number of workers.
        ahead: batches to have ready.
    """

    def __init__(
        self,
        patch_set: PatchSet,
        order: SampleOrder,
        *,
        batch: int,
        crop: int,
        augment: bool,
        rank: int,
        world: int,
        ahead: int = 4,
    ) -> None:
        self._set = patch_set
        self._order = order
        self._batch, self._crop, self._augment = batch, crop, augment
        self._rank, self._world, self._ahead = rank, world, ahead
        self._first_tile = np.cumsum([0, *patch_set.row_groups])
        self._held: dict[int, tuple[Window, dict[int, tuple[Bytes, Bytes]]]] = {}  # lane -> its row groups

    def read(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of steps [start, stop)."""
        ready: queue.Queue[Batch | Exception] = queue.Queue(self._ahead)
        closed = threading.Event()

        def put(item: Batch | Exception) -> None:
            while not closed.is_set():
                try:
                    ready.put(item, timeout=0.2)
                    return
                except queue.Full:
                    continue

        def produce() -> None:
            try:
                for step in range(start, stop):
                    if closed.is_set():
                        return
                    put(self.step(step))
            except Exception as error:  # handed to the consumer, whose thread raises it
                put(error)

        thread = threading.Thread(target=produce, name="batch-reader", daemon=True)
        thread.start()
        try:
            for _ in range(start, stop):
                item = ready.get()
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            closed.set()
            thread.join()

    def step(self, step: int) -> Batch:
        """The samples of one step, read now."""
        order, scale = self._order, self._set.scale
        positions = order.share(step, self._batch, self._rank, self._world)
        samples = [order.sample(position) for position in positions]
        side = self._crop // scale
        hr = np.empty((len(samples), self._crop, self._crop, 3), np.uint8)
        lr = np.empty((len(samples), side, side, 3), np.uint8)
        room = self._set.tile // scale - side
        how = augmentations(samples, order.seed, room, self._augment)
        for i, (position, sample) in enumerate(zip(positions, samples, strict=True)):
            tile_hr, tile_lr = self._tile(order.window_of(position), sample.tile)
            y, x, flip, turns = how[i]
            for out, tile, s in ((hr, tile_hr, scale), (lr, tile_lr, 1)):
                patch = tile[y * s : (y + side) * s, x * s : (x + side) * s]
                out[i] = np.rot90(patch[:, ::-1] if flip else patch, turns)
        return Batch(step, lr, hr)

    def _tile(self, window: Window, tile: int) -> tuple[Bytes, Bytes]:
        current, groups = self._held.get(window.lane, (None, {}))
        if current != window:
            needed = sorted(self._order.window_groups(window))
            groups = {g: groups.get(g) or self._set.read_group(g) for g in needed}
            self._held[window.lane] = window, groups
        group = int(np.searchsorted(self._first_tile, tile, side="right")) - 1
        hr, lr = groups[group]
        row = tile - int(self._first_tile[group])
        return hr[row], lr[row]
