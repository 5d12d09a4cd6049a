import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import patchset, preprocess
from pipeline.config import UserError, parse
from pipeline.patchset import PatchSet
from pipeline.reader import BatchReader
from pipeline.sampler import SampleOrder
from tests.conftest import ROOT, SMALL, write_photos

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


def command(*argv: str) -> tuple[int, str, str]:
    """Exit code, output and errors."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.patchset", *argv], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_show_prints_a_summary_and_draws_pairs(made: PatchSet, tmp_path: Path) -> None:
    code, printed, _ = command("show", made.url, "--sheet", str(tmp_path / "sheet.png"), "--pairs", "5")
    assert code == 0
    assert re.search(r"pictures +6: 4 to train on, 2 held out, 0 left out", printed)
    assert re.search(r"tiles +36 of 48x48, in row groups of 4; 0 \(0.0%\) dropped as flat", printed)
    assert re.search(r"scale +x4, LR made by bicubic matlab", printed)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (2 * 56 + 8, 4 * 104 + 8, 3)
    hr, lr = sheet[8:56, 8:56], sheet[8:56, 56:104]
    assert any(np.array_equal(hr, tile) for group in range(len(made.row_groups)) for tile in made.read_group(group)[0])
    assert np.array_equal(lr, np.asarray(Image.fromarray(lr[::4, ::4]).resize((48, 48), Image.Resampling.NEAREST)))


def test_verify_finds_what_is_wrong(made: PatchSet, tmp_path: Path) -> None:
    copied = patchset.load(shutil.copytree(made.url, tmp_path / "copy", copy_function=shutil.copy).as_posix())
    assert command("verify", copied.url)[0] == 0
    first, second, third = (Path(copied.url, shard.file) for shard in copied.shards[:3])
    content = bytearray(first.read_bytes())
    content[2000] ^= 1
    first.write_bytes(content)
    second.unlink()
    third.write_bytes(third.read_bytes()[:-1])
    (tmp_path / "copy/train-0.parquet.part").write_bytes(b"")
    code, printed, errors = command("verify", copied.url)
    assert code == 1
    assert f"{first.name}: has another checksum than the manifest says" in printed
    assert f"{second.name}: is missing" in printed
    assert (
        f"{third.name}: has {copied.shards[2].bytes - 1} bytes, the manifest says {copied.shards[2].bytes}" in printed
    )
    assert "train-0.parquet.part doesn't belong to the patch set" in printed
    assert "Traceback" not in errors


def test_verify_counts_what_a_manifest_claims(made: PatchSet) -> None:
    shard = made.shards[0]
    fewer = dataclasses.replace(shard.pictures[0], tiles=shard.pictures[0].tiles + 1)
    wrong = dataclasses.replace(shard, pictures=[fewer, *shard.pictures[1:]], row_groups=[*shard.row_groups, 1])
    faults = list(patchset.find_faults(dataclasses.replace(made, shards=[wrong]), wrong))
    assert len(faults) == 2
    assert "the manifest says" in faults[0]


def test_a_folder_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    code, _, errors = command("show", str(tmp_path))
    assert code == 2
    assert errors.startswith(f"error: {tmp_path} has no manifest.json")
