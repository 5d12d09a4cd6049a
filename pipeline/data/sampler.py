"""The order of training samples, as pure functions of the position, so a resumed run needs no saved state.

A sample is `(tile, k)`, the k-th random crop of a stored tile. Seed and epoch determine which row groups each of a
fixed number of lanes gets, and a lane's samples are shuffled within windows of a fixed number of tiles. Position i of
an epoch comes from lane `i mod lanes`. Every rank owns whole lanes and reads only the row groups of these lanes.
Optimizer step g takes the positions [g*B, (g+1)*B), independent of their division into ranks and micro-batches.
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
    """n samples; each array has the shape (n,)."""

    epoch: Ints
    tile: Ints
    """Index of the tile, counted over all shards in manifest order."""
    k: Ints
    """Number of the crop of this tile in this epoch."""


class Window(NamedTuple):
    """A run of tiles that a lane shuffles together."""

    epoch: int
    lane: int
    number: int
    """Counts the lane's windows within the epoch."""


class _WindowContent(NamedTuple):
    samples: Samples
    groups: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class SampleOrder:
    """The sequence of samples over all epochs.

    Each lane provides `tiles // lanes` tiles in every epoch, so all epochs have the same length and positions can be
    computed. A lane with more tiles skips its last ones; a lane with fewer starts again with other crops. The lanes
    that have more or fewer tiles change with the epoch.

    Raises:
        ValueError: if there are fewer row groups than lanes.
    """

    row_groups: tuple[int, ...]
    """Tiles in each row group, over all shards in manifest order."""
    seed: int
    """Training seed."""
    lanes: int
    """Number of lanes."""
    window: int
    """Number of tiles that a lane shuffles together."""
    crops_per_tile: int
    """Random crops of each tile in an epoch."""

    def __post_init__(self) -> None:
        if len(self.row_groups) < self.lanes:
            raise ValueError(f"{self.lanes} lanes for {len(self.row_groups)} row groups, expected at least one each")

    @cached_property
    def tiles(self) -> int:
        """Number of tiles in the patch set."""
        return sum(self.row_groups)

    @cached_property
    def epoch_length(self) -> int:
        """Number of samples in an epoch."""
        return self.tiles // self.lanes * self.crops_per_tile * self.lanes

    def lane(self, positions: Ints) -> Ints:
        """Return the lanes of the samples at these positions of the whole training, in the same shape."""
        return positions % self.epoch_length % self.lanes

    def locate(self, position: int) -> tuple[Window, int]:
        """Return the window of the sample at a position of the whole training, and its index in the window."""
        epoch, i = divmod(position, self.epoch_length)
        turn, lane = divmod(i, self.lanes)
        number, index = divmod(turn, self.window * self.crops_per_tile)
        return Window(epoch, lane, number), index

    def samples_at(self, positions: Ints) -> Samples:
        """Return the samples at n positions of the whole training, in the order of the positions."""
        epoch, i = np.divmod(positions, self.epoch_length)
        turn, lane = np.divmod(i, self.lanes)
        number, index = np.divmod(turn, self.window * self.crops_per_tile)
        tile, k = np.empty_like(positions), np.empty_like(positions)
        windows, which = np.unique(np.stack([epoch, lane, number]), axis=1, return_inverse=True)
        for w, window in enumerate(windows.T.tolist()):
            (chosen,) = np.nonzero(which.reshape(-1) == w)
            samples = self.samples(Window(*window))
            tile[chosen], k[chosen] = samples.tile[index[chosen]], samples.k[index[chosen]]
        return Samples(epoch, tile, k)

    def samples(self, window: Window) -> Samples:
        """Return the samples of a window, in the order in which its lane provides them."""
        return self._content(window).samples

    def window_groups(self, window: Window) -> tuple[int, ...]:
        """Return the sorted numbers of the row groups that contain a window's tiles."""
        return self._content(window).groups

    def next_window(self, window: Window) -> Window:
        """Return the window that follows in the same lane."""
        last = (self.tiles // self.lanes - 1) // self.window
        if window.number < last:
            return window._replace(number=window.number + 1)
        return Window(window.epoch + 1, window.lane, 0)

    def groups(self, epoch: int, lane: int) -> Ints:
        """Return the numbers of the row groups that a lane gets in an epoch, in reading order."""
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
    def _content(self) -> Callable[[Window], _WindowContent]:
        sizes = np.array(self.row_groups, np.int64)
        first_tile = np.cumsum(sizes) - sizes

        @lru_cache(maxsize=4 * self.lanes)
        def content(window: Window) -> _WindowContent:
            epoch, lane, number = window
            dealt = self.groups(epoch, lane)
            ends = np.cumsum(sizes[dealt])
            rows = np.arange(number * self.window, min((number + 1) * self.window, self.tiles // self.lanes))
            again, row = np.divmod(rows, ends[-1])
            place = np.searchsorted(ends, row, side="right")
            tile = first_tile[dealt[place]] + row - (ends - sizes[dealt])[place]
            k = np.arange(self.crops_per_tile)
            # A lane with too few tiles starts again; its tiles then get other crops.
            crops = (again * self.crops_per_tile)[:, None] + k
            order = permutation(crops.size, self.seed, *window)
            groups = tuple(np.unique(dealt[place]).tolist())
            tiles = tile.repeat(self.crops_per_tile)[order]
            return _WindowContent(Samples(np.full(len(tiles), epoch), tiles, crops.reshape(-1)[order]), groups)

        return content

    def share(self, step: int, batch: int, rank: int, world: int) -> Ints:
        """Return the positions of an optimizer step that a rank owns, those with `lane mod world == rank`.

        Args:
            step: the optimizer step.
            batch: global batch size.
            rank: the worker's rank.
            world: number of workers.

        Returns:
            Positions in the whole training, ascending.
        """
        positions = np.arange(step * batch, (step + 1) * batch)
        owned: Ints = positions[self.lane(positions) % world == rank]
        return owned

    def shares(self, step: int, batch: int, world: int) -> list[int]:
        """Return the number of samples in a step that each rank owns; the arguments are those of `share`."""
        positions = np.arange(step * batch, (step + 1) * batch)
        counts: list[int] = np.bincount(self.lane(positions) % world, minlength=world).tolist()
        return counts


def micro_batches(shares: list[int], micro_batch: int, rank: int) -> list[int]:
    """Divide a rank's samples into micro-batches of nearly equal size, the same number on all ranks.

    Args:
        shares: number of samples of each rank in this step.
        micro_batch: the most samples in a micro-batch.
        rank: the rank whose sizes are returned.

    Returns:
        Sizes that sum to `shares[rank]`, with the largest last, because the last micro-batch synchronises the ranks.
        They can be 0 if the rank has fewer samples than the other ranks have micro-batches.
    """
    count = -(-max(shares) // micro_batch)
    small, larger = divmod(shares[rank], count)
    return [small] * (count - larger) + [small + 1] * larger


class Augmentations(NamedTuple):
    """Crop and orientation of n samples; each array has the shape (n,)."""

    y: Ints
    """Origin of the crop within the tile, in LR pixels."""
    x: Ints
    orientation: npt.NDArray[np.uint8]
    """One of the eight symmetries of a square, as bits that are applied in this order: 1 swaps left and right, 2 swaps
    top and bottom, 4 swaps the axes."""


def augmentations(samples: Samples, seed: int, slack: int, turn: bool) -> Augmentations:
    """Choose the crop and orientation of each sample; both depend only on the arguments.

    Args:
        samples: n samples.
        seed: training seed.
        slack: LR pixels that a crop can move within its tile; 0 if it fills the tile.
        turn: flip and turn the crops.
    """
    state = _fold(np.full(len(samples.tile), seed), *samples)
    y, x, bits = (_mix(state + np.uint64(i)) for i in range(3))
    origins = np.uint64(slack + 1)
    orientation = (bits & np.uint64(7 if turn else 0)).astype(np.uint8)
    return Augmentations((y % origins).astype(np.int64), (x % origins).astype(np.int64), orientation)


def permutation(count: int, *key: int) -> Ints:
    """Return a random order of range(count), which is the same for the same key on every machine and version."""
    state = _fold(*(np.array([part]) for part in (count, *key)))
    bits = _mix(state + np.arange(count, dtype=np.uint64) * _GAMMA)
    return np.argsort(bits, kind="stable")


_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def _fold(*parts: Ints) -> _U64:
    """Hash several arrays of integers to one of 64-bit numbers, elementwise."""
    state = np.zeros(parts[0].shape, dtype=np.uint64)
    for part in parts:
        state = _mix(state ^ part.astype(np.uint64))
    return state


def _mix(z: _U64) -> _U64:
    """Apply one step of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    z = z + _GAMMA
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: _U64 = z ^ (z >> np.uint64(31))
    return mixed
