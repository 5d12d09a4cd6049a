import itertools
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline import storage
from pipeline.data import parquet, patchset, preparation
from pipeline.data.copies import CopiedShards
from pipeline.data.held import HeldTiles
from pipeline.data.parquet import TILE_SCHEMA, DamagedShardError
from pipeline.data.patchset import PatchSet
from pipeline.data.reader import Batch, BatchReader
from pipeline.data.sampler import SampleOrder, augmentations
from pipeline.data.tiles import Tiles, open_tiles
from pipeline.settings import UserError
from pipeline.settings.command_line import parse
from sr_model.pixels import Pixels, to_unit
from tests.conftest import SMALL, write_photos

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> PatchSet:
    folder = tmp_path_factory.mktemp("reader")
    write_photos(folder / "photos")
    config = parse([f"--source={folder / 'photos'}", f"--home={folder / 'home'}", *SMALL], "preprocess", "")
    return preparation.prepare(config)[0]


def order_of(made: PatchSet) -> SampleOrder:
    return SampleOrder(made.row_groups, seed=1, lanes=3, window=5, crops_per_tile=2)


def reader_of(
    made: PatchSet, batch: int = 6, micro: int = 4, rank: int = 0, world: int = 1, tiles: Tiles | None = None
) -> BatchReader:
    return BatchReader(
        made,
        order_of(made),
        batch=batch,
        micro_batch=micro,
        crop=32,
        augment=True,
        rank=rank,
        world=world,
        tiles=tiles,
    )


def read(made: PatchSet, world: int, start: int, stop: int, micro: int = 4) -> list[set[bytes]]:
    """Return the patches of each step, from all ranks and micro-batches."""
    steps: list[set[bytes]] = [set() for _ in range(start, stop)]
    for rank in range(world):
        mine = reader_of(made, micro=micro, rank=rank, world=world)
        batches = mine.read(start, stop)
        for step in range(start, stop):
            for size in mine.sizes(step):
                batch = next(batches)
                assert len(batch.hr) == len(batch.lr) == len(batch.orientation) == size <= micro
                steps[step - start] |= {
                    b"".join(part.numpy().tobytes() for part in sample) for sample in zip(*batch, strict=True)
                }
        assert next(batches, None) is None
    assert all(len(step) == 6 for step in steps)
    return steps


def test_every_step_has_the_same_samples_for_all_world_and_micro_batch_sizes(made: PatchSet) -> None:
    """The steps cover more than an epoch, so the lanes get other row groups."""
    steps = 2 * order_of(made).epoch_length // 6 + 3
    alone = read(made, 1, 0, steps)
    assert read(made, 2, 0, steps, micro=1) == alone
    assert read(made, 3, 0, steps, micro=6) == alone


def test_reading_can_start_at_any_step(made: PatchSet) -> None:
    assert read(made, 1, 7, 20) == read(made, 1, 0, 20)[7:]


@pytest.fixture(scope="module")
def held(made: PatchSet) -> HeldTiles:
    tiles = open_tiles(made, "device", 0)
    assert isinstance(tiles, HeldTiles)
    return tiles


