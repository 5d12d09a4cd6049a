"""The order of training samples, as pure functions of the position: nothing to save, nothing to restore.

A sample is `(tile, k)`, the k-th random crop of a stored tile. Row groups are dealt to a fixed number of lanes by
(seed, epoch), and a lane's samples are shuffled within windows of a fixed number of tiles. Position i of an epoch comes
from lane `i mod lanes`. Every rank owns whole lanes, so that it reads only the row groups dealt to these. Optimizer
step g takes positions [g*B, (g+1)*B), however they are split over ranks and micro-batches.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
_U64 = npt.NDArray[np.uint64]


class Samples(NamedTuple):
    """Some samples, one in each row of the arrays, (n,) each."""

    epoch: Ints
    tile: Ints
    """Rows of all shards are counted in manifest order."""
    k: Ints
    """The k-th crop of the tile in this epoch."""


class Window(NamedTuple):
    """The `number`-th run of tiles that a lane shuffles together in an epoch."""

    epoch: int
    lane: int
    number: int


class _Content(NamedTuple):
    samples: Samples
    groups: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class SampleOrder:
    """The sequence of samples over all epochs.

    Every epoch has the same length, so that a position is arithmetic: each lane gives `tiles // lanes` tiles an epoch.
    A lane that was dealt more leaves its last ones out, one that was dealt less begins again with other crops; who
    that is changes with the epoch.

    Raises:
        ValueError: if there are fewer row groups than lanes.
    """

    row_groups: tuple[int, ...]
    """Tiles in each row group, over all shards in manifest order."""
    seed: int
    lanes: int
    window: int
    """Tiles of a lane that are shuffled together."""
    crops_per_tile: int

    def __post_init__(self) -> None:
        if len(self.row_groups) < self.lanes:
            raise ValueError(f"{self.lanes} lanes for {len(self.row_groups)} row groups, expected at least one each")

    @cached_property
    def tiles(self) -> int:
        """Tiles of the patch set."""
        return sum(self.row_groups)

    @cached_property
    def epoch_length(self) -> int:
        """Samples of an epoch."""
        return self.tiles // self.lanes * self.crops_per_tile * self.lanes

    def lane(self, positions: Ints) -> Ints:
        """The lanes that give the samples at positions of the whole training."""
        return positions % self.epoch_length % self.lanes

    def place(self, position: int) -> tuple[Window, int]:
        """Where the sample at a position of the whole training is: its window, and its number there."""
        epoch, i = divmod(position, self.epoch_length)
        turn, lane = divmod(i, self.lanes)
        number, index = divmod(turn, self.window * self.crops_per_tile)
        return Window(epoch, lane, number), index

    def samples(self, window: Window) -> Samples:
        """The samples of a window, in the order in which its lane gives them."""
        return self._content(window).samples

    def window_groups(self, window: Window) -> tuple[int, ...]:
        """The row groups that a window's tiles lie in, ascending: what to hold together."""
        return self._content(window).groups

    def next_window(self, window: Window) -> Window:
        """The window that follows in the same lane."""
        last = (self.tiles // self.lanes - 1) // self.window
        if window.number < last:
            return window._replace(number=window.number + 1)
        return Window(window.epoch + 1, window.lane, 0)

    def groups(self, epoch: int, lane: int) -> Ints:
        """Row groups dealt to a lane, in reading order."""
        return self._deal(epoch)[lane]

    @cached_property
    def _deal(self) -> Callable[[int], list[Ints]]:
        @lru_cache(maxsize=2)
        def deal(epoch: int) -> list[Ints]:
            hands: list[list[int]] = [[] for _ in range(self.lanes)]
            poorest = [(0, lane) for lane in range(self.lanes)]
            for group in permutation(len(self.row_groups), self.seed, epoch).tolist():
                size, lane = poorest[0]
                hands[lane].append(group)
                heapq.heapreplace(poorest, (size + self.row_groups[group], lane))
            return [np.array(hand, np.int64) for hand in hands]

        return deal

    @cached_property
    def _content(self) -> Callable[[Window], _Content]:
        sizes = np.array(self.row_groups, np.int64)
        first_tile = np.cumsum(sizes) - sizes

        @lru_cache(maxsize=4 * self.lanes)
        def content(window: Window) -> _Content:
            epoch, lane, number = window
            dealt = self.groups(epoch, lane)
            ends = np.cumsum(sizes[dealt])
            rows = np.arange(number * self.window, min((number + 1) * self.window, self.tiles // self.lanes))
            again, row = np.divmod(rows, ends[-1])
            place = np.searchsorted(ends, row, side="right")
            tile = first_tile[dealt[place]] + row - (ends - sizes[dealt])[place]
            k = np.arange(self.crops_per_tile)
            # A tile met again, in a lane that was dealt too few, is cropped elsewhere.
            crops = (again * self.crops_per_tile)[:, None] + k
            order = permutation(crops.size, self.seed, *window)
            groups = tuple(np.unique(dealt[place]).tolist())
            tiles = tile.repeat(self.crops_per_tile)[order]
            return _Content(Samples(np.full(len(tiles), epoch), tiles, crops.reshape(-1)[order]), groups)

        return content

    def share(self, step: int, batch: int, rank: int, world: int) -> Ints:
        """Positions of optimizer step `step` that a rank owns: those of its lanes, `lane mod world == rank`."""
        positions = np.arange(step * batch, (step + 1) * batch)
        mine: Ints = positions[self.lane(positions) % world == rank]
        return mine

    def shares(self, step: int, batch: int, world: int) -> list[int]:
        """How many samples of a step each rank owns."""
        positions = np.arange(step * batch, (step + 1) * batch)
        counts: list[int] = np.bincount(self.lane(positions) % world, minlength=world).tolist()
        return counts


def micro_batches(shares: list[int], micro_batch: int, rank: int) -> list[int]:
    """Sizes of a rank's micro-batches: as even as possible, and the same number on all ranks.

    Args:
        shares: samples of each rank in this step.
        micro_batch: the most samples a rank holds at once.
        rank: whose sizes to return.

    Returns:
        Sizes that sum to `shares[rank]`, largest last (the last one synchronises the ranks); 0 where a rank has fewer
        samples than others have micro-batches.
    """
    count = -(-max(shares) // micro_batch)
    small, larger = divmod(shares[rank], count)
    return [small] * (count - larger) + [small + 1] * larger


class Augmentations(NamedTuple):
    """Where to crop, and how to turn the crops; (n,) each."""

    y: Ints
    """LR pixel origin of the crop within the tile."""
    x: Ints
    orientation: npt.NDArray[np.uint8]
    """One of the eight of a square, as bits: 1 mirrors left and right, then 2 top and bottom, then 4 both axes."""


def augmentations(samples: Samples, seed: int, room: int, turn: bool) -> Augmentations:
    """The crop and orientation of each sample.

    Args:
        samples: which crops of which tiles.
        seed: training seed.
        room: LR pixels that a crop can move within its tile, 0 for none.
        turn: whether to mirror and turn.
    """
    state = _fold(np.full(len(samples.tile), seed), *samples)
    y, x, how = (_mix(state + np.uint64(i)) for i in range(3))
    steps = np.uint64(room + 1)
    orientation = (how & np.uint64(7 if turn else 0)).astype(np.uint8)
    return Augmentations((y % steps).astype(np.int64), (x % steps).astype(np.int64), orientation)


def permutation(count: int, *key: int) -> Ints:
    """A random order of range(count), the same for the same key on every machine and version."""
    state = _fold(*(np.array([part]) for part in (count, *key)))
    bits = _mix(state + np.arange(count, dtype=np.uint64) * _GAMMA)
    return np.argsort(bits, kind="stable")


_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def _fold(*parts: Ints) -> _U64:
    """One 64-bit hash of several integers, elementwise."""
    state = np.zeros(parts[0].shape, dtype=np.uint64)
    for part in parts:
        state = _mix(state ^ part.astype(np.uint64))
    return state


def _mix(z: _U64) -> _U64:
    """A step of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    z = z + _GAMMA
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: _U64 = z ^ (z >> np.uint64(31))
    return mixed
