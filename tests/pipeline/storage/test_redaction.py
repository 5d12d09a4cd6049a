"""No secret of a URL survives `redact`; its host and path do."""

import string
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.storage import redact

WORDS = st.text(string.ascii_lowercase, min_size=3, max_size=8)
HOSTS = st.one_of(
    st.builds("{}.example.com".format, WORDS),
    st.builds("{}.example.com:{}".format, WORDS, st.integers(1, 65535)),
    st.sampled_from(["localhost:5000", "127.0.0.1", "[2001:db8::1]:8443", "minio:9000"]),
)
PATHS = st.lists(WORDS, min_size=1, max_size=3).map("/".join)
SECRETS = st.text(string.ascii_letters + string.digits + "@/#?:%&=+!$*;,~.-_", min_size=1, max_size=12)
"""Passwords and tokens as people paste them, without escapes; the tests add a mark to each."""
ESCAPED = st.text(string.ascii_letters + "%-_.", min_size=1, max_size=12)
KEYS = st.sampled_from(
    [
        "token",
        "access_token",
        "sig",
        "Signature",
        "key",
        "api-key",
        "secret",
        "password",
        "X-Amz-Credential",
        "pwd",
        "X-Amz-Security-Token",
        "X-Amz-Signature",
        "X-Goog-Signature",
        "AWSAccessKeyId",
        "sv",
        "se",
        "sp",
        "auth",
    ]
)
SCHEMES = st.sampled_from(["http", "https", "postgresql+psycopg2", "s3", "ftp"])


def mark(secret: str, number: int) -> str:
    """Put marks at both ends and in the middle, by which a test recognises any piece of the secret."""
    middle = len(secret) // 2
    return f"Q{number}Q{secret[:middle]}Q{number}Q{secret[middle:]}Q{number}Q"


@given(SCHEMES, SECRETS, SECRETS, HOSTS, PATHS, KEYS, ESCAPED, ESCAPED)
def test_no_piece_of_a_secret_remains(
    scheme: str, user: str, password: str, host: str, path: str, key: str, value: str, fragment: str
) -> None:
    user = mark(user.translate(str.maketrans("/?#", "---")), 1)
    url = f"{scheme}://{user}:{mark(password, 2)}@{host}/{path}?version=3&{key}={mark(value, 3)}#{mark(fragment, 4)}"
    for text in (url, f"cannot read '{url}': no answer", f"[{url}, {url}]", f"a {url}\nb"):
        shown = redact(text)
        assert not [number for number in range(1, 5) if f"Q{number}Q" in shown], shown
        assert f"{scheme}://{host}/{path}?" in shown
        assert "***" in shown
        assert redact(shown) == shown


@given(SCHEMES, HOSTS, PATHS)
def test_a_url_without_secrets_is_unchanged(scheme: str, host: str, path: str) -> None:
    for url in (f"{scheme}://{host}/{path}", f"{scheme}://{host}", f"{scheme}://{host}/{path}?page=3&full=true"):
        assert redact(url) == url
        assert redact(f"'{url}' (see {url}), {url}.") == f"'{url}' (see {url}), {url}."


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:p@ss/word@host/x?sig=abc", "https://host/x?sig=***"),
        ("https://ghp_abc@github.com/a/b", "https://github.com/a/b"),
        ("https://ab/cd==@host/x", "https://host/x"),
        ("https://me@mail.org:p#a?b@host/x", "https://host/x"),
        ("https://user:12/3@host/x", "https://host/x"),
        ("https://:pw@host:5000", "https://host:5000"),
        ("https:///user:pw@host/x", "https://host/x"),
        ("postgresql://u:p%40ss@db/mlflow?sslmode=require&password=p", "postgresql://db/mlflow?sslmode=require&password=***"),
        ("s3://AKIA:se/cr+et@bucket/folder/a.png", "s3://bucket/folder/a.png"),
        ("s3://bucket/x?endpoint_override=http://k:s@127.0.0.1:8333", "s3://bucket/x?endpoint_override=http://127.0.0.1:8333"),
        ("https://acc.blob.core.windows.net/c/x.zip?sv=2022&se=1&sr=b&sp=r&sig=a%2Fb", "https://acc.blob.core.windows.net/c/x.zip?sv=***&se=***&sr=***&sp=***&sig=***"),
        ("https://h.org/x?Expires=17&Key-Pair-Id=K&Signature=s", "https://h.org/x?Expires=***&Key-Pair-Id=***&Signature=***"),
        ("https://h.org/x?0123456789abcdef", "https://h.org/x?***"),
        ("https://h.org/x#access_token=abc", "https://h.org/x#***"),
        ("https://h.org/x;jsessionid=abc/y", "https://h.org/x;jsessionid=***/y"),
        ("zip://a.png::https://u:p@host/x.zip", "zip://a.png::https://host/x.zip"),
        ("https://u:p@a/x.zip,https://u:p@b/y.zip,div2k", "https://a/x.zip,https://b/y.zip,div2k"),
        ('{"uri":"https://u:p@a/x","other":"https://u:p@b/y"}', '{"uri":"https://a/x","other":"https://b/y"}'),
    ],
)  # fmt: skip
def test_examples(url: str, shown: str) -> None:
    assert redact(url) == shown


@pytest.mark.parametrize(
    "text",
    [
        "https://cdn.example.com/@scope/package@1.2/x.png",
        "http://127.0.0.1:5000/img@2x.png",
        "s3://bucket/img@2x.png",
        "abfs://container@account.dfs.core.windows.net/x",
        "sqlite:////home/me@work/runs/mlflow.db",
        "file:///home/a:b@c/x",
        "expected http://HOST:PORT or HOST:6379",
        "me@example.org: no URL, and nothing?sig=abc",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


def test_a_long_list_of_urls() -> None:
    text = ",".join(["https://u:p@host/x"] * 20_000)
    assert redact(text) == ",".join(["https://host/x"] * 20_000)


@pytest.mark.parametrize("filling", ["a", "(", "@", "/", "?", "&", ";", ","])
def test_the_time_grows_with_the_length_of_the_text(filling: str) -> None:
    start = time.monotonic()
    redact(f"https://user:pw@host/{filling * 300_000} {filling * 300_000}")
    assert time.monotonic() - start < 5
