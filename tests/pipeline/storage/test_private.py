"""Files in the system's temporary folder, where other users can prepare what they like."""

import os
import stat
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.downloads import download


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_the_folder_is_for_its_user_alone_and_keeps_its_name(temporary: Path) -> None:
    folder = storage.private_folder("sr-test")
    assert folder == temporary / f"sr-test-{os.getuid()}"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (folder / "file").write_text("kept")
    assert storage.private_folder("sr-test") == folder
    assert (folder / "file").exists()


def _link(folder: Path) -> None:
    (folder.parent / "target").mkdir()
    folder.symlink_to(folder.parent / "target")


def _dangling_link(folder: Path) -> None:
    folder.symlink_to(folder.parent / "nowhere")


def _file(folder: Path) -> None:
    folder.write_text("")


def _folder_for_all(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)


def _folder_of_another_user(folder: Path) -> None:
    if os.getuid():
        pytest.skip("only root can give a folder away")
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, 12345)


@pytest.mark.parametrize("prepare", [_link, _dangling_link, _file, _folder_for_all, _folder_of_another_user])
def test_what_another_user_could_have_prepared_is_refused(temporary: Path, prepare: object) -> None:
    assert callable(prepare)
    folder = temporary / f"sr-test-{os.getuid()}"
    prepare(folder)
    with pytest.raises(PermissionError) as error:
        storage.private_folder("sr-test")
    assert str(error.value).startswith(f"{folder} is not a folder of your own that nobody else can write to")
    assert not (temporary / "nowhere").exists()


def test_a_download_into_a_remote_cache_follows_no_prepared_link(temporary: Path) -> None:
    precious = temporary / "precious"
    precious.mkdir()
    (temporary / f"sr-downloads-{os.getuid()}").symlink_to(precious)
    with pytest.raises(OSError, match="is not a folder of your own"):
        download.fetch("http://127.0.0.1:9/file", "memory://cache")
    assert not list(precious.iterdir())


def test_an_upload_is_prepared_in_a_new_file_of_this_user(temporary: Path) -> None:
    names = set()
    for _ in range(2):
        with storage.create("memory://uploads/file") as part:
            assert part.parent == temporary
            assert stat.S_IMODE(part.lstat().st_mode) == 0o600
            part.write_bytes(b"content")
            names.add(part.name)
        assert storage.read("memory://uploads/file") == b"content"
    assert len(names) == 2
    assert not list(temporary.iterdir())
