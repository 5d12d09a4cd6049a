"""The row groups of each lane in each epoch: dealt in a random order, or found by a permutation that is never stored.

Both depend on seed and epoch alone. `DealtLanes` gives every lane the same number of tiles to within a row group, but
time and memory are proportional to the number of row groups. `PermutedLanes` finds the row groups of a window by
themselves, so that neither depends on how many there are.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, lru_cache
from itertools import groupby
from typing import NamedTuple, Protocol

import numpy as np

from pipeline.data.random_numbers import AnyInts, Ints, permutation, permute


class RowGroupTable:
    """The sizes of all row groups, stored as runs of equal sizes: a shard has at most two, whatever its length.

    Args:
        runs: number of row groups and tiles in each of them, for each run in order; an array has the shape (n, 2).
    """

    def __init__(self, runs: Iterable[tuple[int, int]] | Ints) -> None:
        table = np.asarray(runs if isinstance(runs, np.ndarray) else list(runs), np.int64).reshape(-1, 2)
        counts, sizes = table[table[:, 0] > 0].T
        self.count = int(counts.sum())
        """Number of row groups."""
        self.tiles = int((counts * sizes).sum())
        """Number of tiles."""
        self.largest = int(sizes.max(initial=0))
        """Tiles in the largest row group."""
        self._size = compact(sizes, self.largest)
        self._group = compact(np.cumsum(counts) - counts, self.count)
        self._tile = compact(np.cumsum(counts * sizes) - counts * sizes, self.tiles)

    @classmethod
    def of(cls, sizes: Sequence[int]) -> RowGroupTable:
        """Make the table from the size of each row group."""
        return cls((len(list(run)), size) for size, run in groupby(sizes))

    def locate(self, tiles: Ints) -> tuple[Ints, Ints]:
        """Return the row groups that contain tiles, and the tiles' rows in them, each in the shape of `tiles`."""
        run = find_last(self._tile, tiles)
        within, row = np.divmod(tiles - self._tile[run], self._size[run].astype(np.int64))
        groups: Ints = self._group[run] + within
        return groups, row

    def sizes(self, groups: Ints) -> Ints:
        """Return the number of tiles in each of these row groups."""
        return self._size[find_last(self._group, groups)].astype(np.int64)

    def first_tiles(self, groups: Ints) -> Ints:
        """Return the first tile of each of these row groups."""
        run = find_last(self._group, groups)
        tiles: Ints = self._tile[run] + (groups - self._group[run]) * self._size[run]
        return tiles


def compact(numbers: Ints, most: int) -> AnyInts:
    """Copy numbers, of which none is above `most`, into the smallest integers that hold them."""
    return numbers.astype(np.int32) if most < 2**31 else numbers.astype(np.int64)


def find_last(ascending: AnyInts, numbers: Ints) -> Ints:
    """Return the index of the last of some ascending values that is not above each number, in the shape of `numbers`.

    -1 stands for none. NumPy would copy all values if their type differed from that of the numbers.
    """
    return np.searchsorted(ascending, numbers.astype(ascending.dtype), side="right") - 1


class LaneTiles(NamedTuple):
    """The tiles of n rows of a lane; each array has the shape (n,)."""

    tile: Ints
    turn: Ints
    """How often the lane has provided this tile before in this epoch; it gets other crops each time."""


class Lanes(Protocol):
    """A division of row groups into lanes."""

    def groups(self, epoch: int, lane: int) -> Ints:
        """Return the numbers of the row groups that a lane gets in an epoch, in reading order."""

    def tiles(self, epoch: int, lane: int, rows: Ints) -> LaneTiles:
        """Return the tiles of a lane's rows; a lane has as many rows as are asked for, and begins again at its end."""


class DealtLanes:
    """Deals the row groups in a random order, each to the lane that has the fewest tiles.

    Args:
        table: the row groups.
        seed: training seed.
        lanes: number of lanes.
    """

    def __init__(self, table: RowGroupTable, seed: int, lanes: int) -> None:
        self._table, self._seed, self._lanes = table, seed, lanes

    def groups(self, epoch: int, lane: int) -> Ints:
        """See `Lanes.groups`."""
        return self._deal(epoch)[lane][0]

    def tiles(self, epoch: int, lane: int, rows: Ints) -> LaneTiles:
        """See `Lanes.tiles`; no tile comes again before all others of the lane."""
        dealt, ends = self._deal(epoch)[lane]
        again, row = np.divmod(rows, ends[-1])
        place = np.searchsorted(ends, row, side="right")
        groups = dealt[place]
        return LaneTiles(self._table.first_tiles(groups) + row - (ends[place] - self._table.sizes(groups)), again)

    @cached_property
    def _deal(self) -> Callable[[int], list[tuple[Ints, Ints]]]:
        sizes = self._table.sizes(np.arange(self._table.count))

        @lru_cache(maxsize=2)
        def deal(epoch: int) -> list[tuple[Ints, Ints]]:
            """Return the row groups of each lane, and the number of the lane's tiles up to the end of each of them."""
            hands: list[list[int]] = [[] for _ in range(self._lanes)]
            poorest = [(0, lane) for lane in range(self._lanes)]
            order = permutation(self._table.count, self._seed, epoch)
            for group, count in zip(order.tolist(), sizes[order].tolist(), strict=True):
                size, lane = poorest[0]
                hands[lane].append(group)
                heapq.heapreplace(poorest, (size + count, lane))
            return [(dealt := np.array(hand, np.int64), np.cumsum(sizes[dealt])) for hand in hands]

        return deal


class PermutedLanes:
    """Gives lane l the row groups at the places l, l + lanes, l + 2 lanes, ... of a random order of all row groups.

    Each row group fills as many rows as the largest one has; a smaller one begins again with other crops. So the place
    of a row follows from its number alone.

    Args:
        table: the row groups.
        seed: training seed.
        lanes: number of lanes.
    """

    def __init__(self, table: RowGroupTable, seed: int, lanes: int) -> None:
        self._table, self._seed, self._lanes = table, seed, lanes

    def groups(self, epoch: int, lane: int) -> Ints:
        """See `Lanes.groups`."""
        return permute(np.arange(lane, self._table.count, self._lanes), self._table.count, self._seed, epoch)

    def tiles(self, epoch: int, lane: int, rows: Ints) -> LaneTiles:
        """See `Lanes.tiles`."""
        table, slots = self._table, self._table.largest
        places = -(-(table.count - lane) // self._lanes)
        again, slot = np.divmod(rows, places * slots)
        needed, which = np.unique(slot // slots, return_inverse=True)
        groups = permute(needed * self._lanes + lane, table.count, self._seed, epoch)
        repeated, row = np.divmod(slot % slots, table.sizes(groups)[which])
        return LaneTiles(table.first_tiles(groups)[which] + row, again * slots + repeated)


LANES: dict[str, Callable[[RowGroupTable, int, int], Lanes]] = {"dealt": DealtLanes, "permuted": PermutedLanes}
"""The divisions by the values of the setting `data.order`."""
