import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import patchset as patchset_command
from pipeline import storage
from pipeline.data import patchset, preparation, verification
from pipeline.data.manifest import MANIFEST_FORMAT, ImageRecord
from pipeline.data.parquet import TILE_SCHEMA
from pipeline.data.patchset import PatchSet
from pipeline.data.rejection import Rejection, RejectionKind
from pipeline.settings import UserError
from pipeline.settings.command_line import parse
from tests import commands
from tests.conftest import SMALL, write_photos

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> PatchSet:
    folder = tmp_path_factory.mktemp("patchset")
    write_photos(folder / "photos")
    config = parse([f"--source={folder / 'photos'}", f"--home={folder / 'home'}", *SMALL], "run", "")
    return preparation.prepare(config)[0]


def test_a_row_is_a_tile_of_raw_bytes(made: PatchSet) -> None:
    file = pq.ParquetFile(f"{made.url}/{made.shards[0].file}")
    assert file.schema_arrow.equals(TILE_SCHEMA)
    row = file.read_row_group(0).to_pylist()[0]
    assert (len(row["hr"]), len(row["lr"])) == (48 * 48 * 3, 12 * 12 * 3)
    assert file.metadata.metadata[b"scale"] == b"4"


def test_read_group_returns_the_bytes_of_the_rows(made: PatchSet) -> None:
    number, sizes = 0, made.row_groups.sizes(np.arange(made.row_groups.count))
    for shard in made.shards:
        file = pq.ParquetFile(f"{made.url}/{shard.file}")
        for group in range(file.num_row_groups):
            hr, lr = made.read_group(number)
            rows = file.read_row_group(group).to_pylist()
            assert len(hr) == len(lr) == len(rows) == sizes[number]
            assert [tile.tobytes() for tile in hr] == [row["hr"] for row in rows]
            assert [tile.tobytes() for tile in lr] == [row["lr"] for row in rows]
            number += 1
    assert number == made.row_groups.count


def test_a_folder_without_a_manifest_is_no_patch_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no manifest.json, so it is no finished patch set"):
        patchset.load(str(tmp_path))


