"""Downloads from a real server that misbehaves as each test tells it to."""

import errno
import gzip
import hashlib
import json
import os
import random
import re
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import storage, terminal
from pipeline.downloads import download
from pipeline.downloads.download import DownloadError
from pipeline.storage import documents, files
from tests.conftest import ROOT, read_json

CONTENT = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(250_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
CUT = 100_000


@dataclass(frozen=True)
class Trouble:
    """How one answer goes wrong."""

    status: int | None = None
    cut: int | None = None
    """Bytes of the body after which the connection ends."""
    stalls: bool = False
    """True if the server waits for `Server.go_on` before it ends the connection."""
    damages: bool = False
    ignores_range: bool = False
    ignores_if_range: bool = False
    at_most: int | None = None
    """Bytes in an answer to a range."""
    chunked: bool = False
    headers: dict[str, str] = field(default_factory=dict)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/set/a%20b.zip?x=1"
        self.content = CONTENT
        self.validators = {"ETag": '"one"'}
        self.troubles: deque[Trouble] = deque()
        self.usual = Trouble()
        self.asked: list[dict[str, str]] = []
        self.sent = 0
        self.go_on = threading.Event()

    def ranges(self) -> list[str | None]:
        return [headers.get("Range") for headers in self.asked]


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server = self.server
        server.asked.append(dict(self.headers))
        trouble = server.troubles.popleft() if server.troubles else server.usual
        size = len(server.content)
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        current = self.headers.get("If-Range") in (None, *server.validators.values())
        status, start, end = trouble.status or 200, 0, size
        headers = server.validators | trouble.headers
        if wanted and not trouble.status and not trouble.ignores_range and (current or trouble.ignores_if_range):
            start = int(wanted[1])
            status = 206 if start < size else 416
            end = min(size, start + (trouble.at_most or size))
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}" if start < size else f"bytes */{size}"
        body = b"" if status >= 400 else server.content[start:end]
        if trouble.damages:
            body = body[:-1] + bytes([body[-1] ^ 255])
        headers |= {"Transfer-Encoding": "chunked"} if trouble.chunked else {"Content-Length": str(len(body))}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = True
        self.send(body[: trouble.cut], trouble.chunked, whole=trouble.cut is None)
        if trouble.stalls:
            server.go_on.wait(60)

    def send(self, body: bytes, chunked: bool, whole: bool) -> None:
        if chunked:
            pieces = [body[i : i + 1000] for i in range(0, len(body), 1000)] + [b""] * whole
            body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
        self.server.sent += len(body)  # before the client can have it
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.go_on.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture(scope="module", autouse=True)
def without_proxy() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield


@pytest.fixture
def pauses() -> list[float]:
    """The pauses between attempts, which are recorded instead of taken."""
    return []


@pytest.fixture
def cache(tmp_path: Path) -> str:
    return str(tmp_path / "cache")


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return f"memory://{tmp_path.name}/cache"


def fetch_url(
    url: str, cache: str, size: int | None = None, sha256: str | None = None, pauses: list[float] | None = None
) -> str:
    """Download without pauses between attempts; they are added to `pauses` instead."""
    return download.fetch(url, cache, size, sha256, sleep=([] if pauses is None else pauses).append)


def fetch(
    server: Server, cache: str, size: int | None = None, sha256: str | None = None, pauses: list[float] | None = None
) -> bytes:
    return Path(fetch_url(server.url, cache, size, sha256, pauses)).read_bytes()


def parts(cache: str) -> list[Path]:
    return list(Path(cache).glob("*.zip.part"))


def test_a_file_comes_with_a_note(server: Server, cache: str) -> None:
    file = Path(fetch_url(server.url, cache))
    assert file.read_bytes() == CONTENT
    assert file.parent == Path(cache)
    assert file.name.endswith("-a_b.zip")
    note = json.loads(Path(f"{file}.json").read_text())
    assert note == {"url": server.url, "bytes": len(CONTENT), "sha256": SHA256}
    assert server.ranges() == [None]
    assert not parts(cache)


