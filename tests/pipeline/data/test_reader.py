from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.data import preparation
from pipeline.data.patchset import PatchSet
from pipeline.data.reader import BatchReader
from pipeline.data.sampler import SampleOrder, Window
from pipeline.data.tiles import MappedTiles, Tiles, open_tiles
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
                    b"".join(part.tobytes() for part in sample) for sample in zip(*batch, strict=True)
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


def test_mapped_tiles_give_the_same_batches_and_are_unpacked_once(made: PatchSet, tmp_path: Path) -> None:
    mapped = open_tiles(made, "auto", 1000, str(tmp_path))
    assert isinstance(mapped, MappedTiles)
    for streamed, from_map in zip(reader_of(made).read(0, 40), reader_of(made, tiles=mapped).read(0, 40), strict=True):
        for a, b in zip(streamed, from_map, strict=True):
            assert np.array_equal(a, b)
    unpacked = {file: file.stat() for file in tmp_path.rglob("*") if file.is_file() and file.suffix != ".lock"}
    assert {file.name for file in unpacked} == {"hr", "lr"}
    assert isinstance(open_tiles(made, "map", 0, str(tmp_path)), MappedTiles)
    assert all(
        (file.stat().st_ino, file.stat().st_mtime_ns) == (was.st_ino, was.st_mtime_ns) for file, was in unpacked.items()
    )


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


def test_a_partly_unpacked_set_is_unpacked_again(made: PatchSet, tmp_path: Path) -> None:
    left = tmp_path / f"{made.name}.part"
    left.mkdir()
    (left / "hr").write_bytes(b"half")
    tiles = open_tiles(made, "map", 0, str(tmp_path))
    assert np.array_equal(tiles.read_group(1)[0], made.read_group(1)[0])
    assert not left.exists()


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
    image: Pixels = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    turned = [to_unit(image, CPU, np.array([o], np.uint8)) for o in range(8)]
    expected = [torch.rot90(x, k, (2, 3)) for x in (turned[0], turned[0].flip(3)) for k in range(4)]
    assert torch.equal(turned[0], to_unit(image, CPU))
    assert {t.numpy().tobytes() for t in turned} == {e.contiguous().numpy().tobytes() for e in expected}


def test_an_error_while_reading_reaches_the_consumer(made: PatchSet) -> None:
    class Broken:
        def read_group(self, number: int) -> tuple[Pixels, Pixels]:
            raise OSError("the store is gone")

    with pytest.raises(OSError, match="the store is gone"):
        next(reader_of(made, tiles=Broken()).read(0, 1))
