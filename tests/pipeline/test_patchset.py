import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline import patchset, preprocess
from pipeline.config import UserError, parse
from pipeline.patchset import PatchSet
from pipeline.reader import BatchReader
from pipeline.sampler import SampleOrder
from tests.conftest import SMALL, write_photos

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> PatchSet:
    folder = tmp_path_factory.mktemp("patchset")
    write_photos(folder / "photos")
    config = parse([f"--source={folder / 'photos'}", f"--home={folder / 'home'}", *SMALL], "run", "")
    return preprocess.prepare(config)[0]


def test_a_row_is_a_tile_of_raw_bytes(made: PatchSet) -> None:
    file = pq.ParquetFile(f"{made.url}/{made.shards[0].file}")
    assert file.schema_arrow.equals(patchset.TILE_SCHEMA)
    row = file.read_row_group(0).to_pylist()[0]
    assert (len(row["hr"]), len(row["lr"])) == (48 * 48 * 3, 12 * 12 * 3)
    assert file.metadata.metadata[b"scale"] == b"4"


def test_row_groups_hold_what_the_rows_hold(made: PatchSet) -> None:
    number = 0
    for shard in made.shards:
        file = pq.ParquetFile(f"{made.url}/{shard.file}")
        for group in range(file.num_row_groups):
            hr, lr = made.read_group(number)
            rows = file.read_row_group(group).to_pylist()
            assert len(hr) == len(lr) == len(rows) == made.row_groups[number]
            assert [tile.tobytes() for tile in hr] == [row["hr"] for row in rows]
            assert [tile.tobytes() for tile in lr] == [row["lr"] for row in rows]
            number += 1
    assert number == len(made.row_groups)


def test_a_folder_without_a_manifest_is_no_patch_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no manifest.json, so it is no \(finished\) patch set"):
        patchset.load(str(tmp_path))


def test_another_format_is_refused(made: PatchSet, tmp_path: Path) -> None:
    manifest = json.loads(Path(made.url, "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(UserError, match=f"has the format 99, expected {patchset.FORMAT}"):
        patchset.load(str(tmp_path))


def order_of(made: PatchSet, seed: int = 1) -> SampleOrder:
    return SampleOrder(made.row_groups, seed=seed, lanes=3, window=5, crops_per_tile=2)


def read(made: PatchSet, world: int, start: int, stop: int, augment: bool = True) -> list[set[bytes]]:
    """The patches of each step, whichever rank had them."""
    steps: list[set[bytes]] = [set() for _ in range(start, stop)]
    for rank in range(world):
        reader = BatchReader(made, order_of(made), batch=6, crop=32, augment=augment, rank=rank, world=world)
        for batch in reader.read(start, stop):
            steps[batch.step - start] |= {
                h.tobytes() + low.tobytes() for h, low in zip(batch.hr, batch.lr, strict=True)
            }
    return steps


def test_any_number_of_ranks_sees_the_same_samples_at_every_step(made: PatchSet) -> None:
    """Over more than an epoch, so that lanes are dealt anew."""
    steps = 2 * order_of(made).epoch_length // 6 + 3
    alone = read(made, 1, 0, steps)
    assert read(made, 2, 0, steps) == alone
    assert read(made, 3, 0, steps) == alone


def test_reading_from_the_middle_gives_what_it_would_have_given(made: PatchSet) -> None:
    assert read(made, 1, 7, 20) == read(made, 1, 0, 20)[7:]


def test_the_lr_patch_lies_under_the_hr_patch(made: PatchSet) -> None:
    """Crops and turns of both must agree: the mean of 4x4 HR pixels is near the LR pixel."""
    reader = BatchReader(made, order_of(made), batch=12, crop=32, augment=True, rank=0, world=1)
    batch = reader.step(0)
    means = batch.hr.reshape(12, 8, 4, 8, 4, 3).mean(axis=(2, 4))
    near = np.abs(means - batch.lr).mean(axis=(1, 2, 3))
    turned = np.abs(means - np.rot90(batch.lr, 2, axes=(1, 2))).mean(axis=(1, 2, 3))
    assert near.max() < 8
    assert (near < turned).mean() > 0.9


def test_an_error_while_reading_reaches_the_consumer(made: PatchSet) -> None:
    reader = BatchReader(made, order_of(made), batch=6, crop=4000, augment=True, rank=0, world=1)
    with pytest.raises(ValueError, match="could not broadcast"):
        next(reader.read(0, 1))