def test_what_the_cache_has_is_not_asked_for_again(server: Server, cache: str) -> None:
    first = fetch_url(server.url, cache)
    assert fetch_url(server.url, cache) == first
    assert fetch_url(server.url, cache, len(CONTENT), SHA256) == first
    assert len(server.asked) == 1


def test_what_the_cache_has_is_replaced_if_another_is_expected(server: Server, cache: str) -> None:
    assert fetch(server, cache) == CONTENT
    server.content = OTHER
    server.validators = {"ETag": '"two"'}
    assert fetch(server, cache, sha256=hashlib.sha256(OTHER).hexdigest()) == OTHER
    assert fetch(server, cache) == OTHER
    assert len(server.asked) == 2


def test_a_shortened_file_in_the_cache_is_replaced(server: Server, cache: str) -> None:
    file = fetch_url(server.url, cache)
    os.truncate(file, CUT)
    assert fetch(server, cache) == CONTENT


def test_files_of_one_name_at_two_urls_are_two(server: Server, cache: str) -> None:
    server.troubles.append(Trouble(cut=CUT))
    other = server.url.replace("x=1", "x=2")
    assert len({fetch_url(server.url, cache), fetch_url(other, cache)}) == 2


def test_an_empty_file_is_a_file(server: Server, cache: str) -> None:
    server.content = b""
    assert fetch(server, cache) == b""


@pytest.mark.parametrize(
    ("validators", "validator"),
    [
        ({"ETag": '"one"'}, '"one"'),
        ({"ETag": 'W/"one"', "Last-Modified": "Mon, 05 Jan 2026 10:00:00 GMT"}, "Mon, 05 Jan 2026 10:00:00 GMT"),
    ],
)
@pytest.mark.parametrize("chunked", [False, True])
def test_a_broken_connection_is_taken_up_where_it_broke_off(
    server: Server, cache: str, validators: dict[str, str], validator: str, chunked: bool
) -> None:
    server.validators = validators
    server.troubles += [Trouble(cut=CUT, chunked=chunked), Trouble(cut=CUT, chunked=chunked)]
    assert fetch(server, cache) == CONTENT
    assert server.ranges() == [None, f"bytes={CUT}-", f"bytes={2 * CUT}-"]
    assert [headers.get("If-Range") for headers in server.asked] == [None, validator, validator]
    assert len(CONTENT) <= server.sent <= 1.01 * len(CONTENT)
    assert not parts(cache)


@pytest.mark.parametrize("validators", [{}, {"ETag": 'W/"one"'}])
def test_without_a_validator_it_starts_over(server: Server, cache: str, validators: dict[str, str]) -> None:
    server.validators = validators
    server.troubles.append(Trouble(cut=CUT))
    assert fetch(server, cache) == CONTENT
    assert server.ranges() == [None, None]


def test_every_byte_counts_as_progress(server: Server, cache: str, pauses: list[float]) -> None:
    server.troubles += [Trouble(cut=10)] * 20
    assert fetch(server, cache, pauses=pauses) == CONTENT
    assert server.sent == len(CONTENT)
    assert not pauses


@pytest.mark.parametrize("last", [Trouble(status=404), Trouble(status=503), Trouble(cut=0)])
def test_a_later_call_goes_on(server: Server, cache: str, last: Trouble) -> None:
    server.troubles.append(Trouble(cut=CUT))
    server.usual = last
    with pytest.raises(DownloadError):
        fetch(server, cache)
    (part,) = parts(cache)
    assert part.read_bytes() == CONTENT[:CUT]
    server.usual = Trouble()
    assert fetch(server, cache) == CONTENT
    assert server.ranges()[-1] == f"bytes={CUT}-"
    assert server.sent == len(CONTENT)


def test_a_connection_that_always_breaks_early_is_given_up(server: Server, cache: str) -> None:
    server.usual = Trouble(cut=CUT, ignores_range=True)
    with pytest.raises(DownloadError, match=r"cannot be downloaded: the connection broke .*, 6 times in a row"):
        fetch(server, cache)
    assert len(server.asked) == 7  # the first brought something