def test_another_format_is_refused(made: PatchSet, tmp_path: Path) -> None:
    manifest = json.loads(Path(made.url, "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(UserError, match=f"has the format 99, expected {MANIFEST_FORMAT}"):
        patchset.load(str(tmp_path))


def test_a_damaged_manifest_gives_one_sentence(made: PatchSet, tmp_path: Path) -> None:
    manifest = json.loads(Path(made.url, "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "files": [{"file": "index/train-00000.parquet"}]}))
    with pytest.raises(storage.DamagedFileError, match=r"manifest.json is damaged at files.0.rows: field req"):
        patchset.load(str(tmp_path))
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(storage.DamagedFileError, match=r"manifest.json is damaged"):
        patchset.load(str(tmp_path))


def command(*argv: str) -> tuple[int, str, str]:
    """Return the exit code, standard output and standard error."""
    done = commands.run("patchset", *argv)
    return done.code, done.stdout, done.stderr


def test_show_prints_a_summary_and_draws_pairs(made: PatchSet, tmp_path: Path) -> None:
    code, printed, _ = command("show", made.url, "--sheet", str(tmp_path / "sheet.png"), "--pairs", "5")
    assert code == 0
    assert re.search(r"images +6: 4 to train on, 2 held out, 0 rejected", printed)
    assert re.search(r"tiles +36 of 48x48, in row groups of 4; 0 \(0.0%\) dropped as flat", printed)
    assert re.search(r"scale +x4, LR made by bicubic matlab", printed)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (2 * 56 + 8, 4 * 104 + 8, 3)
    hr, lr = sheet[8:56, 8:56], sheet[8:56, 56:104]
    assert any(np.array_equal(hr, tile) for group in range(made.row_groups.count) for tile in made.read_group(group)[0])
    assert np.array_equal(lr, np.asarray(Image.fromarray(lr[::4, ::4]).resize((48, 48), Image.Resampling.NEAREST)))


@pytest.fixture
def rejecting(made: PatchSet, tmp_path: Path) -> PatchSet:
    """The patch set with 25 rejected images more."""
    rejection = Rejection(RejectionKind.DAMAGED, "cannot be decoded")
    rejected = [ImageRecord(f"bad\x1b{number:02}.png", "", 0, 0, 0, False, rejection) for number in range(25)]
    folder = shutil.copytree(made.url, tmp_path / "rejecting", copy_function=shutil.copy)
    settings, trained = made.manifest.settings, len(made.shards)
    shards = enumerate(made.read_shards())
    return patchset.assemble(str(folder), made.name, made.scale, settings, shards, trained, rejected).save()


def show(monkeypatch: pytest.MonkeyPatch, *argv: str) -> None:
    monkeypatch.setattr(sys, "argv", ["patchset", "show", *argv])
    patchset_command.main()


def test_show_names_the_rejected_images(
    rejecting: PatchSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    show(monkeypatch, rejecting.url)
    lines = capsys.readouterr().out.splitlines()
    named = [line for line in lines if line.startswith("rejected bad")]
    assert named[0] == r"rejected bad\x1b00.png: cannot be decoded"
    assert len(named) == 20
    assert "and 5 more rejected images: patchset show --all names them" in lines
    assert lines[-1] == f"contact sheet: {tmp_path}/{rejecting.name}-sheet.png"
    show(monkeypatch, rejecting.url, "--all")
    assert capsys.readouterr().out.count("cannot be decoded") == 25


def test_the_sheet_is_written_where_told(
    made: PatchSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "new/folder of sheets/sheet"
    show(monkeypatch, made.url, "--sheet", str(sheet))
    assert Image.open(sheet).format == "PNG"
    (tmp_path / "file").write_bytes(b"")
    for place in (tmp_path, tmp_path / "file/sheet.png"):
        with pytest.raises(SystemExit) as ended:
            show(monkeypatch, made.url, "--sheet", str(place))
        assert ended.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: the contact sheet {place} cannot be written (")
        assert error.count("\n") == 1


def test_a_name_in_the_manifest_does_not_choose_the_folder_of_the_sheet(
    made: PatchSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    copied = shutil.copytree(made.url, tmp_path / "copy", copy_function=shutil.copy)
    manifest = json.loads((copied / "manifest.json").read_text())
    (copied / "manifest.json").write_text(json.dumps({**manifest, "name": "../../outside"}))
    with pytest.raises(SystemExit):
        show(monkeypatch, str(copied))
    assert not list((tmp_path / "here").iterdir())
    assert not list(tmp_path.rglob("*sheet.png"))


@pytest.mark.parametrize("pairs", ["0", "-3", "100000"])
def test_an_odd_number_of_pairs_is_refused(
    made: PatchSet, pairs: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        show(monkeypatch, made.url, "--pairs", pairs)
    assert re.match(rf"error: .*{pairs}.* from 1 to 1000", capsys.readouterr().err)


def test_verify_finds_damaged_missing_and_unknown_files(made: PatchSet, tmp_path: Path) -> None:
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
    assert "train-0.parquet.part does not belong to the patch set" in printed
    assert "Traceback" not in errors


def test_verify_finds_a_damaged_table(made: PatchSet, tmp_path: Path) -> None:
    copied = patchset.load(shutil.copytree(made.url, tmp_path / "copy", copy_function=shutil.copy).as_posix())
    table = next(Path(copied.url, each.file) for each in copied.manifest.files if each.file.startswith("images/"))
    content = bytearray(table.read_bytes())
    content[len(content) // 2] ^= 1
    table.write_bytes(content)
    code, printed, errors = command("verify", copied.url)
    assert code == 1
    assert f"{table} is damaged" in printed
    assert "Traceback" not in errors


def test_verify_compares_rows_with_the_manifest(made: PatchSet) -> None:
    shard = next(made.read_shards())
    fewer = dataclasses.replace(shard.images[0], tiles=shard.images[0].tiles + 1)
    wrong = dataclasses.replace(shard, images=[fewer, *shard.images[1:]], row_groups=[*shard.row_groups, 1])
    faults = list(verification.find_faults(made, wrong))
    assert len(faults) == 2
    assert "the manifest says" in faults[0]


def test_a_folder_that_is_no_patch_set_gives_one_sentence(tmp_path: Path) -> None:
    code, _, errors = command("show", str(tmp_path))
    assert code == 2
    assert errors.startswith(f"error: {tmp_path} has no manifest.json")
