import io
import os
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data import sources
from pipeline.data.images import decode
from pipeline.data.listing import Listing
from pipeline.data.rejection import RejectedImageError, RejectionKind
from pipeline.data.source_images import SourceImage
from pipeline.settings import UserError
from tests.archives import add, png, write_archive

PIXELS = decode(png(), 10**6)


def list_source(source: Path | str) -> Listing:
    return sources.list_source(str(source), cache="/none")


def read(image: SourceImage, max_bytes: int | None = None) -> bytes:
    return sources.read_bytes(image.location, max_bytes)


def contents(source: Path | str) -> dict[str, bytes]:
    return {image.name: read(image) for image in list_source(source).images}


def write_tar(file: Path, *members: tuple[str, bytes, Mapping[str, object]]) -> Path:
    with tarfile.open(file, "w") as archive:
        for name, content, fields in members:
            add(archive, name, content, **fields)
    return file


def write_zip(file: Path, method: int, **members: bytes) -> Path:
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.png", content)
    return file


@contextmanager
def little_memory() -> Iterator[None]:
    """Check that the block takes less than 20 MB."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


ENDINGS = ["zip", "tar", "tar.gz", "tgz", "tar.bz2", "tbz2", "tar.xz", "txz"]


@pytest.mark.parametrize("ending", [*ENDINGS, "TAR.GZ"])
def test_archives_are_read_without_unpacking_them(tmp_path: Path, ending: str) -> None:
    members = {"set/b.png": png(), "./set/a.png": png(), "readme.txt": b"", "../evil.png": png(), "/abs.png": png()}
    found = list_source(write_archive(tmp_path / f"set.{ending}", members))
    assert [image.name for image in found.images] == ["../evil.png", "abs.png", "set/a.png", "set/b.png"]
    assert all(np.array_equal(decode(read(image), 10**6), PIXELS) for image in found.images)
    assert [file.name for file in tmp_path.iterdir()] == [f"set.{ending}"]
    assert "1 file of another type (.txt 1)" in found.summary()


def test_an_archive_may_lie_at_any_url(tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    for ending in ("zip", "tar.gz"):
        file = Path(write_archive(tmp_path / f"set.{ending}", {"a.png": png()}))
        store.pipe(f"/bucket/set.{ending}", file.read_bytes())
        assert contents(f"memory://bucket/set.{ending}") == {"a.png": png()}


def test_the_members_of_a_compressed_archive_are_read_in_any_order(tmp_path: Path) -> None:
    members = {f"{number}.png": os.urandom(100_000) for number in range(5)}
    images = list_source(write_archive(tmp_path / "set.tar.gz", members)).images
    assert {image.name: read(image) for image in reversed(images)} == members


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA], ids=str
)
def test_a_damaged_member_is_rejected_and_the_others_are_read(tmp_path: Path, method: int) -> None:
    bad, good = png(1), png(2)
    file = write_zip(tmp_path / "set.zip", method, a=bad, b=good)
    content = bytearray(file.read_bytes())
    for place in range(content.find(b"a.png") + 60, content.find(b"b.png") - 60):
        content[place] ^= 255
    file.write_bytes(content)
    first, second = list_source(file).images
    with pytest.raises(RejectedImageError, match="cannot be read from its archive: ") as rejected:
        read(first)
    assert rejected.value.rejection.kind is RejectionKind.DAMAGED
    assert read(second) == good


def patched(file: Path, place: int, value: int) -> None:
    """Change a 2-byte field of all members; `place` is its position in a local header."""
    content = bytearray(file.read_bytes())
    for mark, shift in ((b"PK\3\4", 0), (b"PK\1\2", 2)):
        at = content.find(mark)
        while at >= 0:
            struct.pack_into("<H", content, at + place + shift, value)
            at = content.find(mark, at + 1)
    file.write_bytes(content)


@pytest.mark.parametrize(("place", "value", "reason"), [(6, 1, "is encrypted"), (8, 99, "compression method")])
def test_an_encrypted_or_unknown_member_is_rejected(tmp_path: Path, place: int, value: int, reason: str) -> None:
    file = write_zip(tmp_path / "set.zip", zipfile.ZIP_DEFLATED, a=png())
    patched(file, place, value)
    (image,) = list_source(file).images
    with pytest.raises(RejectedImageError, match=reason):
        read(image)


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    content = write_zip(tmp_path / "set.zip", zipfile.ZIP_STORED, a=png(1), b=png(2)).read_bytes()
    (tmp_path / "cut.zip").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"cut.zip cannot be read: .*, expected a whole zip archive"):
        list_source(tmp_path / "cut.zip")
    with pytest.raises(UserError, match=r"none.tar does not exist, expected a tar archive"):
        list_source(tmp_path / "none.tar")
    (tmp_path / "text.tar").write_text("no archive" * 100)
    with pytest.raises(UserError, match=r"text.tar cannot be read: .*, expected a whole tar archive"):
        list_source(tmp_path / "text.tar")


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_a_tar_archive_that_is_cut_off_or_damaged_is_refused(tmp_path: Path, ending: str) -> None:
    """Otherwise the members behind the damage would be missing without a word."""
    file = Path(write_archive(tmp_path / f"set.{ending}", {f"{number}.png": png(number) for number in range(4)}))
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="expected a whole tar archive"):
        list_source(file)
    middle = content.find(b"2.png") if ending == "tar" else len(content) // 2
    file.write_bytes(
        content[:middle] + bytes(value ^ 255 for value in content[middle : middle + 50]) + content[middle + 50 :]
    )
    with pytest.raises(UserError, match="expected a whole tar archive"):
        list_source(file)


def test_a_wrong_checksum_behind_a_compressed_archive_is_noticed(tmp_path: Path) -> None:
    file = Path(write_archive(tmp_path / "set.tar.gz", {"a.png": png()}))
    content = file.read_bytes()
    file.write_bytes(content[:-8] + bytes(4) + content[-4:])
    with pytest.raises(UserError, match="CRC check failed"):
        list_source(file)


def test_links_in_a_tar_archive_count_as_files(tmp_path: Path) -> None:
    symbolic, hard = {"type": tarfile.SYMTYPE}, {"type": tarfile.LNKTYPE}
    file = write_tar(
        tmp_path / "set.tar",
        ("set/a.png", png(), {}),
        ("other/b.png", b"", {**symbolic, "linkname": "../set/a.png"}),
        ("c.png", b"", {**hard, "linkname": "set/a.png"}),
        ("d.png", b"", {**symbolic, "linkname": "./c.png"}),
        ("dead.png", b"", {**symbolic, "linkname": "nothing.png"}),
        ("circle.png", b"", {**symbolic, "linkname": "circle.png"}),
        ("linked", b"", {**symbolic, "linkname": "set"}),
    )
    assert contents(file) == dict.fromkeys(["c.png", "d.png", "other/b.png", "set/a.png"], png())
    summary = list_source(file).summary()
    assert "1 linked folder, which is not followed (linked)" in summary
    assert "2 that cannot be used (dead.png is a link to nothing, circle.png is a link to nothing)" in summary


def test_links_in_a_zip_archive_count_as_files(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("set/a.png", png())
        for name, target in (("b.png", "set/a.png"), ("dead.png", "nothing.png"), ("linked", "set")):
            link = zipfile.ZipInfo(name)
            link.create_system, link.external_attr = 3, 0o120777 << 16
            archive.writestr(link, target)
    assert contents(tmp_path / "set.zip") == dict.fromkeys(["b.png", "set/a.png"], png())
    summary = list_source(tmp_path / "set.zip").summary()
    assert "1 linked folder, which is not followed (linked)" in summary
    assert "1 that cannot be used (dead.png is a link to nothing)" in summary


def test_members_that_are_no_files_are_left_out_by_name(tmp_path: Path) -> None:
    kinds = {"pipe": tarfile.FIFOTYPE, "device": tarfile.CHRTYPE, "disk": tarfile.BLKTYPE}
    members = [(f"{name}.png", b"", {"type": kind}) for name, kind in kinds.items()]
    file = write_tar(tmp_path / "set.tar", ("a.png", png(), {}), *members)
    assert contents(file) == {"a.png": png()}
    for name in kinds:
        assert f"{name}.png is no regular file" in list_source(file).summary()


def test_a_name_with_nul_is_left_out_and_a_repeated_name_is_used_once(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name, content in (("Xevil.png", b"nul"), ("a.png", b"first"), ("a.png", b"last")):
            archive.writestr(name, content)
    content = (tmp_path / "set.zip").read_bytes().replace(b"Xevil.png", b"\0evil.png")
    (tmp_path / "set.zip").write_bytes(content)
    tar = write_tar(
        tmp_path / "set.tar",
        ("evil.png", b"nul", {"pax_headers": {"path": "\0evil.png"}}),
        ("a.png", b"first", {}),
        ("./a.png", b"last", {}),
    )
    for file in (tmp_path / "set.zip", tar):
        assert contents(file) == {"a.png": b"last"}
        summary = list_source(file).summary()
        assert "a.png is followed by a member of the same name" in summary
        assert r"\x00evil.png has a name with a NUL character" in summary


def test_a_member_is_not_decompressed_beyond_a_limit(tmp_path: Path) -> None:
    bomb = bytes(50_000_000)
    files = [
        write_zip(tmp_path / f"{method}.zip", method, a=bomb) for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA)
    ]
    files.append(Path(write_archive(tmp_path / "bomb.tar.gz", {"a.png": bomb})))
    for file in files:
        (image,) = list_source(file).images
        with little_memory(), pytest.raises(RejectedImageError, match="has 50000000 bytes") as rejected:
            read(image, 1_000_000)
        assert rejected.value.rejection.kind is RejectionKind.TOO_LARGE
        assert read(image) == bomb


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2], ids=str)
def test_a_member_that_is_larger_than_it_says_takes_little_memory(tmp_path: Path, method: int) -> None:
    file = write_zip(tmp_path / "set.zip", method, a=bytes(60_000_000))
    content = bytearray(file.read_bytes())
    struct.pack_into("<I", content, content.find(b"PK\1\2") + 24, 1000)  # the size in the central directory
    file.write_bytes(content)
    (image,) = list_source(file).images
    with little_memory(), pytest.raises(RejectedImageError, match="cannot be read from its archive"):
        read(image)


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_a_huge_header_is_refused(tmp_path: Path, ending: str) -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 2**40
    content = header.tobuf(tarfile.GNU_FORMAT) + bytes(100_000)
    with fsspec.open(str(tmp_path / f"set.{ending}"), "wb", compression="infer") as file:
        file.write(content)
    with little_memory(), pytest.raises(UserError, match="a header has 1099511627776 bytes, expected a whole tar"):
        list_source(tmp_path / f"set.{ending}")


def test_a_chain_of_headers_without_end_is_refused(tmp_path: Path) -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 512
    (tmp_path / "set.tar").write_bytes((header.tobuf(tarfile.GNU_FORMAT) + b"a" * 512) * 5000)
    with pytest.raises(UserError, match="expected a whole tar archive"):
        list_source(tmp_path / "set.tar")


def test_a_member_changes_its_version_with_its_content(tmp_path: Path) -> None:
    before = list_source(write_archive(tmp_path / "set.zip", {"a.png": png(), "b.png": png()})).images
    after = list_source(write_archive(tmp_path / "set.zip", {"a.png": png(), "b.png": png(1)})).images
    assert before[0].version == after[0].version
    assert before[1].version != after[1].version
    assert read(after[1]) == png(1)


def test_a_member_of_a_tar_changes_its_version_with_the_archive(tmp_path: Path) -> None:
    file = tmp_path / "set.tar"  # whose members always have the same time
    before = list_source(write_archive(file, {"a.png": b"1234"})).images[0]
    after = list_source(write_archive(file, {"a.png": b"4321"})).images[0]
    assert before.version != after.version


def _archives() -> list[tuple[str, bytes]]:
    methods = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    made = []
    for method in methods:
        sink = io.BytesIO()
        with zipfile.ZipFile(sink, "w", method) as archive:
            archive.writestr("set/a.png", png())
            archive.writestr("b.png", bytes(3000))
        made.append(("zip", sink.getvalue()))
    for ending in ("", "gz", "bz2", "xz"):
        sink = io.BytesIO()
        with tarfile.open(fileobj=sink, mode=f"w:{ending}") as tar:  # type: ignore[call-overload]
            add(tar, "set/a.png", png())
            add(tar, "long" * 60 + ".png", bytes(3000))
            add(tar, "link.png", type=tarfile.SYMTYPE, linkname="set/a.png")
        made.append((f"tar.{ending}".rstrip("."), sink.getvalue()))
    return made


ARCHIVES = _archives()


@given(
    archive=st.sampled_from(ARCHIVES),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6),
    end=st.floats(0, 1) | st.just(1.0),
)
def test_a_mutated_archive_is_read_rejected_or_refused(
    tmp_path_factory: pytest.TempPathFactory, archive: tuple[str, bytes], changes: list[tuple[float, int]], end: float
) -> None:
    ending, original = archive
    content = bytearray(original[: int(end * len(original))])
    for place, value in changes if content else []:
        content[int(place * (len(content) - 1))] = value
    file = tmp_path_factory.getbasetemp() / f"mutated.{ending}"
    file.write_bytes(content)
    try:
        images = list_source(file).images
    except UserError:
        return
    for image in images:
        with suppress(RejectedImageError):
            read(image, 10**6)