@given(st.data())
def test_all_ways_of_reading_give_the_same_batches(made: PatchSet, held: HeldTiles, data: st.DataObject) -> None:
    """They are those of a loop over the samples, for all settings, sets of tiles, ranks and places to begin at."""
    shards = data.draw(st.integers(1, len(made.shards)), "shards")
    some = itertools.islice(made.read_shards(), shards)
    part = patchset.assemble(made.url, "part", made.scale, made.manifest.settings, enumerate(some), shards)
    lanes = data.draw(st.integers(1, min(5, part.row_groups.count)), "lanes")
    order = SampleOrder(
        part.row_groups,
        seed=data.draw(st.integers(0, 3), "seed"),
        lanes=lanes,
        window=data.draw(st.integers(1, 9), "window"),
        crops_per_tile=data.draw(st.integers(1, 3), "crops"),
        kind=data.draw(st.sampled_from(["dealt", "permuted"]), "kind"),
    )
    world, start = data.draw(st.integers(1, lanes), "world"), data.draw(st.integers(0, 60), "start")
    batch, micro = data.draw(st.integers(1, 30), "batch"), data.draw(st.integers(1, 12), "micro-batch")
    crop, augment = data.draw(st.sampled_from([16, 32, 44, 48]), "crop"), data.draw(st.booleans(), "augment")

    def batches(rank: int, tiles: Tiles) -> list[Batch]:
        reader = BatchReader(
            part, order, batch=batch, micro_batch=micro, crop=crop, augment=augment, rank=rank, world=world, tiles=tiles
        )
        return list(reader.read(start, start + 5))

    rank = data.draw(st.integers(0, world - 1), "rank")
    found = batches(rank, part)
    for read, gathered in zip(found, batches(rank, held), strict=True):
        for a, b in zip(read, gathered, strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)
    positions = np.concatenate([order.share(step, batch, rank, world) for step in range(start, start + 5)])
    samples = order.samples_at(positions)
    chosen = augmentations(samples, order.seed, (48 - crop) // 4, augment)
    for i, (lr, hr) in enumerate(zip(*(torch.cat(parts) for parts in list(zip(*found, strict=True))[:2]), strict=True)):
        hr_tile, lr_tile = (tiles[samples.tile[i]] for tiles in (held.hr, held.lr))
        y, x = chosen.y[i], chosen.x[i]
        assert torch.equal(lr, lr_tile[y : y + crop // 4, x : x + crop // 4])
        assert torch.equal(hr, hr_tile[4 * y : 4 * y + crop, 4 * x : 4 * x + crop])


def test_a_batch_on_a_device_is_made_without_waiting_for_it(made: PatchSet) -> None:
    """Tensors on PyTorch's device "meta" have no values, so that it is an error to wait for one."""
    meta = torch.device("meta")
    tiles = open_tiles(made, "device", 0, device=meta)
    shapes = [tuple(part.shape for part in batch) for batch in reader_of(made, tiles=made).read(0, 9)]
    for batch, shape in zip(reader_of(made, tiles=tiles).read(0, 9), shapes, strict=True):
        assert all(part.device == meta for part in batch)
        assert tuple(part.shape for part in batch) == shape
        assert to_unit(batch.hr, meta, batch.orientation).shape == (len(batch.hr), 3, 32, 32)


def test_tiles_that_do_not_fit_the_device_are_refused_with_the_sizes(made: PatchSet) -> None:
    size_mb = made.tiles * (48 * 48 + 12 * 12) * 3 / 1e6
    assert isinstance(open_tiles(made, "device", 0, memory_mb=size_mb), HeldTiles)
    with pytest.raises(UserError) as error:
        open_tiles(made, "device", 0, memory_mb=0.9 * size_mb)
    assert str(error.value) == (
        f"data.hold is device, but the tiles take {size_mb:.0f} MB and a worker may use {0.9 * size_mb:.0f} MB of the "
        "memory of cpu: expected another data.hold, such as auto"
    )


def test_auto_uses_a_gpu_that_has_room_to_train_beside_the_tiles(made: PatchSet, tmp_path: Path) -> None:
    size_mb, other = made.tiles * (48 * 48 + 12 * 12) * 3 / 1e6, torch.device("meta")

    def device(memory_mb: float) -> str:
        tiles = open_tiles(made, "auto", 1000, str(tmp_path), other, memory_mb)
        return tiles.device.type if isinstance(tiles, HeldTiles) else "none"

    assert device(2.6 * size_mb) == "meta"
    assert device(2.4 * size_mb) == "none"
    assert not list(tmp_path.iterdir())


def test_few_tiles_are_in_memory(made: PatchSet) -> None:
    order, mine, steps = order_of(made), reader_of(made), 300
    loaded = 0
    for _ in mine.read(0, steps):
        loaded = max(loaded, mine.loaded_groups)
    assert mine.loaded_groups == 0
    last = int(order.locate(np.array(6 * steps))[0]) + 1
    windows = [order.samples(order.window_of(number, lane)) for number in range(last + 1) for lane in range(3)]
    most = max(len(set(order.table.locate(samples.tile)[0].tolist())) for samples in windows)
    assert most < loaded <= 3 * 2 * most  # three lanes, each with the current window and the next


def test_local_shards_are_mapped_and_not_copied(made: PatchSet, tmp_path: Path) -> None:
    for how in ("auto", "map", "stream"):
        assert open_tiles(made, how, 1000, str(tmp_path / "scratch")) is made
    assert not list(tmp_path.iterdir())
    copied = patchset.load(shutil.copytree(made.url, tmp_path / "set").as_posix())
    checked = [[tiles.copy() for tiles in copied.read_group(number)] for number in range(copied.row_groups.count)]
    shard = np.memmap(Path(copied.url, copied.shards[0].file), np.uint8, "r+")
    mapped = copied.read_group(0)
    assert all(np.array_equal(a, b) for a, b in zip(mapped, checked[0], strict=True))
    begin = bytes(shard).index(mapped[0][0].tobytes())
    shard[begin] ^= 255  # what is mapped changes with the file
    assert mapped[0][0, 0, 0, 0] != checked[0][0][0, 0, 0, 0]
    for number, tiles in enumerate(checked[1:], 1):
        assert all(np.array_equal(a, b) for a, b in zip(copied.read_group(number), tiles, strict=True))


def test_a_row_group_is_at_hand_after_it_was_read(made: PatchSet, remote: PatchSet, tmp_path: Path) -> None:
    copied = patchset.load(shutil.copytree(made.url, tmp_path / "set").as_posix())
    for number in range(copied.row_groups.count):
        assert copied.at_hand(number) is None
        read = copied.read_group(number)
        found = copied.at_hand(number)
        assert found is not None
        assert all(np.shares_memory(a, b) for a, b in zip(found, read, strict=True))
    copied.prefetch(range(copied.row_groups.count))
    shard = copied.shards[0]
    parquet.prefetch(f"{copied.url}/{shard.file}", 0)
    for rows, sides in ((shard.rows_of(0), (24, 12)), (shard.rows_of(0) - 1, (copied.tile, copied.tile // 4))):
        assert parquet.tiles_at_hand(f"{copied.url}/{shard.file}", 0, rows, sides) is None
        with pytest.raises(DamagedShardError):
            parquet.read_tiles(f"{copied.url}/{shard.file}", shard.bytes, 0, rows, sides)
    remote.read_group(0)
    assert remote.at_hand(0) is None


@pytest.mark.parametrize(
    "change",
    [{"compression": "zstd"}, {"use_dictionary": True}, {"data_page_size": 1}, {"write_page_checksum": False}],
)
def test_shards_that_cannot_be_mapped_are_read(made: PatchSet, tmp_path: Path, change: dict[str, Any]) -> None:
    """Their pages are compressed, numbers of other values, several, or without checksums."""
    plain = {"compression": "none", "use_dictionary": False, "write_page_checksum": True, "write_batch_size": 1}
    for shard in made.shards:
        with pq.ParquetWriter(tmp_path / shard.file, TILE_SCHEMA, **{**plain, **change}) as writer:
            file = pq.ParquetFile(Path(made.url, shard.file))
            for group in range(file.num_row_groups):
                writer.write_table(file.read_row_group(group))
    other = made.at(str(tmp_path))
    for _ in range(2):
        for number in range(made.row_groups.count):
            assert all(
                np.array_equal(a, b) for a, b in zip(other.read_group(number), made.read_group(number), strict=True)
            )
    for a, b in zip(reader_of(other, tiles=other).read(0, 9), reader_of(made).read(0, 9), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture
def remote(made: PatchSet, tmp_path: Path) -> PatchSet:
    """The patch set in an object store."""
    url = f"memory://{tmp_path.name}"
    for file in Path(made.url).rglob("*.*"):
        storage.write(f"{url}/{file.relative_to(made.url)}", file.read_bytes())
    return patchset.load(url)


def wait_for_copies(tiles: Tiles, count: int) -> None:
    assert isinstance(tiles, CopiedShards)
    end = time.monotonic() + 20
    while tiles.copied() < count:
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.usefixtures("disk")
def test_shards_in_a_store_are_copied_while_they_are_read(made: PatchSet, remote: PatchSet, tmp_path: Path) -> None:
    expected = list(reader_of(made).read(0, 30))

    def check(tiles: Tiles) -> None:
        for a, b in zip(reader_of(remote, tiles=tiles).read(0, 30), expected, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))

    check(remote)
    for how in ("map", "auto"):
        tiles = open_tiles(remote, how, 1000, str(tmp_path / how))
        check(tiles)
        wait_for_copies(tiles, len(made.shards))
        for shard in made.shards:
            copy = tmp_path / how / made.name / shard.file
            assert copy.read_bytes() == Path(made.url, shard.file).read_bytes()
        check(tiles)


@pytest.mark.usefixtures("disk")
def test_shards_without_room_stay_in_the_store(remote: PatchSet, tmp_path: Path) -> None:
    first = remote.shards[0].bytes / 1e6
    assert len(remote.shards) > 1
    tiles = open_tiles(remote, "auto", 1.01 * first, str(tmp_path))
    wait_for_copies(tiles, 1)
    assert {file.name for file in (tmp_path / remote.name).glob("*.parquet")} == {remote.shards[0].file}
    assert len(list(reader_of(remote, tiles=tiles).read(0, 30))) == 60


def test_a_damaged_copy_is_not_used(made: PatchSet, remote: PatchSet, tmp_path: Path) -> None:
    copy = tmp_path / remote.name / remote.shards[0].file
    copy.parent.mkdir()
    copy.write_bytes(bytes(remote.shards[0].bytes))
    tiles = open_tiles(remote, "auto", 0, str(tmp_path))
    assert isinstance(tiles, CopiedShards)
    assert all(np.array_equal(a, b) for a, b in zip(tiles.read_group(0), made.read_group(0), strict=True))
    assert not copy.exists()


def test_the_default_scratch_folder_is_the_users_own(
    remote: PatchSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert isinstance(open_tiles(remote, "map", 0), CopiedShards)
    (folder,) = tmp_path.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    shutil.rmtree(folder, ignore_errors=True)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "other"))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / folder.name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"is not a folder of your own .*, expected data.scratch to name a folder"):
        open_tiles(remote, "map", 0)
    assert not list((tmp_path / "elsewhere").iterdir())
    assert open_tiles(remote, "auto", 1000) is remote


def test_a_scratch_folder_that_cannot_be_used_is_named(remote: PatchSet, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot copy shards .* expected data.scratch to name a folder"):
        open_tiles(remote, "map", 0, str(tmp_path / "file" / "below"))
    assert open_tiles(remote, "auto", 1000, str(tmp_path / "file" / "below")) is remote


def test_the_lr_patch_lies_under_the_hr_patch(made: PatchSet) -> None:
    """The mean of 4x4 HR pixels is near the LR pixel only if both have the same crop and orientation."""
    batch = next(reader_of(made, batch=24, micro=24).read(0, 1))
    assert len(set(batch.orientation.tolist())) > 4
    hr, lr = (to_unit(part, CPU, batch.orientation) * 255 for part in (batch.hr, batch.lr))
    means = torch.nn.functional.avg_pool2d(hr, 4)
    near = (means - lr).abs().mean(dim=(1, 2, 3))
    turned = (means - lr.rot90(2, (2, 3))).abs().mean(dim=(1, 2, 3))
    assert near.max() < 8
    assert (near < turned).float().mean() > 0.9


def test_the_eight_orientations_are_those_of_a_square() -> None:
    image: Pixels = np.arange(27, dtype=np.uint8).reshape(1, 3, 3, 3)
    turned = to_unit(image.repeat(8, axis=0), CPU, torch.arange(8))
    assert turned.is_contiguous(memory_format=torch.channels_last)
    plain = to_unit(image, CPU)[0]
    for orientation, one in enumerate(turned):
        expected = plain.flip(2) if orientation & 1 else plain
        expected = expected.flip(1) if orientation & 2 else expected
        assert torch.equal(one, expected.transpose(1, 2) if orientation & 4 else expected)
    assert len({one.numpy().tobytes() for one in turned}) == 8


def test_an_error_while_reading_reaches_the_consumer(made: PatchSet) -> None:
    class Broken:
        readers = 1

        def read_group(self, number: int) -> tuple[Pixels, Pixels]:
            raise OSError("the store is gone")

        def at_hand(self, number: int) -> None:
            return None

        def prefetch(self, numbers: Sequence[int]) -> None:
            raise AssertionError

    with pytest.raises(OSError, match="the store is gone"):
        next(reader_of(made, tiles=Broken()).read(0, 1))
