import tracemalloc
from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.lanes import RowGroupTable
from pipeline.data.random_numbers import permutation, permute
from pipeline.data.sampler import SampleOrder, Samples, augmentations, imbalance, micro_batches

orders = st.builds(
    SampleOrder,
    row_groups=st.lists(st.integers(1, 6), min_size=4, max_size=30).map(tuple),
    seed=st.integers(0, 2**40),
    lanes=st.integers(1, 4),
    window=st.integers(1, 12),
    crops_per_tile=st.integers(1, 4),
    kind=st.sampled_from(["dealt", "permuted"]),
)
kinds = pytest.mark.parametrize("kind", ["dealt", "permuted"])


class Sample(NamedTuple):
    epoch: int
    tile: int
    k: int


def samples_of(order: SampleOrder, positions: Sequence[int]) -> list[Sample]:
    """Return the samples at some positions, one by one."""
    windows, indices = order.locate(np.array(positions, np.int64))
    samples = []
    for position, window, index in zip(positions, windows.tolist(), indices.tolist(), strict=True):
        lane = position % order.epoch_length % order.lanes
        samples.append(Sample(*(int(part[index]) for part in order.samples(order.window_of(window, lane)))))
    return samples


def epoch(order: SampleOrder, number: int = 0) -> list[Sample]:
    return samples_of(order, range(number * order.epoch_length, (number + 1) * order.epoch_length))


@given(order=orders)
def test_an_epoch_repeats_no_sample_and_has_a_fixed_length(order: SampleOrder) -> None:
    for number in (0, 3):
        samples = epoch(order, number)
        assert len(set(samples)) == len(samples) == order.tiles // order.lanes * order.lanes * order.crops_per_tile
        assert {sample.epoch for sample in samples} == {number}
        assert all(0 <= sample.tile < order.tiles for sample in samples)


@kinds
def test_with_equal_row_groups_an_epoch_takes_every_crop_of_every_tile_once(
    kind: Literal["dealt", "permuted"],
) -> None:
    order = SampleOrder((4,) * 12, seed=5, lanes=3, window=8, crops_per_tile=2, kind=kind)
    assert sorted((s.tile, s.k) for s in epoch(order)) == [(tile, k) for tile in range(48) for k in range(2)]


@given(order=orders)
def test_position_i_comes_from_lane_i_mod_lanes(order: SampleOrder) -> None:
    ends = np.cumsum(order.table.sizes(np.arange(order.table.count))).tolist()
    for i, sample in enumerate(epoch(order)):
        group = next(g for g, end in enumerate(ends) if sample.tile < end)
        assert group in order.groups(0, i % order.lanes)


@given(order=orders)
def test_all_lanes_come_to_a_window_at_the_same_time(order: SampleOrder) -> None:
    windows, index = order.locate(np.arange(2 * order.epoch_length))
    assert (np.diff(windows) >= 0).all()
    assert (windows.reshape(-1, order.lanes) == windows[:: order.lanes, None]).all()
    assert windows[-1] == 2 * order.windows - 1
    samples = [order.samples(order.window_of(window, 0)) for window in range(2 * order.windows)]
    assert [len(each.tile) for each in samples] == np.bincount(windows[:: order.lanes]).tolist()
    assert index.max() < order.window * order.crops_per_tile


@given(order=orders)
def test_every_row_group_is_dealt_to_one_lane(order: SampleOrder) -> None:
    dealt = Counter(group for lane in range(order.lanes) for group in order.groups(2, lane).tolist())
    assert dealt == Counter(range(order.table.count))


@given(order=orders)
def test_the_order_is_a_function_of_its_settings_alone(order: SampleOrder) -> None:
    again = SampleOrder(order.row_groups, order.seed, order.lanes, order.window, order.crops_per_tile, order.kind)
    backwards = samples_of(again, range(order.epoch_length)[::-1])
    assert backwards[::-1] == epoch(order)


@given(order=orders, data=st.data())
def test_the_samples_at_several_positions_are_those_at_each(order: SampleOrder, data: st.DataObject) -> None:
    positions = data.draw(st.lists(st.integers(0, 3 * order.epoch_length), max_size=40))
    found = order.samples_at(np.array(positions, np.int64))
    assert [Sample(*row) for row in zip(*(part.tolist() for part in found), strict=True)] == samples_of(
        order, positions
    )


