"""Mutated tables: sources that name images, the inventory, and the records and places of a patch set."""

import gzip
import io
import random
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data import patchset
from pipeline.data.inspected import InspectedImage
from pipeline.data.inventory_files import InventoryFiles
from pipeline.data.locations import FileLocation
from pipeline.data.patchset import PatchSet
from pipeline.data.source_images import SourceImage, SourceImages
from pipeline.data.tables import list_table
from pipeline.settings import UserError
from pipeline.storage import DamagedFileError
from tests.fuzz.campaign import Campaign, whole_campaign
from tests.fuzz.mutations import mutate_bytes
from tests.fuzz.test_patch_sets import made, read_everything

__all__ = ["made"]

URLS = [f"https://example.org/{number}/photo.jpg" for number in range(40)]


def parquet_of(columns: dict[str, list[object]]) -> bytes:
    """Return a Parquet file with small row groups."""
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, row_group_size=16)
    return sink.getvalue()


def csv_of(lines: list[str]) -> bytes:
    return ("\n".join(lines) + "\n").encode()


INVENTORY = [f'"bucket","folder/{n}%20a.jpg","{100 + n}","{n:032x}"' for n in range(30)]
TABLES = {
    ".parquet": parquet_of({"url": [*URLS], "bytes": [*range(40)], "etag": [f"{n:032x}" for n in range(40)]}),
    ".csv": csv_of(["url,bytes,name", *(f"{url},{n},{n}.jpg" for n, url in enumerate(URLS))]),
    ".csv.gz": gzip.compress(csv_of(INVENTORY)),
}


@pytest.mark.parametrize("ending", TABLES)
@pytest.mark.parametrize("count", [60, pytest.param(2000, marks=whole_campaign)])
def test_mutated_tables_of_images(tmp_path: Path, ending: str, count: int) -> None:
    file = tmp_path / f"images{ending}"

    def make(random_: random.Random) -> bytes:
        if ending == ".csv.gz" and random_.random() < 0.7:
            return gzip.compress(mutate_bytes(random_, [csv_of(INVENTORY)]))
        return mutate_bytes(random_, [TABLES[ending]])

    def use(content: bytes) -> None:
        file.write_bytes(content)
        listing = list_table(str(file))
        assert listing.summary().isprintable()
        for image in listing.images:
            assert image.name
            assert not image.name.startswith("/")
            assert ".." not in image.name.split("/")

    Campaign(f"tables {ending}", make, use, (UserError,), tmp_path).run(count)


@pytest.mark.parametrize("count", [60, pytest.param(2000, marks=whole_campaign)])
def test_mutated_inventories(tmp_path: Path, count: int) -> None:
    folder = tmp_path / "inventory"
    known = [
        InspectedImage(f"{n}.jpg", FileLocation(f"/photos/{n}.jpg"), "1", f"{n:064x}", 64, 48, 100, None)
        for n in range(50)
    ]
    whole = InventoryFiles(str(folder))
    for image in known:
        whole.add(image)
    whole.close()
    (file,) = folder.glob("*.parquet")
    content, wanted = (
        file.read_bytes(),
        SourceImages.of([SourceImage(i.name, i.location, i.version, i.bytes) for i in known]),
    )

    def make(random_: random.Random) -> bytes:
        return mutate_bytes(random_, [content])

    def use(changed: bytes) -> None:
        file.write_bytes(changed)
        files = InventoryFiles(str(folder))
        found = files.find(wanted)
        rows = files.take(found[found >= 0]).to_pylist()
        assert changed != content or len(rows) == len(known)
        for row in rows:  # what is still known is right, because pages have checksums
            assert (row["width"], row["height"]) == (64, 48)

    Campaign("inventories", make, use, (), tmp_path).run(count)


@pytest.mark.parametrize("count", [60, pytest.param(1500, marks=whole_campaign)])
def test_mutated_records_of_images_and_row_groups(made: PatchSet, tmp_path: Path, count: int) -> None:
    shutil.copytree(made.url, tmp_path / "set")
    files = [file for name in ("images", "index") for file in sorted((tmp_path / "set" / name).iterdir())]
    contents = {file: file.read_bytes() for file in files}

    def make(random_: random.Random) -> tuple[Path, bytes]:
        file = random_.choice(files)
        return file, mutate_bytes(random_, [contents[file]])

    def use(changed: tuple[Path, bytes]) -> None:
        file, content = changed
        file.write_bytes(content)
        try:
            read_everything(patchset.load(str(tmp_path / "set")))
        finally:
            file.write_bytes(contents[file])

    Campaign("record tables", make, use, (UserError, DamagedFileError), tmp_path).run(count)
