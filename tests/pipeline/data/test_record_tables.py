"""Tests of a patch set's tables and of the inventory's files, which hold made-up records."""

import dataclasses
import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import storage
from pipeline.data import inventory_files, patchset, record_tables
from pipeline.data.inspected import InspectedImage
from pipeline.data.inventory_files import InventoryFiles
from pipeline.data.locations import FileLocation, identity
from pipeline.data.manifest import ImageRecord, ManifestOfFormat3, Shard
from pipeline.data.patchset import PatchSet
from pipeline.data.rejection import Rejection, RejectionKind
from pipeline.data.source_images import SourceImage, SourceImages
from pipeline.settings import Preprocess, UserError

SETTINGS = Preprocess(tile=32, row_group=4)
DAMAGED = Rejection(RejectionKind.DAMAGED, "cannot be decoded")


def record(name: str, tiles: int, held_out: bool = False, rejected: Rejection | None = None) -> ImageRecord:
    digest = hashlib.sha256(name.encode()).hexdigest()
    return ImageRecord(name, digest, 70, 80, tiles, held_out, rejected, flat=tiles // 2)


def training_shard(number: int, tiles: Sequence[int]) -> Shard:
    """Return a shard of some images with so many tiles; one without tiles is rejected."""
    images = [record(f"t{number}-{i}", n, rejected=None if n else DAMAGED) for i, n in enumerate(tiles)]
    full, rest = divmod(sum(tiles), 4)
    return Shard(f"train-{number}.parquet", [4] * full + [rest] * (rest > 0), 10 + number, f"{number:064x}", images)


def held_out_shard(number: int, kept: Sequence[bool]) -> Shard:
    images = [record(f"h{number}-{i}", 0, True, None if k else DAMAGED) for i, k in enumerate(kept)]
    return Shard(f"holdout-{number}.parquet", [1] * sum(kept), number, "", images)


def assemble(
    url: Path | str, train: Sequence[Shard], holdout: Sequence[Shard], rejected: Sequence[ImageRecord]
) -> PatchSet:
    numbered = list(enumerate([*train, *holdout]))
    random.Random(0).shuffle(numbered)  # tasks end in any order
    return patchset.assemble(str(url), "set", 4, SETTINGS, numbered, len(train), rejected)


TRAIN = [training_shard(number, tiles) for number, tiles in enumerate([[3, 9], [0], [4], [1, 0, 2]])]
HOLDOUT = [held_out_shard(0, [True, False, True]), held_out_shard(1, [True])]
REJECTED = [record("z", 0, rejected=DAMAGED), dataclasses.replace(record("a", 0, rejected=DAMAGED), sha256="")]


@pytest.fixture
def saved(tmp_path: Path) -> PatchSet:
    for shard in (*TRAIN, *HOLDOUT):
        (tmp_path / shard.file).write_bytes(bytes(shard.bytes))
    return assemble(tmp_path, TRAIN, HOLDOUT, REJECTED).save()


def assert_same(patch_set: PatchSet, train: Sequence[Shard], holdout: Sequence[Shard]) -> None:
    assert list(patch_set.read_shards()) == [*train, *holdout]
    assert [(shard.file, shard.row_groups) for shard in patch_set.all_shards] == [
        (shard.file, shard.row_groups) for shard in (*train, *holdout)
    ]
    groups = [(shard.file, i, rows) for shard in train for i, rows in enumerate(shard.row_groups)]
    found = [patch_set.shards.locate(number) for number in range(patch_set.row_groups.count)]
    assert [(shard.file, i) for shard, i in found] == [group[:2] for group in groups]
    assert patch_set.row_groups.sizes(np.arange(len(groups))).tolist() == [rows for _, _, rows in groups]
    kept = [image.name for shard in holdout for image in shard.images if not image.rejected]
    assert patch_set.holdout_names == kept
    assert patch_set.held_out == len(kept)


@given(
    train=st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=6),
    holdout=st.lists(st.lists(st.booleans(), max_size=3), max_size=3),
)
@settings(max_examples=30)
def test_tables_hold_what_the_tasks_returned(train: list[list[int]], holdout: list[list[bool]]) -> None:
    shards = [training_shard(number, tiles) for number, tiles in enumerate(train)]
    held_out = [held_out_shard(number, kept) for number, kept in enumerate(holdout)]
    with pytest.MonkeyPatch.context() as patch:  # so that few shards make several files
        for name, few in (("_SHARDS_IN_FILE", 2), ("_ENTRIES_IN_FILE", 3), ("_REJECTED_IN_FILE", 2), ("_BATCH", 3)):
            patch.setattr(record_tables, name, few)
        patch_set = assemble("memory://tables", shards, held_out, REJECTED)
        assert_same(patch_set, shards, held_out)
        patch_set.save()
    again = patchset.load("memory://tables")
    assert_same(again, shards, held_out)
    assert list(again.images())[-2:] == REJECTED
    assert again.tiles == again.manifest.totals.tiles == sum(map(sum, train))
    assert [(file, size) for file, size, _ in patchset.find_shards(again.url, {"train-0.parquet", "x"})] == [
        (shard.file, shard.bytes) for shard in shards[:1]
    ]


