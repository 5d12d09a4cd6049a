import os
from pathlib import Path

import fsspec
import pytest
from PIL import Image

from pipeline.data import datasets, sources
from pipeline.data.datasets import WebArchive
from pipeline.data.images import decode
from pipeline.data.listing import Listing
from pipeline.data.source_images import SourceImages
from pipeline.data.sources import read_bytes
from pipeline.downloads import download
from pipeline.settings import UserError
from tests.archives import png, write_archive
from tests.conftest import random_image

RGB = Image.fromarray(random_image(20, 30))


def list_images(wanted: list[str]) -> SourceImages:
    return sources.list_images(wanted, cache="/none")


def names(source: Path | str) -> list[str]:
    return [image.name for image in list_source(source).images]


def list_source(source: Path | str) -> Listing:
    return sources.list_source(str(source), cache="/none")


def save(folder: Path, *files: str) -> None:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(png())


def test_the_built_in_photographs_are_there() -> None:
    images = list_images(["builtin"])
    assert len(images) == 9
    for image in images:
        assert min(decode(read_bytes(image.location), 10**7).shape[:2]) >= 300


def test_folders_files_and_patterns(photos: Path) -> None:
    (photos / "sub").mkdir()
    (photos / "notes.txt").write_text("no image")
    RGB.save(photos / "sub" / "deep.PNG")
    assert [p.name for p in list_images([str(photos)])][-1] == "sub/deep.PNG"
    assert [p.name for p in list_images([str(photos / "chelsea*")])] == ["chelsea0.png", "chelsea1.png"]
    assert [p.name for p in list_images([str(photos / "coffee1.png")])] == ["coffee1.png"]
    assert len({p.name for p in list_images([str(photos), str(photos / "sub")])}) == 8


