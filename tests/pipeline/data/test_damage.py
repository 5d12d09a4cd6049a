"""Patch sets whose files are missing, damaged or of another version."""

import dataclasses
import json
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import storage
from pipeline.data import patchset, preparation, verification
from pipeline.data.manifest import MANIFEST_FORMAT
from pipeline.data.parquet import DamagedShardError
from pipeline.data.patchset import PatchSet
from pipeline.settings import Config, UserError
from pipeline.settings.command_line import parse
from tests.conftest import SMALL, write_photos

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("damage")
    write_photos(folder / "photos")
    return parse([f"--source={folder / 'photos'}", f"--home={folder / 'home'}", *SMALL], "run", "")


@pytest.fixture(scope="module")
def made(config: Config, ray_session: None) -> PatchSet:
    return preparation.prepare(config)[0]


@pytest.fixture
def copied(made: PatchSet, tmp_path: Path) -> PatchSet:
    return patchset.load(shutil.copytree(made.url, tmp_path / "my set").as_posix())


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def _flip_a_pixel(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[3000] ^= 1
    file.write_bytes(content)


def _fill_with_zeros(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def _replace_by_text(file: Path) -> None:
    file.write_text("not found")


DAMAGES = [_truncate, _flip_a_pixel, _fill_with_zeros, _replace_by_text]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_named_with_what_to_do(copied: PatchSet, damage: Callable[[Path], None]) -> None:
    for shard, read in ((copied.shards[0], copied.read_group), (copied.holdout[0], copied.read_holdout)):
        damage(Path(copied.url, shard.file))
        with pytest.raises(DamagedShardError) as error:
            read(0)
        text = str(error.value)
        assert text.startswith(f"the shard {copied.url}/{shard.file} is damaged (")
        assert f"delete {shard.file} and rerun the command" in text
        assert f"python -m pipeline.patchset verify '{copied.url}' checks all shards" in text
        assert "\n" not in text


def test_a_missing_shard_is_named(copied: PatchSet) -> None:
    Path(copied.url, copied.shards[0].file).unlink()
    with pytest.raises(DamagedShardError, match=f"{copied.shards[0].file} is missing: rerun the command"):
        copied.read_group(0)
    with pytest.raises(DamagedShardError, match=f"{copied.shards[0].file} is missing or incomplete: rerun"):
        copied.require_shards()


def test_shards_in_an_object_store_are_named_without_retries(copied: PatchSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.storage.retries.PATIENCE_S", 20.0)
    url = "memory://damaged"
    for file in Path(copied.url).rglob("*.*"):
        storage.write(f"{url}/{file.relative_to(copied.url)}", file.read_bytes())
    remote = patchset.load(url)
    assert np.array_equal(remote.read_group(0)[0], copied.read_group(0)[0])
    first, last = remote.shards[0].file, remote.shards[-1].file
    for number, content in enumerate((b"not found", bytes(remote.shards[-1].bytes))):
        other = remote.at(f"memory://damaged-{number}")
        storage.write(f"{other.url}/{last}", content)
        with pytest.raises(DamagedShardError, match=f"{last} is damaged"):
            other.read_group(other.row_groups.count - 1)
        with pytest.raises(DamagedShardError, match=f"{first} is missing"):
            other.read_group(0)


@given(place=st.floats(0, 1, exclude_max=True), value=st.integers(1, 255))
def test_no_changed_byte_changes_a_tile(made: PatchSet, place: float, value: int) -> None:
    """Pages have checksums; other bytes are in the footer or in columns that training does not read."""
    shard = made.shards[0]
    content = bytearray(Path(made.url, shard.file).read_bytes())
    content[int(place * len(content))] ^= value
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, shard.file).write_bytes(content)
        mutated = made.at(folder)
        for group in range(len(shard.row_groups)):
            try:
                tiles = mutated.read_group(group)
            except DamagedShardError:
                continue
            assert all(np.array_equal(a, b) for a, b in zip(tiles, made.read_group(group), strict=True))


@pytest.mark.parametrize("damage", [_truncate, _replace_by_text, Path.unlink])
def test_a_missing_or_incomplete_shard_is_made_again(
    config: Config, tmp_path: Path, made: PatchSet, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    own = config.model_copy(update={"home": str(tmp_path)})
    shutil.copytree(Path(made.url).parent, tmp_path / "patchsets")
    before, found = preparation.prepare(own)
    assert found
    shard = before.shards[0].file
    damage(Path(before.url, shard))
    again, found = preparation.prepare(own)
    assert not found
    assert f"{before.url} lacks {shard}: 1 files are made again" in capsys.readouterr().err
    assert again.manifest == before.manifest
    assert all(not list(verification.find_faults(again, shard)) for shard in again.read_shards())


def test_a_damaged_manifest_is_made_again_from_the_shards(
    config: Config, tmp_path: Path, made: PatchSet, capsys: pytest.CaptureFixture[str]
) -> None:
    own = config.model_copy(update={"home": str(tmp_path)})
    shutil.copytree(Path(made.url).parent, tmp_path / "patchsets")
    manifest = tmp_path / "patchsets" / made.name / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:300])
    times = {file: file.stat().st_mtime_ns for file in manifest.parent.glob("*.parquet")}
    again, _ = preparation.prepare(own)
    assert again.manifest == made.manifest
    assert "has a damaged manifest or index, which is made again from the undamaged shards" in capsys.readouterr().err
    assert {file: file.stat().st_mtime_ns for file in manifest.parent.glob("*.parquet")} == times


def _with(manifest: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**manifest, **changes}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: [], "is damaged: "),
        (lambda m: {"a": 1}, "is damaged at format: field required; delete it and rerun pipeline.preprocess"),
        (lambda m: {"format": MANIFEST_FORMAT}, "is damaged at name: field required; delete it"),
        (lambda m: _with(m, name="../../elsewhere"), "is damaged at name: string should match pattern"),
        (lambda m: _with(m, name=".."), "is damaged at name: "),
        (lambda m: _with(m, scale=0), "is damaged at scale: input should be greater"),
        (lambda m: _with(m, tile=46), "is damaged: tile is 46, no multiple of the scale 4"),
        (lambda m: _with(m, files=[_with(m["files"][0], file="images/../../a")]), "is damaged at files.0.file: "),
        (lambda m: _with(m, files=[_with(m["files"][0], rows=-1)]), "is damaged at files.0.rows: "),
        (lambda m: _with(m, files=[]), "is damaged: it states 2 held-out images, but its shards have 0"),
        (lambda m: _with(m, totals=_with(m["totals"], tiles=1)), "is damaged: it states 1 tiles, but its shards have "),
        (lambda m: _with(m, settings={"unknown": 1}), "is damaged at settings.unknown: "),
    ],
)
def test_a_manifest_that_holds_something_else_is_one_sentence(
    copied: PatchSet, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    file = Path(copied.url, "manifest.json")
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(storage.DamagedFileError, match=re.escape(message)) as error:
        patchset.load(copied.url)
    assert str(error.value).startswith(f"{copied.url}/manifest.json is damaged")
    assert str(error.value).endswith("delete it and rerun pipeline.preprocess, which keeps the undamaged shards")


@pytest.mark.parametrize(
    ("version", "advice"),
    [(2, "make it again with pipeline.preprocess"), (MANIFEST_FORMAT + 1, "a newer version made it, so update this")],
)
def test_another_format_is_refused_with_advice_that_works(copied: PatchSet, version: int, advice: str) -> None:
    file = Path(copied.url, "manifest.json")
    file.write_text(json.dumps({"format": version, "anything": "else"}))
    with pytest.raises(UserError, match=f"has the format {version}, expected {MANIFEST_FORMAT}: {advice}"):
        patchset.load(copied.url)


def test_verify_names_a_shard_that_agrees_with_a_wrong_manifest(copied: PatchSet) -> None:
    """A shard can have the checksum that the manifest says and still be no Parquet file."""
    shard = next(copied.read_shards())
    file = Path(copied.url, shard.file)
    file.write_bytes(b"PAR1 but no more")
    agreed = dataclasses.replace(shard, bytes=file.stat().st_size, sha256=storage.sha256(file))
    (fault,) = verification.find_faults(copied, agreed)
    assert fault.startswith("cannot be read (")
