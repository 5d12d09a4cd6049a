import io
import tarfile
import zipfile
from pathlib import Path
from typing import Literal

import fsspec
import numpy as np
import pytest
from PIL import Image

from pipeline.data import benchmark_sets, datasets, sources
from pipeline.data.benchmark_sets import BenchmarkImage
from pipeline.data.datasets import WebArchive
from pipeline.data.images import decode
from pipeline.data.listing import SourceImage
from pipeline.data.rejection import RejectedImageError, RejectionKind
from pipeline.data.sources import read_bytes
from pipeline.settings import UserError
from pipeline.storage import download
from tests.conftest import random_image

RGB = Image.fromarray(random_image(20, 30))


def list_images(wanted: list[str]) -> list[SourceImage]:
    return sources.list_images(wanted, cache="/none")


def list_benchmark(folder: Path, scale: int) -> list[BenchmarkImage]:
    return benchmark_sets.list_images("Set5", str(folder), scale, cache="/none")


def test_the_built_in_photographs_are_there() -> None:
    images = list_images(["builtin"])
    assert len(images) == 9
    for image in images:
        assert min(decode(read_bytes(image.url), 10**7).shape[:2]) >= 300


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


def png(image: Image.Image = RGB) -> bytes:
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return sink.getvalue()


def write_archive(file: Path, members: dict[str, bytes]) -> str:
    if file.suffix == ".zip":
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
    else:
        mode: Literal["w:gz", "w:"] = "w:gz" if file.name.endswith("gz") else "w:"
        with tarfile.open(file, mode) as archive:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return str(file)


@pytest.mark.parametrize("name", ["set.zip", "set.tar", "set.tar.gz", "SET.tgz"])
def test_archives_are_read_without_unpacking_them(tmp_path: Path, name: str) -> None:
    members = {"set/b.png": png(), "set/a.png": png(), "readme.txt": b"", "__MACOSX/._a.png": b"", "../evil.png": png()}
    found = list_images([write_archive(tmp_path / name, members)])
    assert [p.name for p in found] == ["../evil.png", "set/a.png", "set/b.png"]
    assert all(np.array_equal(decode(read_bytes(p.url), 10**6), np.asarray(RGB)) for p in found)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_an_archive_may_lie_at_any_url(tmp_path: Path) -> None:
    content = Path(write_archive(tmp_path / "set.zip", {"a.png": png()})).read_bytes()
    fsspec.filesystem("memory").pipe("/bucket/set.zip", content)
    (image,) = list_images(["memory://bucket/set.zip"])
    assert read_bytes(image.url) == png()


def test_a_damaged_member_is_rejected_and_a_damaged_archive_refused(tmp_path: Path) -> None:
    file = Path(write_archive(tmp_path / "set.zip", {"a.png": png(), "b.png": png()}))
    content = bytearray(file.read_bytes())
    content[content.find(b"a.png") + 200] ^= 255
    file.write_bytes(content)
    bad, good = list_images([str(file)])
    with pytest.raises(RejectedImageError, match="cannot be read from its archive: Bad CRC-32") as rejected:
        read_bytes(bad.url)
    assert rejected.value.rejection.kind is RejectionKind.DAMAGED
    assert read_bytes(good.url) == png()
    (tmp_path / "cut.zip").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"cut.zip cannot be read: .*, expected a whole zip archive"):
        list_images([str(tmp_path / "cut.zip")])
    with pytest.raises(UserError, match=r"none.tar does not exist, expected a tar archive"):
        list_images([str(tmp_path / "none.tar")])


def test_a_member_changes_its_version_with_its_content(tmp_path: Path) -> None:
    before = list_images([write_archive(tmp_path / "set.zip", {"a.png": png(), "b.png": png()})])
    changed = Image.fromarray(random_image(20, 30, seed=1))
    after = list_images([write_archive(tmp_path / "set.zip", {"a.png": png(), "b.png": png(changed)})])
    assert before[0].version == after[0].version
    assert before[1].version != after[1].version


def test_div2k_consists_of_two_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The archives are already in the cache; tests/pipeline/storage tests downloads."""
    archives = {}
    for part, number in (("train", "0001"), ("valid", "0801")):
        name = f"DIV2K_{part}_HR"
        file = Path(write_archive(tmp_path / f"{name}.zip", {f"{name}/{number}.png": png()}))
        archives[part] = WebArchive(f"https://example.org/{name}.zip", file.stat().st_size, "")
    monkeypatch.setattr(datasets, "DIV2K", archives)
    monkeypatch.setattr(download, "fetch", lambda url, cache, size, sha256: f"{cache}/{url.rsplit('/')[-1]}")

    def names(source: str) -> list[str]:
        return [p.name for p in sources.list_images([source], cache=str(tmp_path))]

    assert names("div2k") == ["DIV2K_train_HR/0001.png", "DIV2K_valid_HR/0801.png"]
    assert names("div2k/valid") == ["DIV2K_valid_HR/0801.png"]
    with pytest.raises(UserError, match="source div2k/test is unknown, expected div2k, div2k/train or div2k/valid"):
        names("div2k/test")


@pytest.mark.parametrize(
    ("hr", "lr"),
    [
        ("HR/baby.png", "LR_bicubic/X4/babyx4.png"),
        ("HR/baby.png", "LRbicx4/baby.png"),
        ("GTmod12/baby.png", "LRbicx4/baby.png"),
        ("image_SRF_4/baby_SRF_4_HR.png", "image_SRF_4/baby_SRF_4_LR.png"),
        ("baby_SRF_4_HR.png", "baby_SRF_4_LR.png"),
    ],
)
def test_benchmark_layouts(tmp_path: Path, hr: str, lr: str) -> None:
    others = ["image_SRF_2/baby_SRF_2_HR.png", "image_SRF_4/baby_SRF_4_bicubic.png"] if "SRF" in hr else []
    others += ["LR_bicubic/X2/babyx2.png"] if "X4" in lr else []
    for file in (hr, lr, *others):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        RGB.save(tmp_path / file)
    (found,) = list_benchmark(tmp_path, 4)
    assert found.name == "baby"
    assert found.hr.endswith(hr)
    assert str(found.lr).endswith(lr)
    (tmp_path / lr).unlink()
    (alone,) = list_benchmark(tmp_path, 4)
    assert (alone.name, alone.lr) == ("baby", None)


def test_a_benchmark_of_hr_images_alone(tmp_path: Path) -> None:
    RGB.save(tmp_path / "baby.png")
    (found,) = list_benchmark(tmp_path, 4)
    assert (found.name, found.lr) == ("baby", None)


def test_a_benchmark_that_lacks_an_lr_file_is_refused(tmp_path: Path) -> None:
    for file in ("HR/baby.png", "HR/bird.png", "LRbicx4/baby.png"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        RGB.save(tmp_path / file)
    with pytest.raises(UserError, match="has no LR file for bird"):
        list_benchmark(tmp_path, 4)
