from collections import Counter
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.sampler import SampleOrder, Samples, augmentations, micro_batches, permutation

orders = st.builds(
    SampleOrder,
    row_groups=st.lists(st.integers(1, 6), min_size=4, max_size=30).map(tuple),
    seed=st.integers(0, 2**40),
    lanes=st.integers(1, 4),
    window=st.integers(1, 12),
    crops_per_tile=st.integers(1, 4),
)


class Sample(NamedTuple):
    epoch: int
    tile: int
    k: int


def sample(order: SampleOrder, position: int) -> Sample:
    window, index = order.locate(position)
    return Sample(*(int(part[index]) for part in order.samples(window)))


def epoch(order: SampleOrder, number: int = 0) -> list[Sample]:
    return [sample(order, number * order.epoch_length + i) for i in range(order.epoch_length)]


@given(order=orders)
def test_an_epoch_repeats_no_sample_and_has_a_fixed_length(order: SampleOrder) -> None:
    for number in (0, 3):
        samples = epoch(order, number)
        assert len(set(samples)) == len(samples) == order.tiles // order.lanes * order.lanes * order.crops_per_tile
        assert {sample.epoch for sample in samples} == {number}
        assert all(0 <= sample.tile < order.tiles for sample in samples)


def test_with_equal_row_groups_an_epoch_takes_every_crop_of_every_tile_once() -> None:
    order = SampleOrder((4,) * 12, seed=5, lanes=3, window=8, crops_per_tile=2)
    assert sorted((s.tile, s.k) for s in epoch(order)) == [(tile, k) for tile in range(48) for k in range(2)]


@given(order=orders)
def test_position_i_comes_from_lane_i_mod_lanes(order: SampleOrder) -> None:
    ends = [sum(order.row_groups[: i + 1]) for i in range(len(order.row_groups))]
    for i, sample in enumerate(epoch(order)):
        group = next(g for g, end in enumerate(ends) if sample.tile < end)
        assert group in order.groups(0, i % order.lanes)


@given(order=orders)
def test_a_window_names_the_row_groups_of_its_samples_and_the_window_after_it(order: SampleOrder) -> None:
    ends = np.cumsum(order.row_groups)
    windows = dict.fromkeys(order.locate(position)[0] for position in range(2 * order.epoch_length))
    for window in windows:
        groups = np.searchsorted(ends, order.samples(window).tile, side="right")
        assert set(groups.tolist()) == set(order.window_groups(window))
        assert order.next_window(window) in windows or window.epoch == 1


@given(order=orders)
def test_every_row_group_is_dealt_to_one_lane(order: SampleOrder) -> None:
    dealt = Counter(group for lane in range(order.lanes) for group in order.groups(2, lane).tolist())
    assert dealt == Counter(range(len(order.row_groups)))


@given(order=orders)
def test_the_order_is_a_function_of_its_settings_alone(order: SampleOrder) -> None:
    again = SampleOrder(order.row_groups, order.seed, order.lanes, order.window, order.crops_per_tile)
    backwards = [sample(again, i) for i in reversed(range(order.epoch_length))]
    assert backwards[::-1] == epoch(order)


@given(order=orders, data=st.data())
def test_the_samples_at_several_positions_are_those_at_each(order: SampleOrder, data: st.DataObject) -> None:
    positions = data.draw(st.lists(st.integers(0, 3 * order.epoch_length), max_size=40))
    found = order.samples_at(np.array(positions, np.int64))
    assert [Sample(*row) for row in zip(*(part.tolist() for part in found), strict=True)] == [
        sample(order, position) for position in positions
    ]


def test_seed_and_epoch_change_the_order() -> None:
    order = SampleOrder((4,) * 8, seed=0, lanes=2, window=8, crops_per_tile=2)
    other = SampleOrder((4,) * 8, seed=1, lanes=2, window=8, crops_per_tile=2)
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


def test_the_random_numbers_are_pinned() -> None:
    """Another generator would silently change every resumed run."""
    assert permutation(8, 1, 2, 3).tolist() == [7, 5, 4, 6, 0, 2, 1, 3]
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
