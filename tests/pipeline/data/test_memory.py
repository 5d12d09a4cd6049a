"""A lack of memory is a failure of this run: no image is rejected for good because of it."""

import hashlib
from pathlib import Path

import pytest
from PIL import Image

from pipeline.data.formats.png import PngFile
from pipeline.data.inspected import InspectedImage, InspectedImages
from pipeline.data.inventory import InspectionTask, inspect
from pipeline.data.listing import list_files
from pipeline.data.locations import FileLocation
from pipeline.data.rejection import RejectionKind
from pipeline.data.shard_plan import ShardSpec
from pipeline.data.shards import make_shard
from pipeline.settings import Preprocess
from tests.conftest import random_image


@pytest.fixture
def file(tmp_path: Path) -> Path:
    Image.fromarray(random_image(70, 80)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_a_shard_is_not_made_without_an_image_that_memory_does_not_suffice_for(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    image = InspectedImage("a.png", FileLocation(str(file)), "", digest, 80, 70, 1, None)
    spec = ShardSpec(False, 4, Preprocess(tile=32), InspectedImages.of([image]))

    def fail(self: PngFile) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(PngFile, "read", fail)
        with pytest.raises(OSError, match=r"a\.png cannot be decoded now: there is not enough memory to decode it"):
            make_shard(spec, str(file.with_name("shard.parquet")), None)
    assert not file.with_name("shard.parquet").exists()
    shard = make_shard(spec, str(file.with_name("shard.parquet")), None)
    assert [record.rejected for record in shard.images] == [None]


def test_an_inspection_that_memory_does_not_suffice_for_is_not_remembered(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An inspected image without a hash is read again by the next run."""
    (image,) = list_files(str(file)).images

    def fail(content: bytes) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.data.formats.png.zlib.crc32", fail)
        inspected = inspect(InspectionTask(image, 10**6))
    assert inspected.rejected is not None
    assert inspected.rejected.kind is RejectionKind.UNREADABLE
    assert inspected.sha256 == ""
    assert inspect(InspectionTask(image, 10**6)).sha256 != ""
