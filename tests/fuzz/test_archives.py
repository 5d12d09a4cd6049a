"""Mutated zip and tar archives are listed or refused, and their members are read or rejected, each with a reason."""

import contextlib
import io
import random
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.data.archives import list_archive
from pipeline.data.rejection import RejectedImageError
from pipeline.data.sources import read_bytes
from pipeline.settings import UserError
from tests.fuzz.campaign import Campaign, whole_campaign
from tests.fuzz.mutations import mutate_bytes

LIMIT = 2**20
NAMES = ("photos/a.png", "photos/b.jpg", "c.webp", "notes.txt", "photos/.hidden.png")


def content(name: str) -> bytes:
    return random.Random(name).randbytes(300) + bytes(500)


def zip_seed(method: int) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", method) as archive:
        for name in NAMES:
            archive.writestr(name, content(name))
        link = zipfile.ZipInfo("link.png")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "photos/a.png")
    return sink.getvalue()


def tar_seed(mode: str, form: int) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode=f"w:{mode}", format=form) as archive:  # type: ignore[call-overload]
        for name in (*NAMES, f"{'long/' * 40}d.png", "photos/é.png"):
            info = tarfile.TarInfo(name)
            info.size = len(content(name))
            archive.addfile(info, io.BytesIO(content(name)))
        for kind, target in ((tarfile.SYMTYPE, "photos/a.png"), (tarfile.LNKTYPE, "c.webp"), (tarfile.FIFOTYPE, "")):
            info = tarfile.TarInfo(f"link{kind.decode()}.png")
            info.type, info.linkname = kind, target
            archive.addfile(info)
    return sink.getvalue()


def repair(tar: bytes) -> bytes:
    """Set right the checksums of the headers of a plain tar archive, so that a change reaches what reads them."""
    repaired, position = bytearray(tar), 0
    while position + 512 <= len(repaired) and any(repaired[position : position + 512]):
        header = repaired[position : position + 512]
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        repaired[position : position + 512] = header
        size = bytes(header[124:136]).strip(b"\0 ")
        position += 512 + (int(size, 8) + 511) // 512 * 512 if size.isdigit() and b"8" not in size + b"9" else 512
    return bytes(repaired)


KINDS: dict[str, tuple[str, Callable[[], list[bytes]]]] = {
    "zip": (".zip", lambda: [zip_seed(method) for method in (0, 8, 12, 14)]),
    "tar": (".tar", lambda: [tar_seed("", form) for form in (0, 1, 2)]),
    "tar.gz": (".tar.gz", lambda: [tar_seed("gz", 1), tar_seed("gz", 2)]),
    "tar.bz2": (".tar.bz2", lambda: [tar_seed("bz2", 1)]),
    "tar.xz": (".tar.xz", lambda: [tar_seed("xz", 1)]),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [25, pytest.param(600, marks=whole_campaign)])
def test_mutated_archives(tmp_path: Path, kind: str, count: int) -> None:
    ending, seeds = KINDS[kind]
    whole = seeds()
    file = tmp_path / f"archive{ending}"

    def make(random_: random.Random) -> bytes:
        mutated = mutate_bytes(random_, whole)
        return repair(mutated) if kind == "tar" and random_.random() < 0.6 else mutated

    def use(archive: bytes) -> None:
        file.write_bytes(archive)
        for image in list_archive(str(file)).images:
            with contextlib.suppress(RejectedImageError):
                assert len(read_bytes(image.location, LIMIT)) <= LIMIT

    Campaign(kind, make, use, (UserError,), tmp_path).run(count)


@pytest.mark.parametrize("kind", KINDS)
def test_the_seeds_are_whole(tmp_path: Path, kind: str) -> None:
    ending, seeds = KINDS[kind]
    for number, archive in enumerate(seeds()):
        file = tmp_path / f"{number}{ending}"
        file.write_bytes(archive)
        images = {image.name: read_bytes(image.location) for image in list_archive(str(file)).images}
        assert {name: images[name] for name in NAMES[:3]} == {name: content(name) for name in NAMES[:3]}
        assert any(name.startswith("link") for name in images)
