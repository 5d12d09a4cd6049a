"""The row groups of a rank's lanes that are in memory: those of the current windows and of the next ones."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol

import numpy as np

from pipeline.data.gathering import address
from pipeline.data.sampler import SampleOrder
from sr_model.pixels import Pixels


class RowGroups(Protocol):
    """A place to read row groups from, such as a `PatchSet`."""

    @property
    def readers(self) -> int:
        """Number of threads that should read row groups at once."""
        ...

    def read_group(self, number: int) -> tuple[Pixels, Pixels]:
        """Read a row group: HR (n, tile, tile, 3) and LR (n, tile/scale, tile/scale, 3), uint8."""
        ...

    def at_hand(self, number: int) -> tuple[Pixels, Pixels] | None:
        """Return a row group without reading it, or None if it must be read."""
        ...

    def prefetch(self, numbers: Sequence[int]) -> None:
        """Ask the system to have row groups in memory that `at_hand` has returned, without waiting for them."""
        ...


class Loaded(NamedTuple):
    """A row group in memory."""

    tiles: tuple[Pixels, Pixels]
    """HR and LR. They keep the memory that the addresses name."""
    places: tuple[int, int, int, int]
    """Address of the first HR tile, bytes from one HR tile to the next, and the same for LR."""


class Windows:
    """Reads the row groups of the lanes' windows ahead of time, in the order in which samples need them.

    Args:
        order: the order of samples.
        lanes: the rank's lanes.
        source: where row groups are read from, in several threads at once.
    """

    def __init__(self, order: SampleOrder, lanes: Sequence[int], source: RowGroups) -> None:
        self._order, self._lanes, self._source = order, lanes, source
        self._pool = ThreadPoolExecutor(source.readers, thread_name_prefix="tiles")
        self._groups: dict[int, Loaded | Future[Loaded]] = {}
        self._current = -1

    def close(self) -> None:
        """Stop reading."""
        self._pool.shutdown(cancel_futures=True)
        self._groups = {}

    @property
    def loaded_groups(self) -> int:
        """Number of row groups in memory or being read."""
        return len(self._groups)

    def move_to(self, window: int, index: int) -> bool:
        """Begin to read the row groups of a window and of the one after it, and let go of all others.

        Args:
            window: number of the window over all epochs.
            index: index of the first sample that is still needed in it.

        Returns:
            False if it was the current window before.
        """
        if window == self._current:
            return False
        before, self._groups, self._current = self._groups, {}, window
        at_hand: list[int] = []
        for number in [*self._needed(window, index), *self._needed(window + 1, 0)]:
            if number in self._groups:
                continue
            if number in before:
                self._groups[number] = before.pop(number)
            elif tiles := self._source.at_hand(number):
                self._groups[number] = _place(tiles)
                at_hand.append(number)
            else:
                self._groups[number] = self._pool.submit(self._load, number)
        if at_hand:
            self._pool.submit(self._source.prefetch, at_hand)
        for unused in before.values():
            if isinstance(unused, Future):
                unused.cancel()
        return True

    def wait_for(self, number: int) -> Loaded:
        """Return a row group of the current windows.

        Raises:
            OSError: if it cannot be read.
        """
        found = self._groups[number]
        return found.result() if isinstance(found, Future) else found

    def _needed(self, window: int, index: int) -> list[int]:
        """Return the row groups of all lanes' windows from an index on, in the order in which they are needed."""
        numbers, first_uses = [], []
        for lane in self._lanes:
            groups, _ = self._order.table.locate(self._order.samples(self._order.window_of(window, lane)).tile[index:])
            found, first_use = np.unique(groups, return_index=True)
            numbers.append(found)
            first_uses.append(first_use)
        by_use = np.argsort(np.concatenate(first_uses), kind="stable")
        needed: list[int] = np.concatenate(numbers)[by_use].tolist()
        return needed

    def _load(self, number: int) -> Loaded:
        return _place(self._source.read_group(number))


def _place(tiles: tuple[Pixels, Pixels]) -> Loaded:
    hr, lr = map(_with_adjacent_pixels, tiles)
    return Loaded((hr, lr), (address(hr), hr.strides[0], address(lr), lr.strides[0]))


def _with_adjacent_pixels(tiles: Pixels) -> Pixels:
    """Return the tiles themselves if the pixels of each of them are adjacent, otherwise a copy."""
    _, _, width, channels = tiles.shape
    return tiles if tiles.strides[1:] == (width * channels, channels, 1) else np.ascontiguousarray(tiles)
