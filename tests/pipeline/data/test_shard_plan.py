"""Tests of the split and the plan of shards, on inventories that were made up."""

import dataclasses
import hashlib
import random
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.inspected import InspectedImage, InspectedImages
from pipeline.data.locations import FileLocation
from pipeline.data.random_numbers import Ints
from pipeline.data.rejection import Rejection, RejectionKind
from pipeline.data.shard_plan import ShardPlan, group_by_hash, stored_bytes, tile_origins
from pipeline.data.split import split_images
from pipeline.settings import Config, Preprocess
from pipeline.storage import fingerprint

NOBODY = np.array([], np.int64)
Images = Sequence[InspectedImage]


def config_of(grouping: str, **settings: object) -> Config:
    return Config(preprocess=Preprocess.model_validate({"grouping": grouping, "tile": 96, **settings}))


def known(name: int, side: int, content: str = "") -> InspectedImage:
    digest = hashlib.sha256((content or f"{name} {side}").encode()).hexdigest()
    return InspectedImage(f"{name:05}.png", FileLocation(f"/{name:05}.png"), "", digest, side, side, 1, None)


def plan_of(config: Config, images: Images) -> ShardPlan:
    """Plan training shards of all images."""
    return ShardPlan(config, InspectedImages.of(images), np.arange(len(images)), NOBODY)


CONTENTS = {"one": 96, "two": 200, "three": 400, "small": 48}
"""Contents that several images may share, and the sides of these."""
mixed = st.lists(
    st.one_of(
        st.builds(known, st.integers(0, 9999), st.sampled_from([48, 96, 200, 400])),
        st.builds(
            lambda i, content: known(i, CONTENTS[content], content), st.integers(0, 9999), st.sampled_from([*CONTENTS])
        ),
    ),
    min_size=1,
    max_size=30,
    unique_by=lambda image: image.name,
)


@settings(max_examples=25)
@given(sizes=st.lists(st.integers(96, 400), min_size=1, max_size=40), target=st.floats(0.05, 2))
def test_a_plan_by_name_keeps_the_order_and_every_image(sizes: list[int], target: float) -> None:
    images = [known(i, side) for i, side in enumerate(sizes)]
    plan = plan_of(config_of("name", shard_mb=target), images)
    assert [p for spec in plan for p in spec.images] == images
    assert plan.files == [spec.file for spec in plan] == [plan[i].file for i in range(len(plan))]


@settings(max_examples=25)
@given(gone=st.integers(0, 999))
def test_a_plan_by_name_keeps_most_shards_of_a_changed_source(gone: int) -> None:
    """A removed image changes only the shards near it; with fixed sizes, all later shards would change."""
    config = config_of("name", shard_mb=0.5)
    images = [known(i, 96) for i in range(1000)]
    before = set(plan_of(config, images).files)
    del images[gone]
    after = set(plan_of(config, images).files)
    assert len(before) > 40
    assert len(after - before) <= 8


def test_shards_by_name_are_of_the_target_size_on_average() -> None:
    plan = plan_of(config_of("name", shard_mb=1), [known(i, 96) for i in range(8000)])
    sizes = [len(spec.images) * 96 * 96 * 3 / 1e6 for spec in plan][:-1]
    assert 0.9 < np.mean(sizes) < 1.1
    assert min(sizes) >= 0.5
    assert max(sizes) < 2.05


def test_plans_by_name_have_not_changed() -> None:
    """Old patch sets and trainings are found by the names of their shards."""
    draw = random.Random(0)
    images = []
    for number in range(400):
        image = known(number, draw.choice([40, 100, 333]), f"content {draw.randrange(300)}")
        damaged = Rejection(RejectionKind.DAMAGED, "cannot be decoded") if number % 50 == 0 else None
        images.append(dataclasses.replace(image, rejected=damaged))
    inventory = InspectedImages.of(images)
    marks = []
    for holdout, max_side in (([], None), (["001*"], 200)):
        config = config_of("name", shard_mb=1, holdout=holdout, holdout_count=5, max_side=max_side)
        split = split_images(config, inventory)
        plan = ShardPlan(config, inventory, split.train, split.holdout)
        marks.append(fingerprint([plan.files, [dataclasses.asdict(record) for record in split.rejected]]))
    assert marks == ["bd182eb4b66d", "9df7353d87d1"]


@settings(max_examples=25)
@given(images=mixed, seed=st.integers(0, 9), target=st.floats(0.02, 1))
def test_a_plan_by_hash_depends_on_content_alone_and_has_every_image_once(
    images: list[InspectedImage], seed: int, target: float
) -> None:
    config = config_of("hash", shard_mb=target, holdout_count=2)

    def shards(images: Images) -> list[list[str]]:
        inventory = InspectedImages.of(images)
        split = split_images(config, inventory)
        plan = ShardPlan(config, inventory, split.train, split.holdout)
        assert plan.images + len(split.rejected) == len(images)
        return [[image.sha256 for image in spec.images] for spec in plan]

    found = shards(sorted(images, key=lambda image: image.name))
    used = [digest for shard in found for digest in shard]
    assert len(set(used)) == len(used)
    assert {image.sha256 for image in images if image.width >= 96} <= set(used)
    renamed = [dataclasses.replace(image, name=f"{random.Random(image.name + str(seed)).random()}") for image in images]
    assert shards(sorted(renamed, key=lambda image: image.name)) == found