@pytest.mark.parametrize("chunked", [False, True])  # in large pieces or small ones, which Python gathers
def test_a_full_disk_is_named_and_leaves_what_came(server: Server, cache: str, chunked: bool) -> None:
    """The kernel's limit on the size of files, met in the middle of the file."""
    server.usual = Trouble(chunked=chunked)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (CUT, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            fetch(server, cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    (part,) = parts(cache)
    assert caught.value.errno == errno.EFBIG
    assert caught.value.filename == str(part)
    kept = part.stat().st_size
    assert 0 < kept <= CUT
    assert fetch(server, cache) == CONTENT
    assert server.ranges() == [None, f"bytes={kept}-"]


def start(server: Server, cache: str) -> subprocess.Popen[str]:
    code = (
        "import sys; from pipeline.downloads import download; print('ready', flush=True); download.fetch(*sys.argv[1:])"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, server.url, cache],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def test_a_killed_download_is_taken_up(server: Server, cache: str) -> None:
    server.troubles.append(Trouble(cut=CUT, stalls=True))
    with start(server, cache) as process:
        wait_until(lambda: any(part.stat().st_size for part in parts(cache)))
        process.kill()
    (part,) = parts(cache)
    kept = part.stat().st_size
    assert fetch(server, cache) == CONTENT
    assert server.ranges() == [None, f"bytes={kept}-"]


def test_an_interrupted_download_is_taken_up(server: Server, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(terminal.Stage, "update", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fetch(server, cache)
    (part,) = parts(cache)
    kept = part.read_bytes()
    assert kept
    assert CONTENT.startswith(kept)
    assert fetch(server, cache) == CONTENT
    assert server.ranges() == [None, f"bytes={len(kept)}-"]


def test_a_whole_file_that_could_not_be_stored_is_not_asked_for_again(
    server: Server, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = files.put

    def refuse(part: Path, url: str, sync: bool = True) -> None:
        if not url.endswith(".json"):
            raise OSError(errno.EIO, "no store")
        put(part, url, sync)

    with monkeypatch.context() as patch:
        patch.setattr(files, "put", refuse)
        with pytest.raises(OSError, match="no store"):
            fetch(server, cache)
    assert fetch(server, cache) == CONTENT
    assert server.ranges() == [None, f"bytes={len(CONTENT)}-"]
    assert server.sent == len(CONTENT)


def test_a_whole_file_whose_note_could_not_be_stored_is_not_asked_for_again(
    server: Server, remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = documents.write_document

    def refuse(url: str, value: object) -> None:
        if "://" in url:
            raise OSError(errno.EIO, "no store")
        write(url, value)

    with monkeypatch.context() as patch:
        patch.setattr(documents, "write_document", refuse)
        with pytest.raises(OSError, match="no store"):
            fetch_url(server.url, remote)
    assert storage.read(fetch_url(server.url, remote)) == CONTENT
    assert server.sent == len(CONTENT)


def test_a_file_damaged_on_the_way_is_downloaded_once_more(server: Server, cache: str) -> None:
    server.troubles.append(Trouble(damages=True))
    assert fetch(server, cache, sha256=SHA256) == CONTENT
    assert server.ranges() == [None, None]


def test_a_file_that_is_always_damaged_is_refused(server: Server, cache: str) -> None:
    server.usual = Trouble(damages=True)
    found = hashlib.sha256(CONTENT[:-1] + bytes([CONTENT[-1] ^ 255])).hexdigest()
    with pytest.raises(DownloadError) as caught:
        fetch(server, cache, sha256=SHA256)
    message = f"{server.url} gave 300000 bytes with SHA-256 {found}, expected 300000 bytes with {SHA256}"
    assert str(caught.value) == message
    assert len(server.asked) == 2
    server.usual = Trouble()
    assert fetch(server, cache, sha256=SHA256) == CONTENT


def test_a_file_of_another_size_is_refused(server: Server, cache: str) -> None:
    with pytest.raises(DownloadError, match=re.escape(f"{server.url} gave 300000 bytes with") + ".*, expected 9 bytes"):
        fetch(server, cache, size=9)
    assert len(server.asked) == 2


def test_a_server_may_ignore_the_range(server: Server, cache: str) -> None:
    server.troubles += [Trouble(cut=CUT), Trouble(ignores_range=True)]
    assert fetch(server, cache) == CONTENT
    assert server.sent == CUT + len(CONTENT)


def test_a_server_may_send_less_than_the_range(server: Server, cache: str) -> None:
    server.troubles += [Trouble(cut=CUT), Trouble(at_most=1000)]
    assert fetch(server, cache) == CONTENT
    assert server.ranges() == [None, f"bytes={CUT}-", f"bytes={CUT + 1000}-"]


def test_another_range_than_was_asked_for_is_not_taken(server: Server, cache: str) -> None:
    wrong = Trouble(status=206, headers={"Content-Range": "bytes 7-299999/300000"})
    server.troubles += [Trouble(cut=CUT), wrong]
    assert fetch(server, cache) == CONTENT


@pytest.mark.parametrize(
    "refusal",
    [
        Trouble(status=416),
        Trouble(status=206, headers={"ETag": '"two"', "Content-Range": "bytes 100000-299999/300000"}),
    ],
)
def test_starting_over_for_ever_is_given_up(server: Server, cache: str, refusal: Trouble) -> None:
    server.troubles += [Trouble(cut=CUT), refusal] * 20
    with pytest.raises(DownloadError, match="6 times in a row"):
        fetch(server, cache)
    assert len(server.asked) == 7  # the first brought something


@pytest.mark.parametrize("headers", [{}, {"Content-Range": "bytes 0-299999/300000"}])
def test_a_part_that_was_not_asked_for_is_not_taken(server: Server, cache: str, headers: dict[str, str]) -> None:
    server.usual = Trouble(status=206, headers=headers)
    with pytest.raises(DownloadError, match="sends another part than was asked for"):
        fetch(server, cache)


@pytest.mark.parametrize("trouble", [Trouble(), Trouble(ignores_if_range=True)])
@pytest.mark.parametrize("cut", [CUT, 280_000])  # before and after where the new file ends
def test_a_file_that_changed_in_between_is_the_new_one(server: Server, cache: str, trouble: Trouble, cut: int) -> None:
    server.troubles.append(Trouble(cut=cut))
    server.usual = Trouble(status=404)
    with pytest.raises(DownloadError):
        fetch(server, cache)
    server.content, server.validators, server.usual = OTHER, {"ETag": '"two"'}, trouble
    assert fetch(server, cache) == OTHER


def test_a_kill_between_two_versions_does_not_mix_them(
    server: Server, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.troubles += [Trouble(cut=CUT), Trouble(status=404)]
    with pytest.raises(DownloadError):
        fetch(server, cache)
    server.content, server.validators = OTHER, {"ETag": '"two"'}
    write = documents.write_document

    def killed(url: str, value: object) -> None:
        write(url, value)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(documents, "write_document", killed)
        with pytest.raises(KeyboardInterrupt):
            fetch(server, cache)
    assert fetch(server, cache) == OTHER


def test_a_compressed_transfer_is_the_file_as_it_lies_there(server: Server, cache: str) -> None:
    """Some servers call a .tar.gz a compressed .tar."""
    server.content = gzip.compress(bytes(10**6))
    server.usual = Trouble(headers={"Content-Encoding": "x-gzip"})
    server.troubles.append(Trouble(cut=10, headers=server.usual.headers))
    assert fetch(server, cache) == server.content
    assert [headers["Accept-Encoding"] for headers in server.asked] == ["identity"] * 2


@pytest.mark.parametrize(
    ("status", "reason"), [(403, "Forbidden"), (404, "Not Found"), (416, "Requested Range Not Satisfiable")]
)
def test_a_missing_file_is_one_request(server: Server, cache: str, status: int, reason: str) -> None:
    server.usual = Trouble(status=status)
    with pytest.raises(DownloadError) as caught:
        fetch(server, cache)
    assert str(caught.value) == f"{server.url} answers {status} {reason}, expected a file"
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_waited_for(server: Server, cache: str, pauses: list[float], status: int) -> None:
    server.troubles += [Trouble(status=status)] * 2
    assert fetch(server, cache, pauses=pauses) == CONTENT
    assert len(pauses) == 2


def test_a_server_that_stays_busy_is_given_up(server: Server, cache: str, pauses: list[float]) -> None:
    server.usual = Trouble(status=503)
    with pytest.raises(DownloadError) as caught:
        fetch(server, cache, pauses=pauses)
    assert str(caught.value).startswith(
        f"{server.url} cannot be downloaded: the server answers 503 Service Unavailable, 6 times in a row; "
    )
    assert cache in str(caught.value)
    assert len(server.asked) == 6
    assert len(pauses) == 5


def test_a_server_that_is_away_is_named(cache: str) -> None:
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/a.zip"
        with pytest.raises(DownloadError, match=r"a.zip cannot be downloaded: no answer \(ConnectionError\)"):
            fetch_url(url, cache)
    assert not parts(cache)


def test_threads_that_want_one_file_download_it_once(server: Server, cache: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: fetch(server, cache), range(4))) == {CONTENT}
    assert len(server.asked) == 1


def test_processes_that_want_one_file_download_it_once(server: Server, cache: str) -> None:
    server.troubles.append(Trouble(cut=CUT, stalls=True))
    with start(server, cache) as one, start(server, cache) as two:
        for process in (one, two):
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        wait_until(lambda: bool(server.asked))
        time.sleep(0.3)  # for the other, which must not ask
        assert len(server.asked) == 1
        server.go_on.set()
        errors = [process.communicate(timeout=60)[1] for process in (one, two)]
    assert (one.returncode, two.returncode) == (0, 0), errors
    assert server.ranges() == [None, f"bytes={CUT}-"]
    assert fetch(server, cache) == CONTENT


def test_a_remote_cache_gets_whole_files(server: Server, remote: str, tmp_path: Path) -> None:
    server.troubles += [Trouble(cut=CUT), Trouble(status=404)]
    with pytest.raises(DownloadError):
        fetch_url(server.url, remote)
    assert not storage.names(remote)
    url = fetch_url(server.url, remote)
    assert storage.read(url) == CONTENT
    assert storage.names(remote) == [url.rsplit("/")[-1], url.rsplit("/")[-1] + ".json"]
    assert read_json(f"{url}.json") == {"url": server.url, "bytes": len(CONTENT), "sha256": SHA256}
    assert server.sent == len(CONTENT)
    assert not [file for file in tmp_path.rglob("*") if file.stat().st_size >= len(CONTENT)]
    assert fetch_url(server.url, remote) == url
    assert len(server.asked) == 3


def test_a_remote_cache_that_lost_its_file_gets_it_anew(server: Server, remote: str) -> None:
    url = fetch_url(server.url, remote)
    fsspec.filesystem("memory").rm(url)
    server.content, server.validators = OTHER, {"ETag": '"two"'}
    assert storage.read(fetch_url(server.url, remote)) == OTHER


cuts = st.integers(0, len(CONTENT) - 1)
troubles = st.one_of(
    st.just(Trouble(status=503)),
    st.just(Trouble(ignores_range=True, cut=0)),
    st.builds(Trouble, cut=cuts, chunked=st.booleans(), ignores_range=st.booleans()),
    st.builds(Trouble, at_most=st.integers(1, len(CONTENT))),
    st.just(Trouble(damages=True)),
)


@settings(max_examples=25)
@given(st.lists(troubles, max_size=5))
def test_whatever_goes_wrong_before_the_file_is_the_same(faults: list[Trouble]) -> None:
    # A second damaged answer would be the end of the download.
    first = next((i for i, fault in enumerate(faults) if fault.damages), None)
    faults = [fault for i, fault in enumerate(faults) if not fault.damages or i == first]
    with serving() as server, tempfile.TemporaryDirectory() as cache:
        server.troubles += faults
        assert fetch(server, cache, sha256=SHA256) == CONTENT
        assert not parts(cache)