@pytest.mark.parametrize(("source", "message"), [("none", "does not exist"), (".", "holds no image")])
def test_a_missing_or_empty_source_is_named(tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        list_images([str(tmp_path / source)])


def test_a_link_to_a_file_is_a_file_and_a_link_to_a_folder_is_not_followed(tmp_path: Path) -> None:
    save(tmp_path, "photos/a.png", "elsewhere/b.png")
    (tmp_path / "photos/link.png").symlink_to("../elsewhere/b.png")
    (tmp_path / "photos/linked").symlink_to("../elsewhere")
    (tmp_path / "photos/circle").symlink_to(".")
    found = list_source(tmp_path / "photos")
    assert [image.name for image in found.images] == ["a.png", "link.png"]
    assert read_bytes(found.images[1].location) == png()
    assert "2 linked folders, which are not followed (circle, linked)" in found.summary()
    (tmp_path / "shortcut").symlink_to("photos")
    assert names(tmp_path / "shortcut") == ["a.png", "link.png"]  # a source that is named is followed


def test_a_changed_target_of_a_link_changes_the_version(tmp_path: Path) -> None:
    save(tmp_path, "b.png")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/link.png").symlink_to("../b.png")
    before = list_source(tmp_path / "photos").images
    (tmp_path / "b.png").write_bytes(png(1) + b" ")
    assert list_source(tmp_path / "photos").images != before


def test_hidden_and_system_folders_are_left_out_and_counted(tmp_path: Path) -> None:
    left_out = [".cache/1.png", ".hidden.png", ".ipynb_checkpoints/a.png", ".Trash-1000/files/a.png", "__MACOSX/a.png"]
    left_out += ["sub/@eaDir/a.png/thumb.jpg", "$RECYCLE.BIN/a.png", "System Volume Information/a.png"]
    save(tmp_path, "a.png", "sub/b.png", "sub.d/c.png", *left_out)
    found = list_source(tmp_path)
    assert [image.name for image in found.images] == ["a.png", "sub.d/c.png", "sub/b.png"]
    assert "8 hidden or system files and folders ($RECYCLE.BIN, .Trash-1000, .cache, and 5 more)" in found.summary()
    assert names(tmp_path / ".cache") == ["1.png"]  # a source that is named is used
    archive = write_archive(tmp_path / "set.zip", {"a.png": png(), **dict.fromkeys(left_out, png())})
    assert names(archive) == ["a.png"]


def test_everything_that_is_not_used_is_counted(tmp_path: Path) -> None:
    save(tmp_path, "a.png", "b.gif", "c.GIF", "notes.txt", "README")
    assert list_source(tmp_path).summary() == (
        f"source {tmp_path}: 1 image; left out: 4 files of other types (.gif 2, .txt 1, no ending 1)"
    )
    with pytest.raises(UserError, match=r"holds no image, .*; it has 1 file of another type \(.txt 1\)"):
        list_images([str(tmp_path / "notes.txt")])


def test_what_is_no_file_is_left_out_by_name(tmp_path: Path) -> None:
    save(tmp_path, "a.png")
    (tmp_path / "dead.png").symlink_to("nowhere")
    (tmp_path / "self.png").symlink_to("self.png")
    os.mkfifo(tmp_path / "pipe.png")
    found = list_source(tmp_path)
    assert [image.name for image in found.images] == ["a.png"]
    assert "3 that cannot be used (dead.png is a link to nothing, pipe.png is no regular file" in found.summary()
    with pytest.raises(UserError, match=r"pipe.png cannot be listed: it is neither a file nor a folder"):
        list_source(tmp_path / "pipe.png")


@pytest.mark.parametrize("name", ["[2024] trip", "what?", "st*r", "**", "Screen::1", "a%20b#c", "photos.zip", "x.png"])
def test_an_existing_folder_is_never_a_pattern_nor_an_archive(tmp_path: Path, name: str) -> None:
    save(tmp_path, f"{name}/a.png", f"{name}/sub/b.png", "2/no.png", "whatx/no.png", "star/no.png")
    assert names(tmp_path / name) == ["a.png", "sub/b.png"]
    assert names(tmp_path / name / "*.png") == ["a.png"]
    assert names(tmp_path / name / "a.png") == ["a.png"]


def test_an_existing_file_is_never_a_pattern(tmp_path: Path) -> None:
    save(tmp_path, "a[12].png", "a1.png", "a*.png")
    assert names(tmp_path / "a[12].png") == ["a[12].png"]
    assert names(tmp_path / "a*.png") == ["a*.png"]
    assert names(tmp_path / "a?.png") == ["a*.png", "a1.png"]


def test_patterns_match_over_folders(tmp_path: Path) -> None:
    save(tmp_path, "a/1.png", "a/b/2.png", "c/3.png", "c/.hidden/4.png")
    assert [Path(name).name for name in names(tmp_path / "*/*.png")] == ["1.png", "3.png"]
    assert [Path(name).name for name in names(tmp_path / "**/*.png")] == ["1.png", "2.png", "3.png"]
    assert names(tmp_path / "[!c]/*.jpg") == []
    with pytest.raises(UserError, match="cannot be listed: Invalid pattern"):
        names(tmp_path / "a**b/*.png")


def test_names_in_an_object_store_are_no_patterns(tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    for name in ("/bucket/[1] a*/x?.png", "/bucket/1/xy.png", "/bucket/[1] a*/.cache/y.png"):
        store.pipe(name, png())
    assert names("memory://bucket/[1] a*") == ["x?.png"]
    assert names("memory://bucket/[1] a*/x?.png") == ["x?.png"]
    assert [Path(name).name for name in names("memory://bucket/*/x*.png")] == ["xy.png", "x?.png"]


def test_div2k_consists_of_two_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The archives are already in the cache; tests/pipeline/storage tests downloads."""
    archives = {}
    for part, number in (("train", "0001"), ("valid", "0801")):
        name = f"DIV2K_{part}_HR"
        file = Path(write_archive(tmp_path / f"{name}.zip", {f"{name}/{number}.png": png()}))
        archives[part] = WebArchive(f"https://example.org/{name}.zip", file.stat().st_size, "")
    monkeypatch.setattr(datasets, "DIV2K", archives)
    monkeypatch.setattr(download, "fetch", lambda url, cache, size, sha256: f"{cache}/{url.rsplit('/')[-1]}")

    def listed(source: str) -> list[str]:
        return [p.name for p in sources.list_images([source], cache=str(tmp_path))]

    assert listed("div2k") == ["DIV2K_train_HR/0001.png", "DIV2K_valid_HR/0801.png"]
    assert listed("div2k/valid") == ["DIV2K_valid_HR/0801.png"]
    with pytest.raises(UserError, match="source div2k/test is unknown, expected div2k, div2k/train or div2k/valid"):
        listed("div2k/test")
