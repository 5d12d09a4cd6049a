"""Files of any name are read, or left out by name."""

import os
import posixpath
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data import sources
from pipeline.data.locations import identity
from pipeline.settings import UserError
from pipeline.settings.command_line import parse
from pipeline.storage import unicode_name
from tests.archives import write_archive

_ODD = [
    "Screen::1", "s3:", "zip:::", "[2024] trip", "[!a]", "what?", "st*r", "**", "a%20b", "50%", "#1", "?x=1", "{a,b}",
    "-x", "--home", "~", "~root", "$HOME", "e\u0301", "\u00e9", "日本語", "\U0001f600", "new\nline", "tab\t", " lead",
    "trail ", "q'\"", "back\\slash", "a;b&c", "caf\udce9", "caf\\xe9", "\udcff\udc80", "x" * 200, ".hidden",
    "__MACOSX", "set.zip", "a.png", "...", "\u202egnp", "\x1b[31m", "\x7f",
]  # fmt: skip
_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=20)
_part = st.one_of(st.sampled_from(_ODD), _text).filter(lambda part: part not in (".", ".."))
_path = st.lists(_part, min_size=1, max_size=3).map(lambda parts: "/".join(parts) + ".png")
_contents = st.lists(_path, min_size=1, max_size=6, unique=True).map(
    lambda paths: {path: f"content {number}".encode() for number, path in enumerate(paths)}
)


def check(source: str, contents: Mapping[str, bytes]) -> None:
    """Check that each file is listed with its content, or left out by its name or that of a folder that it is in."""
    listing = sources.list_source(source, cache="/none")
    assert {sources.read_bytes(image.location) for image in listing.images} <= set(contents.values())
    found: dict[str, set[bytes]] = {}  # "caf\\xe9" is the name of a file, or how another name is shown
    for image in listing.images:
        found.setdefault(image.name, set()).add(sources.read_bytes(image.location))
    left_out = {entry.name for entry in listing.left_out}
    for path, content in contents.items():
        folders = {path[:end] for end, sign in enumerate(path) if sign == "/"}
        assert content in found.get(unicode_name(path), ()) or left_out & {path, *folders}, ascii(path)
    listing.summary().encode()  # it can be printed
    names = "".join(image.name for image in listing.images)
    assert names.encode().decode() == names
    assert len({identity(image.location) for image in listing.images}) == len(listing.images)


@given(contents=_contents)
def test_files_of_any_name_in_a_folder(contents: Mapping[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        written = {}
        for path, content in contents.items():
            file = Path(folder, path)
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
            except OSError:  # the name is too long, or that of a folder
                continue
            written[path] = content
        check(folder, written)


@given(contents=_contents)
def test_members_of_any_name_in_a_tar_archive(contents: Mapping[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        check(write_archive(Path(folder, "set.tar"), contents), contents)


@given(contents=_contents)
def test_members_of_any_name_in_a_zip_archive(contents: Mapping[str, bytes]) -> None:
    contents = {path: content for path, content in contents.items() if unicode_name(path) == path}
    with tempfile.TemporaryDirectory() as folder:
        check(write_archive(Path(folder, "set.zip"), contents), contents)


@pytest.mark.parametrize("name", ["[1] a?b*::%23#.zip", "-\n'\".tar.gz"])
def test_an_archive_may_have_any_name(tmp_path: Path, name: str) -> None:
    check(write_archive(tmp_path / name, {"a::b.png": b"a"}), {"a::b.png": b"a"})


@pytest.mark.parametrize(
    "name", ["[2024] trip", "a,b", "q'\"", "{x", "[z", "new\nline", "Screen::1", "50%20 #?", "a=b"]
)
def test_a_folder_of_any_name_can_be_given_on_the_command_line(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    options = [f"--source={folder}", f"--home={folder}", f"--evaluate.benchmarks=Set5={folder}"]
    config = parse(options, "run", "")
    assert (config.source, config.home, config.evaluate.benchmarks) == (
        [str(folder)],
        str(folder),
        {"Set5": str(folder)},
    )


def test_a_source_that_is_not_utf_8_is_refused_in_a_sentence() -> None:
    with pytest.raises(UserError, match=r"source is .*/x/caf.*, expected a path in UTF-8: rename it"):
        parse(["--source=/x/caf\udce9"], "preprocess", "")


def test_two_names_that_look_alike_when_escaped_are_two_images(tmp_path: Path) -> None:
    (tmp_path / "caf\\xe9.png").write_bytes(b"utf-8")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")).write_bytes(b"latin-1")
    images = sources.list_images([str(tmp_path)], "/none")
    assert {sources.read_bytes(image.location) for image in images} == {b"utf-8", b"latin-1"}
    assert len({image.name for image in images}) == len({identity(image.location) for image in images}) == 2


def test_a_path_of_any_length_is_read(tmp_path: Path) -> None:
    parts = posixpath.join(*["d" * 100] * 30)
    os.makedirs(tmp_path / parts)
    (tmp_path / parts / "a.png").write_bytes(b"deep")
    check(str(tmp_path), {f"{parts}/a.png": b"deep"})