@settings(max_examples=25)
@given(
    sides=st.lists(st.sampled_from([96, 200, 400]), min_size=2, max_size=40),
    changed=st.integers(0, 39),
    target=st.floats(0.03, 1),
)
def test_a_changed_image_changes_the_shard_that_it_leaves_and_the_one_that_it_joins(
    sides: list[int], changed: int, target: float
) -> None:
    """What it leaves is one shard at most, joined with its neighbours if it is small; what it joins may be divided."""
    config = config_of("hash", shard_mb=target)
    images = [known(i, side) for i, side in enumerate(sides)]
    before = set(plan_of(config, images).files)
    old = images.pop(changed % len(images))
    without = {spec.file: spec for spec in plan_of(config, images)}
    new = dataclasses.replace(old, sha256=hashlib.sha256(b"new").hexdigest())
    after = {spec.file: spec for spec in plan_of(config, [*images, new])}
    assert len(without.keys() - before) <= 1
    joined, made = without.keys() - after.keys(), after.keys() - without.keys()
    assert len(joined) <= 1
    assert sorted(image.sha256 for file in made for image in after[file].images) == sorted(
        [new.sha256, *(image.sha256 for file in joined for image in without[file].images)]
    )
    for spec in after.values():
        widths = np.array([image.width for image in spec.images])
        size = stored_bytes(widths, widths, config.preprocess, config.scale, False).sum()
        assert size <= 2e6 * target or len(spec.images) == 1


def test_among_a_million_images_a_changed_one_rewrites_two_shards_and_rarely_a_third() -> None:
    """The third one comes from a shard that is divided."""
    rng = np.random.default_rng(0)
    hashes = np.sort(rng.integers(0, 2**64, 10**6, np.uint64))
    sizes = rng.integers(1, 20, len(hashes)) * 10**6

    def shards(hashes: npt.NDArray[np.uint64], sizes: Ints) -> npt.NDArray[np.uint64]:
        """Return the sum of the hashes in each shard, which identifies its images."""
        ends = group_by_hash(hashes, sizes, 128e6)
        begins = np.concatenate([[0], ends[:-1]])
        assert ends[-1] == len(hashes)
        stored = np.add.reduceat(sizes, begins)
        assert stored.max() <= 256e6
        assert (stored < 64e6).mean() < 0.02
        return np.add.reduceat(hashes, begins)

    before, rewritten = shards(hashes, sizes), []
    for number in rng.integers(len(hashes), size=8).tolist():
        value = rng.integers(2**64, dtype=np.uint64)
        without, others = np.delete(hashes, number), np.delete(sizes, number)
        place = np.searchsorted(without, value)
        after = shards(np.insert(without, place, value), np.insert(others, place, sizes[number]))
        rewritten.append(len(np.setdiff1d(after, before)))
    assert max(rewritten) <= 3
    assert sum(count <= 2 for count in rewritten) > 4


@given(side=st.integers(1, 700), stride=st.sampled_from([None, 40, 96, 200]), limit=st.sampled_from([None, 64, 300]))
def test_the_size_of_many_images_is_that_of_their_tiles(side: int, stride: int | None, limit: int | None) -> None:
    settings = Preprocess(tile=96, stride=stride, max_side=limit)
    reduced = side if limit is None or side <= limit else limit
    count = len(tile_origins(reduced // 4 * 4, settings))
    sides = np.array([side, side])
    assert stored_bytes(sides, sides, settings, 4, False).tolist() == [count**2 * 96**2 * 3] * 2
    assert stored_bytes(sides, sides, settings, 4, True).tolist() == [reduced**2 * 3] * 2


def test_a_pattern_also_matches_the_name_that_it_is() -> None:
    names = ["a[1].png", "a1.png", "cafe\u0301.png"]
    images = InspectedImages.of(dataclasses.replace(known(i, 96), name=name) for i, name in enumerate(names))

    def held_out(pattern: str) -> list[str]:
        split = split_images(config_of("name", holdout=[pattern]), images)
        return [images[row].name for row in split.holdout.tolist()]

    assert held_out("a[1]") == ["a1.png", "a[1].png"]
    assert held_out("a[1].png") == ["a1.png", "a[1].png"]
    assert held_out("caf\u00e9") == ["cafe\u0301.png"]  # the same letters in another form


@pytest.mark.parametrize("grouping", ["name", "hash"])
def test_of_equal_images_a_held_out_one_is_kept_and_then_the_first(grouping: str) -> None:
    images = [known(1, 200, "a"), known(2, 200, "a"), known(3, 200, "b"), known(4, 200, "b"), known(5, 40, "c")]
    split = split_images(config_of(grouping, holdout=["00004*"]), InspectedImages.of(images))
    assert (split.train.tolist(), split.holdout.tolist()) == ([0], [3])
    assert [(record.name, str(record.rejected)) for record in split.rejected] == [
        ("00002.png", "has the same content as 00001.png"),
        ("00003.png", "has the same content as 00004.png"),
        ("00005.png", "40x40 is too small, expected at least 96 pixels a side"),
    ]
