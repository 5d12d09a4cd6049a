import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data import patchset, preparation
from pipeline.data.held import HeldTiles
from pipeline.data.parquet import DamagedShardError
from pipeline.data.patchset import PatchSet
from pipeline.data.reader import Batch, BatchReader
from pipeline.data.sampler import SampleOrder, Window
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


@pytest.fixture(scope="module", params=["map", "device"])
def held(request: pytest.FixtureRequest, made: PatchSet, tmp_path_factory: pytest.TempPathFactory) -> HeldTiles:
    """The tiles in an unpacked copy, and in the memory of the device."""
    tiles = open_tiles(made, request.param, 0, str(tmp_path_factory.mktemp("scratch")))
    assert isinstance(tiles, HeldTiles)
    return tiles


@given(st.data())
def test_held_tiles_give_the_same_batches_as_streamed_ones(
    made: PatchSet, held: HeldTiles, data: st.DataObject
) -> None:
    """This holds for all settings, sets of tiles, ranks and places to begin at."""
    shards = data.draw(st.integers(1, len(made.shards)), "shards")
    part = PatchSet(made.url, dataclasses.replace(made.manifest, shards=made.shards[:shards]))
    lanes = data.draw(st.integers(1, min(5, len(part.row_groups))), "lanes")
    order = SampleOrder(
        part.row_groups,
        seed=data.draw(st.integers(0, 3), "seed"),
        lanes=lanes,
        window=data.draw(st.integers(1, 9), "window"),
        crops_per_tile=data.draw(st.integers(1, 3), "crops"),
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
    for streamed, gathered in zip(batches(rank, part), batches(rank, held), strict=True):
        for a, b in zip(streamed, gathered, strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)


def test_a_batch_on_a_device_is_made_without_waiting_for_it(made: PatchSet) -> None:
    """Tensors on PyTorch's device "meta" have no values, so that it is an error to wait for one."""
    meta = torch.device("meta")
    tiles = open_tiles(made, "device", 0, device=meta)
    shapes = [tuple(part.shape for part in batch) for batch in reader_of(made, tiles=made).read(0, 9)]
    for batch, shape in zip(reader_of(made, tiles=tiles).read(0, 9), shapes, strict=True):
        assert all(part.device == meta for part in batch)
        assert tuple(part.shape for part in batch) == shape
        assert to_unit(batch.hr, meta, batch.orientation).shape == (len(batch.hr), 3, 32, 32)


def test_tiles_are_unpacked_once(made: PatchSet, tmp_path: Path) -> None:
    assert isinstance(open_tiles(made, "auto", 1000, str(tmp_path)), HeldTiles)
    unpacked = {file: file.stat() for file in tmp_path.rglob("*") if file.is_file() and file.suffix != ".lock"}
    assert {file.name for file in unpacked} == {"hr", "lr", "finished.json"}
    assert isinstance(open_tiles(made, "map", 0, str(tmp_path)), HeldTiles)
    assert all(
        (file.stat().st_ino, file.stat().st_mtime_ns) == (was.st_ino, was.st_mtime_ns) for file, was in unpacked.items()
    )


def test_tiles_on_the_device_need_no_disk_and_use_a_copy_that_is_there(made: PatchSet, tmp_path: Path) -> None:
    copied = patchset.load(shutil.copytree(made.url, tmp_path / "set").as_posix())
    scratch = tmp_path / "scratch"
    open_tiles(copied, "device", 0, str(scratch))
    assert not scratch.exists()
    open_tiles(copied, "map", 0, str(scratch))
    missing = Path(copied.url, copied.shards[-1].file)
    missing.unlink()
    tiles = open_tiles(copied, "device", 0, str(scratch))
    assert isinstance(tiles, HeldTiles)
    assert_complete(tiles, made)
    shutil.rmtree(scratch)
    unread = patchset.load(shutil.copytree(copied.url, tmp_path / "unread").as_posix())  # no file of it is open
    with pytest.raises(DamagedShardError, match=f"{missing.name} is missing"):
        open_tiles(unread, "device", 0, str(scratch))


def test_tiles_that_do_not_fit_the_device_are_refused_with_the_sizes(made: PatchSet) -> None:
    size_mb = sum(made.row_groups) * (48 * 48 + 12 * 12) * 3 / 1e6
    assert isinstance(open_tiles(made, "device", 0, memory_mb=size_mb), HeldTiles)
    with pytest.raises(UserError) as error:
        open_tiles(made, "device", 0, memory_mb=0.9 * size_mb)
    assert str(error.value) == (
        f"data.hold is device, but the tiles take {size_mb:.0f} MB and a worker may use {0.9 * size_mb:.0f} MB of the "
        "memory of cpu: expected another data.hold, such as auto"
    )


def test_auto_uses_a_gpu_that_has_room_to_train_beside_the_tiles(made: PatchSet, tmp_path: Path) -> None:
    size_mb, other = sum(made.row_groups) * (48 * 48 + 12 * 12) * 3 / 1e6, torch.device("meta")

    def device(memory_mb: float) -> str:
        tiles = open_tiles(made, "auto", 1000, str(tmp_path), other, memory_mb)
        assert isinstance(tiles, HeldTiles)
        return tiles.device.type

    assert device(2.6 * size_mb) == "meta"
    assert not list(tmp_path.iterdir())
    assert device(2.4 * size_mb) == "cpu"
    assert open_tiles(made, "auto", 0, str(tmp_path / "none"), other, 0) is made


def assert_complete(tiles: HeldTiles, made: PatchSet) -> None:
    groups = [made.read_group(number) for number in range(len(made.row_groups))]
    for held, parts in zip((tiles.hr, tiles.lr), zip(*groups, strict=True), strict=True):
        assert np.array_equal(held.numpy(), np.concatenate(parts))


def test_a_set_beyond_the_budget_is_streamed_with_few_tiles_in_memory(made: PatchSet, tmp_path: Path) -> None:
    assert open_tiles(made, "auto", 0.001, str(tmp_path)) is made
    assert open_tiles(made, "stream", 1000, str(tmp_path)) is made
    assert not [file for file in tmp_path.iterdir() if file.suffix != ".lock"]
    mine = reader_of(made)
    loaded = 0
    for _ in mine.read(0, 60):
        loaded = max(loaded, mine.loaded_groups)
    window = max(len(order_of(made).window_groups(w)) for w in _windows(made))
    assert window < loaded <= 3 * 2 * window  # three lanes, each with the current window and the next


def _windows(made: PatchSet) -> list[Window]:
    order = order_of(made)
    return list({order.locate(position)[0] for position in range(2 * order.epoch_length)})


def _no_marker(copy: Path) -> None:
    (copy / "finished.json").unlink()


def _half_a_marker(copy: Path) -> None:
    (copy / "finished.json").write_bytes((copy / "finished.json").read_bytes()[:20])


def _shorter(copy: Path) -> None:
    (copy / "hr").write_bytes((copy / "hr").read_bytes()[:-1])


def _zeros(copy: Path) -> None:
    (copy / "lr").write_bytes(bytes((copy / "lr").stat().st_size))


def _one_file_missing(copy: Path) -> None:
    (copy / "lr").unlink()


def _nothing_but_a_part(copy: Path) -> None:
    for name in ("lr", "finished.json"):
        (copy / name).unlink()
    (copy / "hr").write_bytes(b"half")


@pytest.mark.parametrize(
    "damage", [_no_marker, _half_a_marker, _shorter, _zeros, _one_file_missing, _nothing_but_a_part]
)
def test_a_damaged_or_unfinished_copy_is_unpacked_again(
    made: PatchSet, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    open_tiles(made, "map", 0, str(tmp_path))
    damage(tmp_path / made.name)
    tiles = open_tiles(made, "map", 0, str(tmp_path))
    assert isinstance(tiles, HeldTiles)
    assert_complete(tiles, made)


def test_a_copy_of_other_shards_with_the_same_name_is_unpacked_again(made: PatchSet, tmp_path: Path) -> None:
    reversed_shards = dataclasses.replace(made.manifest, shards=made.shards[::-1])
    open_tiles(PatchSet(made.url, reversed_shards), "map", 0, str(tmp_path))
    tiles = open_tiles(made, "map", 0, str(tmp_path))
    assert isinstance(tiles, HeldTiles)
    assert_complete(tiles, made)


def test_a_copy_is_not_finished_if_unpacking_fails(made: PatchSet, tmp_path: Path) -> None:
    broken = patchset.load(shutil.copytree(made.url, tmp_path / "set").as_posix())
    Path(broken.url, broken.shards[-1].file).unlink()
    scratch = tmp_path / "scratch"
    missing = f"{broken.shards[-1].file} is missing"
    with pytest.raises(DamagedShardError, match=missing):
        open_tiles(broken, "map", 0, str(scratch))
    with pytest.raises(DamagedShardError, match=missing):  # streaming would not read it either
        open_tiles(broken, "auto", 1000, str(scratch))
    assert not (scratch / made.name).exists()


def test_the_default_scratch_folder_is_the_users_own(
    made: PatchSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert isinstance(open_tiles(made, "map", 0), HeldTiles)
    (folder,) = tmp_path.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    shutil.rmtree(folder)
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"is not a folder of your own .*; data.scratch can also name a folder"):
        open_tiles(made, "map", 0)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_scratch_folder_that_cannot_be_used_is_named(made: PatchSet, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot unpack .* expected data.scratch to name a folder"):
        open_tiles(made, "map", 0, str(tmp_path / "file" / "below"))
    assert open_tiles(made, "auto", 1000, str(tmp_path / "file" / "below")) is made


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
        def read_group(self, number: int) -> tuple[Pixels, Pixels]:
            raise OSError("the store is gone")

    with pytest.raises(OSError, match="the store is gone"):
        next(reader_of(made, tiles=Broken()).read(0, 1))
