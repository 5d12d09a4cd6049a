"""JSON files that are damaged: one sentence, or as if they were missing."""

import errno
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import storage
from pipeline.storage import DamagedFileError


@dataclass(frozen=True)
class Document:
    name: str
    sizes: dict[str, int]


WHOLE = json.dumps({"name": "set", "sizes": {"a": 1}}).encode()
DAMAGED = [
    b"",
    bytes(40),
    WHOLE[:-1],
    b"[]",
    b"null",
    b'{"name": "set"}',
    b'{"name": 3, "sizes": []}',
    b"\xff\xfe",
    b"[" * 5000,
]


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_file_is_one_sentence_with_what_to_do(tmp_path: Path, content: bytes) -> None:
    url = str(tmp_path / "document.json")
    Path(url).write_bytes(content)
    with pytest.raises(DamagedFileError) as error:
        storage.read_document(url, Document)
    text = str(error.value)
    assert text.startswith(f"{url} is damaged")
    assert text.endswith("; delete it and rerun the command, which makes it again")
    assert "\n" not in text
    assert len(text) < len(url) + 400
    with pytest.raises(DamagedFileError, match=r"is damaged.*; restore it$"):
        storage.read_document(url, Document, "restore it")


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_file_that_can_be_made_again_counts_as_missing(
    tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    url = str(tmp_path / "document.json")
    assert storage.read_expendable(url, Document, "it is made again") is None
    assert capsys.readouterr().err == ""
    Path(url).write_bytes(content)
    for _ in range(3):
        assert storage.read_expendable(url, Document, "it is made again") is None
    (line,) = capsys.readouterr().err.splitlines()  # once, however often it is read
    assert line.startswith(f"{url} is damaged")
    assert line.endswith("; it is made again")
    assert storage.read_expendable(url, Document) is None
    assert capsys.readouterr().err == ""


@given(place=st.integers(0, len(WHOLE) - 1), value=st.integers(0, 255))
def test_no_changed_byte_raises_anything_else(place: int, value: int) -> None:
    content = bytearray(WHOLE)
    content[place] = value
    with suppress(DamagedFileError):
        storage.parse_document(bytes(content), Document, "document.json")


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    """The error of a write does not say which file it was."""
    url = str(tmp_path / "document.json")
    with pytest.raises(OSError, match=r"No space left on device: .*document.json"), storage.create(url):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())