@kinds
def test_seed_and_epoch_change_the_order(kind: Literal["dealt", "permuted"]) -> None:
    order = SampleOrder((4,) * 8, seed=0, lanes=2, window=8, crops_per_tile=2, kind=kind)
    other = SampleOrder((4,) * 8, seed=1, lanes=2, window=8, crops_per_tile=2, kind=kind)
    tiles = [[s.tile for s in samples] for samples in (epoch(order), epoch(order, 1), epoch(other))]
    assert tiles[0] != tiles[1] != tiles[2] != tiles[0]


@given(order=orders, batch=st.integers(1, 40), step=st.integers(0, 50), world=st.integers(1, 5))
def test_shares_of_any_number_of_ranks_make_the_same_step(
    order: SampleOrder, batch: int, step: int, world: int
) -> None:
    shares = [order.share(step, batch, rank, world) for rank in range(world)]
    assert sorted(np.concatenate(shares).tolist()) == list(range(step * batch, (step + 1) * batch))
    assert [len(share) for share in shares] == order.shares(step, batch, world)
    for rank, share in enumerate(shares):
        assert (order.lane(share) % world == rank).all()


@given(shares=st.lists(st.integers(0, 20), min_size=1, max_size=6).filter(any), micro=st.integers(1, 8))
def test_all_ranks_have_equally_many_micro_batches_within_the_limit(shares: list[int], micro: int) -> None:
    sizes = [micro_batches(shares, micro, rank) for rank in range(len(shares))]
    assert len({len(s) for s in sizes}) == 1
    assert [sum(s) for s in sizes] == shares
    assert max(max(s) for s in sizes) <= micro
    assert len(sizes[0]) == -(-max(shares) // micro)


@given(count=st.integers(0, 200), key=st.lists(st.integers(0, 2**40), max_size=4))
def test_a_permutation_contains_every_number_once(count: int, key: list[int]) -> None:
    assert sorted(permutation(count, *key).tolist()) == list(range(count))


@given(data=st.data(), count=st.integers(1, 2**62), key=st.lists(st.integers(0, 2**40), max_size=4))
def test_permuted_numbers_are_different_and_in_range(data: st.DataObject, count: int, key: list[int]) -> None:
    values = data.draw(st.lists(st.integers(0, count - 1), max_size=50, unique=True))
    places = permute(np.array(values, np.int64), count, *key).tolist()
    assert len(set(places)) == len(values)
    assert all(0 <= place < count for place in places)


@given(count=st.integers(1, 200), key=st.integers(0, 2**40))
def test_a_permuted_range_contains_every_number_once(count: int, key: int) -> None:
    numbers = np.arange(count)
    assert sorted(permute(numbers, count, key).tolist()) == numbers.tolist()


def test_permuted_row_groups_are_spread_like_random_ones() -> None:
    """Places of neighbours differ by a third of the range on average, and each half goes to both halves alike."""
    places = permute(np.arange(20_000), 20_000, 3, 0)
    assert abs(np.abs(np.diff(places)).mean() / 20_000 - 1 / 3) < 0.01
    assert abs((places[:10_000] < 10_000).mean() - 0.5) < 0.02


@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=30))
def test_a_table_of_row_groups_locates_every_tile(sizes: list[int]) -> None:
    table = RowGroupTable.of(sizes)
    expected = [(group, row) for group, size in enumerate(sizes) for row in range(size)]
    groups, rows = table.locate(np.arange(table.tiles))
    assert list(zip(groups.tolist(), rows.tolist(), strict=True)) == expected
    numbers = np.arange(table.count)
    assert table.sizes(numbers).tolist() == sizes
    assert np.array_equal(table.first_tiles(numbers), np.cumsum([0, *sizes[:-1]]))


def test_a_hundred_million_row_groups_need_no_table_of_them() -> None:
    """Any step is found at once, from the runs of 1,000 shards."""
    table = RowGroupTable(run for shard in range(1000) for run in [(110_000, 8), (1, 1 + shard % 7)])
    order = SampleOrder(table, seed=1, lanes=64, window=1024, crops_per_tile=4, kind="permuted")
    assert table.count == 110_001_000
    for position in (0, 7 * order.epoch_length + 123_456_789):
        samples = order.samples_at(np.arange(position, position + 512))
        assert len(set(zip(samples.tile.tolist(), samples.k.tolist(), strict=True))) == 512
        assert samples.tile.min() < 0.1 * table.tiles
        assert samples.tile.max() > 0.9 * table.tiles


