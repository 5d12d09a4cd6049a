"""Row groups of training shards: what is compared when they are read, and what stays in memory."""

import gc
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.data import parquet
from pipeline.data.pages import Pages, memory_of
from pipeline.data.parquet import DamagedShardError
from pipeline.data.recent import Recent
from sr_model.pixels import Pixels

SIDES = (32, 8)


def write_shard(file: Path, groups: int) -> list[Pixels]:
    """Write a shard with one tile in each row group, and return its HR tiles."""
    tiles = []
    with parquet.create_shard(file, parquet.TILE_SCHEMA) as writer:
        for number in range(groups):
            hr, lr = (np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8) for side in SIDES)
            zeros = pa.array([0], pa.int32())
            columns = [pa.array(["a"]), zeros, zeros, parquet.pack([hr]), parquet.pack([lr])]
            writer.write_table(pa.Table.from_arrays(columns, schema=parquet.TILE_SCHEMA))
            tiles.append(hr)
    return tiles


def read(url: str, size: int, group: int) -> Pixels:
    tile: Pixels = parquet.read_tiles(url, size, group, 1, SIDES)[0][0]
    return tile


@pytest.fixture(params=["mapped", "fetched"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a shard lies: in a local folder, or in an object store."""
    return str(tmp_path / "shard.parquet") if request.param == "mapped" else f"memory://{tmp_path.name}/shard.parquet"


def test_memory_does_not_grow_with_the_row_groups_that_were_read(url: str, tmp_path: Path) -> None:
    """Every rank reads all row groups of its lanes in each epoch, which are a million in a large patch set."""
    tiles = write_shard(tmp_path / "written.parquet", 1000)
    content = (tmp_path / "written.parquet").read_bytes()
    storage.write(url, bytes(content))
    assert np.array_equal(read(url, len(content), 0), tiles[0])
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for group, tile in enumerate(tiles):
            assert np.array_equal(read(url, len(content), group), tile)
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - before < 30_000
    finally:
        tracemalloc.stop()


def test_a_row_group_is_compared_with_its_checksums_whenever_it_was_fetched(url: str, tmp_path: Path) -> None:
    """A mapped one is compared once, because then it only has to stay as it is."""
    (tile, *_) = write_shard(tmp_path / "written.parquet", 2)
    content = bytearray((tmp_path / "written.parquet").read_bytes())
    storage.write(url, bytes(content))
    assert np.array_equal(read(url, len(content), 0), tile)
    place = content.index(tile.tobytes())
    content[place] ^= 1
    if storage.is_url(url):
        storage.write(url, bytes(content))
        with pytest.raises(DamagedShardError, match="is damaged"):
            read(url, len(content), 0)
    else:
        np.memmap(url, np.uint8, "r+")[place] ^= 1
        assert (read(url, len(content), 0) != tile).sum() == 1


def test_a_shard_with_too_few_row_groups_is_damaged(url: str, tmp_path: Path) -> None:
    write_shard(tmp_path / "written.parquet", 2)
    content = (tmp_path / "written.parquet").read_bytes()
    storage.write(url, bytes(content))
    with pytest.raises(DamagedShardError, match="is damaged"):
        read(url, len(content), 2)


def test_the_pages_that_were_used_last_stay_in_memory_up_to_a_number_of_bytes(tmp_path: Path) -> None:
    write_shard(tmp_path / "shard.parquet", 20)
    numbers = {name: parquet.TILE_SCHEMA.get_field_index(name) for name in ("hr", "lr")}
    size = (tmp_path / "shard.parquet").stat().st_size
    pages = Pages.of(pq.read_metadata(tmp_path / "shard.parquet"), numbers, size)
    recent, found = Recent[Pages | None](10_000, memory_of), list[str]()

    def find(url: str) -> None:
        def read() -> Pages | None:
            found.append(url)
            return pages

        assert recent.find(url, read) is pages
        assert recent.size <= 10_000

    for number in range(100):
        find(f"{number}")
        find("0")
    assert len(found) == 100
    assert recent.size > 8000
    find("99")
    find("1")
    assert found[100:] == ["1"]
    assert recent.find("unusable", lambda: None) is None
    assert recent.find("unusable", lambda: pages) is None
    assert recent.get("1") is pages
    assert recent.get("never found") is None
