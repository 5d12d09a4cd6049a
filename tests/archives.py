"""Archives that tests write."""

import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from tests.conftest import random_image


def png(seed: int = 0) -> bytes:
    """Return a small PNG file of random pixels."""
    sink = io.BytesIO()
    Image.fromarray(random_image(20, 30, seed)).save(sink, "PNG")
    return sink.getvalue()


def write_archive(file: Path, members: Mapping[str, bytes]) -> str:
    """Write a zip or tar archive, which the ending chooses, and return its path."""
    if file.suffix == ".zip":
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
    else:
        endings: dict[str, Literal["gz", "bz2", "xz", ""]] = {"gz": "gz", "bz2": "bz2", "xz": "xz"}
        compression = next((kind for ending, kind in endings.items() if file.name.endswith(ending)), "")
        with tarfile.open(file, f"w:{compression}") as tar:  # type: ignore[call-overload]
            for name, content in members.items():
                add(tar, name, content)
    return str(file)


def add(archive: tarfile.TarFile, name: str, content: bytes = b"", **fields: Any) -> None:
    """Add a member to a tar archive; `fields` are further attributes of its header."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    archive.addfile(info, io.BytesIO(content) if content else None)