@kinds
def test_a_rank_has_few_windows_of_its_own_lanes_in_memory(kind: Literal["dealt", "permuted"]) -> None:
    order = SampleOrder((8,) * 4096, seed=0, lanes=64, window=64, crops_per_tile=4, kind=kind)
    order.samples_at(order.share(0, 256, 0, 16))
    steps = range(0, order.epoch_length // 256, 8)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for step in steps:
            order.samples_at(order.share(step, 256, 0, 16))
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    window = 3 * 8 * 64 * 4
    assert after - before < 4 * 5 * window  # four lanes


def test_the_orders_are_pinned() -> None:
    """A training that goes on sees the samples that it would have seen."""
    dealt = [
        (21, 1), (2, 1), (17, 1), (22, 0), (19, 1), (15, 1), (23, 1), (1, 1), (18, 1), (22, 1), (2, 0), (15, 0),
        (24, 1), (3, 1), (16, 1), (23, 0), (1, 0), (18, 0), (10, 1), (11, 1), (22, 0), (9, 1), (11, 0), (21, 0),
    ]  # fmt: skip
    permuted = [
        (0, 1), (5, 1), (23, 1), (1, 0), (7, 1), (21, 1), (2, 1), (4, 1), (24, 1), (1, 1), (5, 0), (21, 0),
        (3, 1), (6, 1), (22, 1), (2, 0), (4, 0), (24, 0), (13, 1), (19, 1), (22, 0), (12, 1), (19, 0), (21, 0),
    ]  # fmt: skip
    row_groups = (4, 4, 3, 4, 4, 2, 4)
    pinned: list[tuple[Literal["dealt", "permuted"], list[tuple[int, int]]]]
    pinned = [("dealt", dealt), ("permuted", permuted)]
    for kind, expected in pinned:
        order = SampleOrder(row_groups, seed=3, lanes=3, window=4, crops_per_tile=2, kind=kind)
        samples = order.samples_at(np.arange(30, 54))
        assert list(zip(samples.tile.tolist(), samples.k.tolist(), strict=True)) == expected


@pytest.mark.parametrize(
    ("lanes", "world", "expected"), [(512, 504, 1.97), (8, 7, 1.75), (4096, 504, 1.11), (8, 4, 1), (8, 1, 1)]
)
def test_the_imbalance_of_lanes_is_that_of_the_rank_with_the_most(lanes: int, world: int, expected: float) -> None:
    assert imbalance(lanes, world) == pytest.approx(expected, abs=0.005)


def test_the_random_numbers_are_pinned() -> None:
    """Another generator would silently change every resumed run."""
    assert permutation(8, 1, 2, 3).tolist() == [7, 5, 4, 6, 0, 2, 1, 3]
    assert permute(np.arange(8), 8, 1, 2, 3).tolist() == [1, 4, 6, 5, 7, 3, 2, 0]
    one = Samples(*(np.array([value]) for value in (0, 1, 2)))
    assert [int(part[0]) for part in augmentations(one, seed=3, slack=24, turn=True)] == [22, 17, 5]


@settings(max_examples=20)
@given(seed=st.integers(0, 2**40), slack=st.integers(0, 30))
def test_crops_stay_within_the_tile_and_reach_its_ends(seed: int, slack: int) -> None:
    tile, k = np.divmod(np.arange(600), 4)
    samples = Samples(np.zeros(600, np.int64), tile, k)
    how = augmentations(samples, seed, slack, turn=True)
    assert set(how.y.tolist()) == set(how.x.tolist()) == set(range(slack + 1))
    assert set(how.orientation.tolist()) == set(range(8))
    for i in (0, 399):
        alone = augmentations(Samples(*(part[i : i + 1] for part in samples)), seed, slack, turn=True)
        assert [part[0] for part in alone] == [part[i] for part in how]
    assert not augmentations(samples, seed, slack, turn=False).orientation.any()


def test_refuses_more_lanes_than_row_groups() -> None:
    with pytest.raises(ValueError, match="8 lanes for 3 row groups"):
        SampleOrder((4, 4, 4), seed=0, lanes=8, window=8, crops_per_tile=1)
