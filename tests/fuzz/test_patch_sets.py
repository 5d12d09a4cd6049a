"""Mutated manifests and shards of patch sets: what is damaged is named, and nothing else is read."""

import hashlib
import itertools
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data import parquet, patchset, verification
from pipeline.data.inspected import InspectedImage, InspectedImages
from pipeline.data.locations import FileLocation
from pipeline.data.patchset import PatchSet
from pipeline.data.shard_plan import ShardSpec
from pipeline.data.shards import make_shard
from pipeline.settings import Preprocess, UserError
from pipeline.storage import DamagedFileError
from tests.conftest import random_image
from tests.fuzz.campaign import Campaign, whole_campaign
from tests.fuzz.mutations import mutate_bytes, mutate_json


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> PatchSet:
    """Make a patch set of one training shard and one held-out shard."""
    folder = tmp_path_factory.mktemp("fuzz")
    settings = Preprocess(tile=32, row_group=4)
    shards = []
    for held_out in (False, True):
        images = []
        for number in range(2):
            file = folder / f"{held_out}{number}.png"
            Image.fromarray(random_image(70, 80, number)).save(file)
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            images.append(InspectedImage(file.name, FileLocation(str(file)), "", digest, 80, 70, 1, None))
        spec = ShardSpec(held_out, 4, settings, InspectedImages.of(images))
        shards.append(make_shard(spec, f"{folder}/set/{spec.file}", None))
    patchset.assemble(f"{folder}/set", "set", 4, settings, enumerate(shards), 1).save()
    return patchset.load(f"{folder}/set")


def read_everything(patch_set: PatchSet) -> None:
    """Use a patch set as training, validation and the commands do."""
    assert "images" in patchset.describe(patch_set)
    assert len(list(patch_set.images())) >= 0
    patch_set.find_missing()
    for shard in patch_set.read_shards():
        list(verification.find_faults(patch_set, shard))
    for number in range(min(patch_set.row_groups.count, 4)):
        rows = int(patch_set.row_groups.sizes(np.array([number]))[0])
        hr, lr = patch_set.read_group(number)
        assert hr.shape == (rows, patch_set.tile, patch_set.tile, 3)
        assert len(lr) == rows
    for number in range(min(patch_set.held_out, 4)):
        image = patch_set.read_holdout(number)
        assert image.hr.dtype == np.uint8


@pytest.mark.parametrize("count", [60, pytest.param(1500, marks=whole_campaign)])
def test_mutated_manifests(made: PatchSet, tmp_path: Path, count: int) -> None:
    shutil.copytree(made.url, tmp_path / "set")
    manifest = tmp_path / "set/manifest.json"
    whole = manifest.read_bytes()

    def use(content: bytes) -> None:
        manifest.write_bytes(content)
        read_everything(patchset.load(str(tmp_path / "set")))

    def make(random_: random.Random) -> bytes:
        return mutate_json(random_, [whole])

    Campaign("manifests", make, use, (UserError, DamagedFileError), tmp_path).run(count)


@pytest.mark.parametrize("count", [40, pytest.param(1000, marks=whole_campaign)])
def test_mutated_shards(made: PatchSet, tmp_path: Path, count: int) -> None:
    contents = {shard.file: Path(made.url, shard.file).read_bytes() for shard in made.all_shards}
    numbers = itertools.count()

    def make(random_: random.Random) -> tuple[str, bytes]:
        name = random_.choice(list(contents))
        return name, mutate_bytes(random_, [contents[name]])

    def use(changed: tuple[str, bytes]) -> None:
        name, content = changed
        folder = tmp_path / str(next(numbers))  # a folder of its own, because a process checks a row group once
        folder.mkdir()
        for other in contents:
            (folder / other).hardlink_to(Path(made.url, other))
        (folder / name).unlink()
        (folder / name).write_bytes(content)
        patch_set = made.at(str(folder))
        shard = next(shard for shard in made.read_shards() if shard.file == name)
        faults = list(verification.find_faults(patch_set, shard))
        assert faults or content == contents[name]
        read = parquet.read_shard(folder / name, name, check=True)
        assert read is None or read.bytes == len(content)
        for number in range(patch_set.row_groups.count):
            original = made.read_group(number)
            assert all(map(np.array_equal, patch_set.read_group(number), original))
        for number in range(patch_set.held_out):
            assert all(map(np.array_equal, patch_set.read_holdout(number)[1:], made.read_holdout(number)[1:]))

    Campaign("shards", make, use, (DamagedFileError,), tmp_path).run(count)
