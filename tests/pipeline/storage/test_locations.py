from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given
from hypothesis import strategies as st

from pipeline import storage

ODD = ["a::b", "[x]*?", "50%20 #1", "c:d", "e\nf", "~g", "memory::h", "file:i", "\u00e9", "caf\udce9"]


@pytest.mark.parametrize("name", ODD)
def test_files_of_any_name_are_written_listed_and_removed(tmp_path: Path, name: str) -> None:
    folder = f"{tmp_path}/{name}"
    storage.write(f"{folder}/{name}", b"content")
    assert storage.read(f"{folder}/{name}") == b"content"
    assert storage.size(f"{folder}/{name}") == 7
    assert storage.names(str(tmp_path)) == storage.names(folder) == [name]
    with storage.local_copy(f"{folder}/{name}") as file:
        assert file.read_bytes() == b"content"
    storage.copy(file, f"{folder}/copy")
    storage.remove(folder)
    assert not storage.exists(folder)
    assert tmp_path.is_dir()


@pytest.mark.parametrize("name", ["a::b", "[x]*?", "50%20 #1"])
def test_names_in_a_store_are_taken_as_they_are(name: str) -> None:
    folder = f"memory://bucket-{len(name)}/{name}"
    neighbour = f"memory://bucket-{len(name)}/xyz"  # which the name would match as a pattern
    storage.write(f"{folder}/{name}", b"content")
    storage.write(f"{neighbour}/file", b"other")
    assert storage.read(f"{folder}/{name}") == b"content"
    assert storage.names(folder) == [name]
    storage.remove(folder)
    assert storage.names(folder) == []
    assert storage.read(f"{neighbour}/file") == b"other"


@given(st.text(st.characters(exclude_characters="\0"), min_size=1))
def test_an_absolute_path_is_verbatim(text: str) -> None:
    fs, path = storage.locate(f"/{text}")
    assert isinstance(fs, LocalFileSystem)
    assert path == f"/{text}".rstrip("/") or path == "/"


def test_urls_and_paths_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(map(storage.is_url, ("s3://a", "memory://", "abfss://x@y/z", "simplecache::s3://a")))
    assert not any(map(storage.is_url, ("a::b", "/x/a:/b", "C:\\x", "://x", "a b://c", "/x/s3://y")))
    monkeypatch.chdir(tmp_path)
    assert storage.locate("a::b")[1] == f"{tmp_path}/a::b"
    assert storage.locate(f"file://{tmp_path}/a::b")[1] == f"{tmp_path}/a::b"


def test_a_chain_of_file_systems_is_still_one(tmp_path: Path) -> None:
    fsspec.filesystem("memory").pipe("/chained/file", b"content")
    assert storage.read("simplecache::memory://chained/file") == b"content"


@pytest.mark.parametrize(
    "text",
    [
        "2026-01-01T12:34:56.789Z",
        "2026-01-01T12:34:56+02:00",
        "2026-01-01T12:34:56",
        "20260101T123456Z",
        "1704067200",
        1704067200,
        "Wed, 01 Jan 2026 12:34:56 GMT",
    ],
)
def test_times_of_s3_mean_what_they_mean_to_its_client(text: str | float) -> None:
    """They are parsed by another function, which is much faster."""
    from botocore import parsers
    from botocore.utils import parse_timestamp

    storage.locate("s3://bucket/key")
    assert parsers.DEFAULT_TIMESTAMP_PARSER is not parse_timestamp
    assert parsers.DEFAULT_TIMESTAMP_PARSER(text) == parse_timestamp(text)
