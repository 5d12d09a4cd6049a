import os
import re
import string

from hypothesis import given
from hypothesis import strategies as st

from pipeline.storage import one_line, plain_name, printable, unicode_name

_any_text = st.text() | st.binary().map(os.fsdecode)


@given(path=st.text())
def test_a_plain_name_suits_every_store(path: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_.-]{0,100}", plain_name(path))


@given(path=st.text(string.ascii_letters + string.digits + "_.-", max_size=100))
def test_a_plain_name_stays_as_it_is(path: str) -> None:
    assert plain_name(path) == path


def test_long_paths_have_different_plain_names() -> None:
    names = {plain_name("d" * 200 + f"/{number}.png") for number in range(100)}
    assert len(names) == 100
    assert plain_name("sub/a b.png") == "sub_a_b.png"  # a name that existing reports have


@given(text=_any_text)
def test_texts_can_be_printed_in_one_line(text: str) -> None:
    for shown in (printable(text), one_line(text)):
        assert shown.encode().decode() == shown
        assert len(shown.splitlines()) <= 1
        assert "\x1b" not in shown


@given(name=_any_text)
def test_only_bytes_that_are_not_utf_8_change_a_name(name: str) -> None:
    shown = unicode_name(name)
    assert shown.encode().decode() == shown
    assert (shown == name) == name.isprintable() or not re.search("[\ud800-\udfff]", name)


def test_escape_sequences() -> None:
    assert unicode_name(os.fsdecode(b"caf\xe9.png")) == r"caf\xe9.png"
    assert printable("a\nb\x1b[31m\u202e") == r"a\nb\x1b[31m\u202e"
    assert printable("日本 é \U0001f600") == "日本 é \U0001f600"
