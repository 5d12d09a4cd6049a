"""The order of training samples, as pure functions of the position, so a resumed run needs no saved state.

A sample is `(tile, k)`, the k-th random crop of a stored tile. Seed and epoch determine which row groups each of a
fixed number of lanes gets (see `pipeline.data.lanes`), and a lane's samples are shuffled within windows of a fixed
number of tiles. Position i of an epoch comes from lane `i mod lanes`. Every rank owns whole lanes and reads only the
row groups of these lanes. Optimizer step g takes the positions [g*B, (g+1)*B), independent of their division into ranks
and micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.data.lanes import LANES, Lanes, RowGroupTable
from pipeline.data.random_numbers import Ints, fold, mix, permutation

_WINDOWS = 4
"""Windows of a lane whose samples stay in memory: a reader asks for those of the current window and of the next one,
and plans some samples ahead."""


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


@dataclass(frozen=True, eq=False)
class SampleOrder:
    """The sequence of samples over all epochs.

    Each lane provides `tiles // lanes` tiles in every epoch, so all epochs have the same length and positions can be
    computed. A lane with more tiles skips its last ones; a lane with fewer starts again with other crops. The lanes
    that have more or fewer tiles change with the epoch.

    Raises:
        ValueError: if there are fewer row groups than lanes.
    """

    row_groups: tuple[int, ...] | RowGroupTable
    """Tiles in each row group, over all shards in manifest order."""
    seed: int
    """Training seed."""
    lanes: int
    """Number of lanes."""
    window: int
    """Number of tiles that a lane shuffles together."""
    crops_per_tile: int
    """Random crops of each tile in an epoch."""
    kind: Literal["dealt", "permuted"] = "dealt"
    """How row groups come to lanes, as the setting `data.order`. Time and memory of "permuted" do not grow with the
    number of row groups."""

    def __post_init__(self) -> None:
        if self.table.count < self.lanes:
            raise ValueError(f"{self.lanes} lanes for {self.table.count} row groups, expected at least one each")

    @cached_property
    def table(self) -> RowGroupTable:
        """The row groups."""
        return self.row_groups if isinstance(self.row_groups, RowGroupTable) else RowGroupTable.of(self.row_groups)

    @cached_property
    def tiles(self) -> int:
        """Number of tiles in the patch set."""
        return self.table.tiles

    @cached_property
    def epoch_length(self) -> int:
        """Number of samples in an epoch."""
        return self.tiles // self.lanes * self.crops_per_tile * self.lanes

    @cached_property
    def windows(self) -> int:
        """Number of windows of each lane in an epoch."""
        return -(-(self.tiles // self.lanes) // self.window)

    def lane(self, positions: Ints) -> Ints:
        """Return the lanes of the samples at these positions of the whole training, in the same shape."""
        return positions % self.epoch_length % self.lanes

    def locate(self, positions: Ints) -> tuple[Ints, Ints]:
        """Return where lanes are at positions of the whole training.

        Returns:
            The windows, counted over all epochs, and the indices of the samples in them, each in the shape of
            `positions`. All lanes come to their next window at the same time.
        """
        epoch, i = np.divmod(positions, self.epoch_length)
        number, index = np.divmod(i // self.lanes, self.window * self.crops_per_tile)
        return epoch * self.windows + number, index

    def samples_at(self, positions: Ints) -> Samples:
        """Return the samples at n positions of the whole training, in the order of the positions."""
        counted, index = self.locate(positions)
        lane = self.lane(positions)
        tile, k = np.empty_like(positions), np.empty_like(positions)
        found, which = np.unique(counted * self.lanes + lane, return_inverse=True)
        by_window = np.argsort(which, kind="stable")
        ends = np.cumsum(np.bincount(which, minlength=len(found)))[:-1]
        for key, chosen in zip(found.tolist(), np.split(by_window, ends), strict=False):  # nothing splits into one part
            samples = self.samples(self.window_of(*divmod(key, self.lanes)))
            tile[chosen], k[chosen] = samples.tile[index[chosen]], samples.k[index[chosen]]
        return Samples(positions // self.epoch_length, tile, k)

    def window_of(self, counted: int, lane: int) -> Window:
        """Return a lane's window by its number over all epochs."""
        epoch, number = divmod(counted, self.windows)
        return Window(epoch, lane, number)

    def samples(self, window: Window) -> Samples:
        """Return the samples of a window, in the order in which its lane provides them.

        The last few windows of each lane stay in memory, which a rank therefore fills with its own lanes alone.
        """
        return self._samples_of(window.lane)(window)

    def groups(self, epoch: int, lane: int) -> Ints:
        """Return the numbers of the row groups that a lane gets in an epoch, in reading order."""
        return self._lanes.groups(epoch, lane)

    @cached_property
    def _lanes(self) -> Lanes:
        return LANES[self.kind](self.table, self.seed, self.lanes)

    @cached_property
    def _samples_of(self) -> Callable[[int], Callable[[Window], Samples]]:
        return cache(lambda _: lru_cache(maxsize=_WINDOWS)(self._shuffle))

    def _shuffle(self, window: Window) -> Samples:
        epoch, lane, number = window
        rows = np.arange(number * self.window, min((number + 1) * self.window, self.tiles // self.lanes))
        tile, turn = self._lanes.tiles(epoch, lane, rows)
        crops = (turn * self.crops_per_tile)[:, None] + np.arange(self.crops_per_tile)
        order = permutation(crops.size, self.seed, *window)
        tiles = tile.repeat(self.crops_per_tile)[order]
        return Samples(np.full(len(tiles), epoch), tiles, crops.reshape(-1)[order])

    def share(self, step: int, batch: int, rank: int, world: int) -> Ints:
        """Return the positions of a step that a rank owns, ascending; the arguments are those of `divide`."""
        return self.divide(range(step, step + 1), batch, rank, world)[0]

    def shares(self, step: int, batch: int, world: int) -> list[int]:
        """Return the number of samples in a step that each rank owns; the arguments are those of `divide`."""
        counts: list[int] = self.divide(range(step, step + 1), batch, 0, world)[1][0].tolist()
        return counts

    def divide(self, steps: range, batch: int, rank: int, world: int) -> tuple[Ints, Ints]:
        """Divide the samples of successive optimizer steps among the ranks; lane l belongs to rank `l mod world`.

        Args:
            steps: the optimizer steps.
            batch: global batch size.
            rank: the worker's rank.
            world: number of workers.

        Returns:
            The rank's positions in the whole training, ascending, and how many samples of each step each rank owns,
            (steps, world).
        """
        positions = np.arange(steps.start * batch, steps.stop * batch)
        owner = self.lane(positions) % world
        cell = owner.reshape(-1, batch) + world * np.arange(len(steps))[:, None]
        counts = np.bincount(cell.reshape(-1), minlength=world * len(steps)).reshape(-1, world)
        return positions[owner == rank], counts


def imbalance(lanes: int, world: int) -> float:
    """Return how many times as many lanes as on average the rank with the most of them has; all ranks wait for it."""
    return -(-lanes // world) * world / lanes


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
    state = fold(np.full(len(samples.tile), seed), *samples)
    y, x, bits = (mix(state + np.uint64(i)) for i in range(3))
    origins = np.uint64(slack + 1)
    orientation = (bits & np.uint64(7 if turn else 0)).astype(np.uint8)
    return Augmentations((y % origins).astype(np.int64), (x % origins).astype(np.int64), orientation)
