"""The order of training samples, as pure functions of the position: nothing to save, nothing to restore.

A sample is `(tile, k)`, the k-th random crop of a stored tile. Row groups are dealt to a fixed number of lanes by
(seed, epoch), and a lane's samples are shuffled within windows of a fixed number of tiles. Position i of an epoch comes
from lane `i mod lanes`. Every rank owns whole lanes, so that it reads only the row groups dealt to these. Optimizer
step g takes positions [g*B, (g+1)*B), however they are split over ranks and micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_U64 = npt.NDArray[np.uint64]


class Sample(NamedTuple):
    """The k-th crop of a tile in an epoch; `tile` counts the rows of all shards in manifest order."""

    epoch: int
    tile: int
    k: int


class Window(NamedTuple):
    """The `number`-th run of tiles that a lane shuffles together in an epoch."""

    epoch: int
    lane: int
    number: int


class _Content(NamedTuple):
    samples: list[Sample]
    groups: frozenset[int]


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

    def lane(self, position: int) -> int:
        """The lane that gives the sample at a position of the whole training."""
        return position % self.epoch_length % self.lanes

    def sample(self, position: int) -> Sample:
        """The sample at a position of the whole training."""
        window, index = self._place(position)
        return self._window(window).samples[index]

    def window_of(self, position: int) -> Window:
        """The epoch, lane and number of the window that the sample at a position belongs to."""
        return self._place(position)[0]

    def window_groups(self, window: Window) -> frozenset[int]:
        """The row groups that a window's tiles lie in: what to hold together."""
        return self._window(window).groups

    def groups(self, epoch: int, lane: int) -> tuple[int, ...]:
        """Row groups dealt to a lane, in reading order."""
        return self._deal(epoch)[lane]

    def _place(self, position: int) -> tuple[Window, int]:
        epoch, i = divmod(position, self.epoch_length)
        lane, turn = i % self.lanes, i // self.lanes
        number, index = divmod(turn, self.window * self.crops_per_tile)
        return Window(epoch, lane, number), index

    @cached_property
    def _deal(self) -> Callable[[int], list[tuple[int, ...]]]:
        @lru_cache(maxsize=4)
        def deal(epoch: int) -> list[tuple[int, ...]]:
            hands: list[list[int]] = [[] for _ in range(self.lanes)]
            sizes = [0] * self.lanes
            for group in permutation(len(self.row_groups), self.seed, epoch):
                poorest = sizes.index(min(sizes))
                hands[poorest].append(group)
                sizes[poorest] += self.row_groups[group]
            return [tuple(hand) for hand in hands]

        return deal

    @cached_property
    def _window(self) -> Callable[[Window], _Content]:
        first_tile = [0, *np.cumsum(self.row_groups).tolist()]

        @lru_cache(maxsize=4 * self.lanes)
        def content(window: Window) -> _Content:
            epoch, lane, number = window
            dealt = [(t, g) for g in self.groups(epoch, lane) for t in range(first_tile[g], first_tile[g + 1])]
            start = number * self.window
            rows = range(start, min(start + self.window, self.tiles // self.lanes))
            samples = [
                # A tile met again, in a lane that was dealt too few, is cropped elsewhere.
                Sample(epoch, dealt[i % len(dealt)][0], k + i // len(dealt) * self.crops_per_tile)
                for i in rows
                for k in range(self.crops_per_tile)
            ]
            order = permutation(len(samples), self.seed, *window)
            return _Content([samples[i] for i in order], frozenset(dealt[i % len(dealt)][1] for i in rows))

        return content

    def share(self, step: int, batch: int, rank: int, world: int) -> list[int]:
        """Positions of optimizer step `step` that a rank owns: those of its lanes, `lane mod world == rank`."""
        positions = range(step * batch, (step + 1) * batch)
        return [position for position in positions if self.lane(position) % world == rank]


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


class Augmentation(NamedTuple):
    """Where to crop, and how to turn the crop."""

    y: int
    """LR pixel origin of the crop within the tile."""
    x: int
    flip: bool
    """Mirror left to right, before the turn."""
    quarter_turns: int


def augmentations(samples: Sequence[Sample], seed: int, room: int, turn: bool) -> list[Augmentation]:
    """The crop and orientation of each sample.

    Args:
        samples: which crops of which tiles.
        seed: training seed.
        room: LR pixels that a crop can move within its tile, 0 for none.
        turn: whether to flip and turn.
    """
    state = _fold(np.full(len(samples), seed), *np.array(samples).reshape(-1, 3).T)
    y, x, how = (_mix(state + np.uint64(i)).astype(object) for i in range(3))
    return [
        Augmentation(
            y=y[i] % (room + 1),
            x=x[i] % (room + 1),
            flip=turn and bool(how[i] & 1),
            quarter_turns=(how[i] >> 1) % 4 if turn else 0,
        )
        for i in range(len(samples))
    ]


def permutation(count: int, *key: int) -> list[int]:
    """A random order of range(count), the same for the same key on every machine and version."""
    state = _fold(*(np.array([part]) for part in (count, *key)))
    bits = _mix(state + np.arange(count, dtype=np.uint64) * _GAMMA)
    order: list[int] = np.argsort(bits, kind="stable").tolist()
    return order


_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def _fold(*parts: npt.NDArray[np.int64]) -> _U64:
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