def test_a_saved_set_is_opened_again(saved: PatchSet) -> None:
    again = patchset.load(saved.url)
    assert again == saved
    assert_same(again, TRAIN, HOLDOUT)
    totals = again.manifest.totals
    assert (totals.images, totals.trained, totals.held_out, totals.rejected) == (13, 5, 3, 5)
    assert [record.name for record in again.rejected()] == ["a", "h0-1", "t1-0", "t3-1", "z"]
    assert list(again.images()) == [image for shard in (*TRAIN, *HOLDOUT) for image in shard.images] + REJECTED
    assert again.find_missing() == []
    manifest = Path(saved.url, "manifest.json").stat().st_size
    assert manifest < 5000


def test_a_set_of_format_3_is_read(tmp_path: Path) -> None:
    old = ManifestOfFormat3("old", 4, 32, SETTINGS, TRAIN, HOLDOUT, REJECTED)
    storage.write_document(str(tmp_path / "manifest.json"), old)
    patch_set = patchset.load(str(tmp_path))
    assert_same(patch_set, TRAIN, HOLDOUT)
    assert patch_set.manifest.totals == assemble(tmp_path, TRAIN, HOLDOUT, REJECTED).manifest.totals
    assert [record.name for record in patch_set.rejected()] == ["a", "h0-1", "t1-0", "t3-1", "z"]
    uneven = dataclasses.replace(TRAIN[0], row_groups=[4, 3, 5])
    storage.write_document(str(tmp_path / "manifest.json"), dataclasses.replace(old, shards=[uneven]))
    with pytest.raises(storage.DamagedFileError, match=r"manifest.json is damaged: train-0.parquet has row groups of"):
        patchset.load(str(tmp_path))


def test_without_its_manifest_a_set_is_unfinished(saved: PatchSet, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(saved.url, "manifest.json").unlink()

    def stop(url: str, _: object) -> None:
        assert sorted(file.parent.name for file in Path(saved.url).rglob("*-00000.parquet")) == (
            ["images"] * 3 + ["index"] * 2
        )
        raise KeyboardInterrupt(url)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_document", stop)
        with pytest.raises(KeyboardInterrupt, match=r"manifest.json"):
            assemble(saved.url, TRAIN, HOLDOUT, REJECTED).save()
    with pytest.raises(UserError, match=r"has no manifest.json, so it is no finished patch set"):
        patchset.load(saved.url)
    assert assemble(saved.url, TRAIN, HOLDOUT, REJECTED).save() == saved


@pytest.mark.parametrize("file", ["index/train-00000.parquet", "images/holdout-00000.parquet"])
def test_a_damaged_table_is_one_sentence(saved: PatchSet, file: str) -> None:
    table = Path(saved.url, file)

    def use() -> None:
        list(patchset.load(saved.url).images())

    table.write_bytes(table.read_bytes()[:-1] + b"x")
    with pytest.raises(storage.DamagedFileError, match=f"{file} is damaged: .* delete it and rerun") as error:
        use()
    assert "\n" not in str(error.value)
    table.unlink()
    with pytest.raises(storage.DamagedFileError, match=f"{file} is missing; delete it and rerun"):
        use()
    if file.startswith("images"):
        assert patchset.load(saved.url).find_missing() == [file]


def inspected(number: int, url: str = "s3://bucket") -> InspectedImage:
    digest = f"{number:064x}"
    rejected = DAMAGED if number % 3 == 0 else None
    return InspectedImage(
        f"{number}.png", FileLocation(f"{url}/{number}.png"), f"1 {number}", digest, 4, 5, 6, rejected
    )


def listed(images: Sequence[InspectedImage]) -> SourceImages:
    return SourceImages.of(SourceImage(image.name, image.location, image.version, image.bytes) for image in images)


def test_an_inventory_saves_new_results_alone_and_joins_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [inspected(number, "http://user:Secret1@host") for number in range(6)]
    monkeypatch.setattr(inventory_files, "_SAVE_EVERY_S", 0)
    files = InventoryFiles(str(tmp_path / "inventory"))
    for number, image in enumerate(images[:4], 1):
        files.add(image)
        assert len(list((tmp_path / "inventory").iterdir())) == number
    files.close()
    (saved,) = (tmp_path / "inventory").iterdir()
    assert "Secret1" not in str(pq.read_table(saved).to_pylist())
    again = InventoryFiles(str(tmp_path / "inventory"))
    rows = again.find(listed(images))
    assert (rows >= 0).tolist() == [True] * 4 + [False] * 2
    found = again.take(rows[:4]).to_pylist()
    assert [row["sha256"].hex() for row in found] == [image.sha256 for image in images[:4]]
    assert [row["kind"] for row in found] == ["damaged", None, None, "damaged"]
    changed = dataclasses.replace(images[0], version="2")
    assert again.find(listed([changed])).tolist() == [-1]


def test_an_inventory_of_an_older_version_is_read_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = [inspected(number) for number in range(4)]
    entries = [
        {
            **{key: getattr(image, key) for key in ("name", "version", "sha256", "width", "height", "bytes")},
            "url": identity(image.location)[0],
            "rejected": image.rejected and dataclasses.asdict(image.rejected),
            "inspection": inventory_files.INSPECTION - (image is images[3]),
        }
        for image in images
    ]
    (tmp_path / "inventory.json").write_text(json.dumps(entries))
    for _ in range(2):
        found = InventoryFiles(str(tmp_path / "inventory")).find(listed(images))
        assert (found >= 0).tolist() == [True, True, True, False]  # the last one was rejected by other rules
        (tmp_path / "inventory.json").write_text("{")
    assert capsys.readouterr().err == ""
