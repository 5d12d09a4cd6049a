"""Copies of shards on a node: reads are the same with and without them, and the disk does not fill up."""

import gc
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.simulated import Objects
from pipeline.data import parquet, patchset
from pipeline.data.copies import CopiedShards
from pipeline.data.manifest import Shard
from pipeline.data.patchset import PatchSet
from pipeline.settings import Preprocess
from sr_model.pixels import Pixels

SHARDS, GROUPS, TILES = 6, 3, 4
"""Shards, row groups in each of them, and tiles in each of these."""
UNLIMITED = float("inf")


@pytest.fixture
def written(tmp_path: Path) -> PatchSet:
    """A local patch set whose shards have about the same size."""
    folder, shards = tmp_path / "written", []
    folder.mkdir()
    for number in range(SHARDS):
        rng = np.random.default_rng(number)
        file = folder / f"train-{number}.parquet"
        with parquet.create_shard(file, parquet.TILE_SCHEMA) as writer:
            for _ in range(GROUPS):
                images = (list(rng.integers(0, 256, (TILES, side, side, 3), np.uint8)) for side in (32, 8))
                zeros = pa.array([0] * TILES, pa.int32())
                columns = [pa.array(["a"] * TILES), zeros, zeros, *map(parquet.pack, images)]
                writer.write_table(pa.Table.from_arrays(columns, schema=parquet.TILE_SCHEMA))
        shards.append(Shard(file.name, [TILES] * GROUPS, file.stat().st_size, "", []))
    return patchset.assemble(str(folder), "set", 4, Preprocess(tile=32), enumerate(shards), SHARDS)


@pytest.fixture
def remote(written: PatchSet, store: Objects) -> PatchSet:
    """The same patch set in an object store."""
    for shard in written.shards:
        store.put(f"set/{shard.file}", Path(written.url, shard.file).read_bytes())
    return written.at("simulated://set")


def tiles(source: CopiedShards | PatchSet) -> list[tuple[Pixels, Pixels]]:
    return [source.read_group(number) for number in range(SHARDS * GROUPS)]


def assert_same(source: CopiedShards, expected: PatchSet) -> None:
    for pair, other in zip(tiles(source), tiles(expected), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(pair, other, strict=True))


def wait_for(copies: CopiedShards, count: int) -> None:
    """Wait until so many shards are copied, and a little longer in case that more are."""
    end = time.monotonic() + 20
    while copies.copied() < count:
        assert time.monotonic() < end, f"{copies.copied()} of {count} shards are copied"
        time.sleep(0.005)
    time.sleep(0.1)
    assert copies.copied() == count


@pytest.mark.usefixtures("disk")
def test_row_groups_are_the_same_before_and_after_they_are_copied(
    written: PatchSet, remote: PatchSet, store: Objects, tmp_path: Path
) -> None:
    store.latency = 0.02
    copies = CopiedShards(remote, tmp_path / "copies", UNLIMITED)
    assert copies.readers == remote.readers
    assert_same(copies, written)
    wait_for(copies, SHARDS)
    store.requests.clear()
    assert_same(copies, written)
    assert not store.requests
    for shard in written.shards:
        assert (tmp_path / "copies" / shard.file).read_bytes() == Path(written.url, shard.file).read_bytes()


@pytest.mark.usefixtures("disk")
def test_processes_of_a_node_copy_each_shard_once(remote: PatchSet, store: Objects, tmp_path: Path) -> None:
    store.latency = 0.01
    several = [CopiedShards(remote, tmp_path, UNLIMITED) for _ in range(3)]
    for copies in several:
        wait_for(copies, SHARDS)
    assert store.requests.count("get") == SHARDS
    wait_for(CopiedShards(remote, tmp_path, UNLIMITED), SHARDS)
    assert store.requests.count("get") == SHARDS


@pytest.mark.usefixtures("disk")
@pytest.mark.parametrize("room", [0, 2, 3.9])
def test_no_more_shards_are_copied_than_the_budget_allows(
    written: PatchSet, remote: PatchSet, tmp_path: Path, room: float
) -> None:
    copies = CopiedShards(remote, tmp_path / "copies", 1.001 * room * written.shards[0].bytes / 1e6)
    wait_for(copies, int(room))
    assert_same(copies, written)


@pytest.mark.parametrize(
    ("budget_mb", "total", "spare", "expected"),
    [
        (1000, 1e12, lambda size: 2 * 3 * size, 3),
        (1000, 1e12, lambda size: 0, 0),
        (UNLIMITED, 1e12, lambda size: 1e11 + 3 * size, 3),
        (UNLIMITED, 1e12, lambda size: 9e10, 0),
        (UNLIMITED, 5e9, lambda size: 1e9 + 2 * size, 2),
    ],
)
def test_a_part_of_the_disk_stays_free(
    remote: PatchSet,
    tmp_path: Path,
    disk: Callable[[float, float], None],
    budget_mb: float,
    total: float,
    spare: Callable[[float], float],
    expected: int,
) -> None:
    """With a limit, this is half of what is free. Without one, it is a tenth of the disk, or 1 GB."""
    disk(total, spare(1.001 * max(remote.shards.bytes)))
    wait_for(CopiedShards(remote, tmp_path, budget_mb), expected)


@pytest.mark.usefixtures("disk")
def test_a_lost_or_incomplete_copy_is_replaced_by_the_store(
    written: PatchSet, remote: PatchSet, store: Objects, tmp_path: Path
) -> None:
    copies = CopiedShards(remote, tmp_path / "copies", UNLIMITED)
    wait_for(copies, SHARDS)
    assert_same(copies, written)
    first, second, *_ = (tmp_path / "copies" / shard.file for shard in written.shards)
    first.unlink()
    second.write_bytes(second.read_bytes()[:100])
    store.requests.clear()
    assert_same(copies, written)
    assert store.requests
    assert copies.copied() == SHARDS - 2
    shutil.rmtree(tmp_path / "copies")
    assert_same(copies, written)


@pytest.mark.usefixtures("disk")
def test_a_store_that_fails_leaves_reading_to_say_so(
    written: PatchSet, remote: PatchSet, store: Objects, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (lost, *_) = written.shards
    content = store.contents.pop(f"set/{lost.file}")
    store.keys.remove(f"set/{lost.file}")
    copies = CopiedShards(remote, tmp_path / "copies", UNLIMITED)
    wait_for(copies, SHARDS - 1)
    assert f"cannot copy shards to {tmp_path / 'copies'}" in capsys.readouterr().err
    with pytest.raises(parquet.DamagedShardError, match=f"{lost.file} is missing"):
        copies.read_group(0)
    store.put(f"set/{lost.file}", content)
    assert_same(copies, written)


@pytest.mark.usefixtures("disk")
def test_copying_ends_with_the_object(remote: PatchSet, store: Objects, tmp_path: Path) -> None:
    store.latency = 0.2
    copies = CopiedShards(remote, tmp_path, UNLIMITED)
    del copies
    gc.collect()
    time.sleep(0.8)
    assert len(list(tmp_path.glob("train-*.parquet"))) <= 4  # those that were on the way
