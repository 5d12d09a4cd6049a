"""Storage, sources and patch sets at s3:// URLs, with a real server that is killed, slow to answer, or refuses."""

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import s3fs
from PIL import Image

from pipeline import cluster, storage
from pipeline.data import parquet, patchset, preparation, sources
from pipeline.data.patchset import PatchSet
from pipeline.data.verification import unknown_files
from pipeline.settings import Preprocess, UserError
from pipeline.settings.command_line import parse
from pipeline.storage import retries
from tests.conftest import ROOT, SMALL, random_image, write_photos
from tests.services import BUCKET, S3Server

Fault = Callable[[str, str], str | None]


class Proxy(ThreadingHTTPServer):
    """Passes requests on to a server, but for those that `fault`, given method and path, has an answer to."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        self.port = port
        self.fault: Fault = lambda method, path: None
        self.seen: list[tuple[str, str]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Passing(BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.seen.append((self.command, self.path))
        fault = self.server.fault(self.command, self.path)
        if fault and fault != "cut":
            status, _, code = fault.partition(" ")
            self.answer(int(status), {}, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())
            return
        connection = HTTPConnection("127.0.0.1", self.server.port, timeout=30)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in ("connection", "expect"):
                connection.putheader(name, value)
        connection.endheaders(body)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        headers = {name: value for name, value in response.getheaders() if name.lower() not in _OWN_HEADERS}
        if self.command == "HEAD":
            headers["Content-Length"] = response.getheader("Content-Length") or "0"
        self.answer(response.status, headers, content, cut=fault == "cut")

    def answer(self, status: int, headers: dict[str, str], content: bytes, cut: bool = False) -> None:
        self.close_connection = cut
        if cut and not content:
            return
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)

    def log_message(self, *_: Any) -> None:
        pass

    do_GET = do_HEAD = do_POST = do_DELETE = do_PUT  # noqa: N815


_OWN_HEADERS = ("connection", "content-length", "date", "server", "transfer-encoding")


def first(count: int, fault: str) -> Fault:
    """That answer to the first requests."""
    answers = [fault] * count
    return lambda method, path: answers.pop() if answers else None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = S3Server(tmp_path_factory.mktemp("s3"), BUCKET)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def url(server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A folder on the server, which this process knows from the environment."""
    for key, value in server.env.items():
        monkeypatch.setenv(key, value)
    s3fs.S3FileSystem.clear_instance_cache()
    yield f"s3://{BUCKET}/{tmp_path.name}"
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def proxy(server: S3Server, url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy in front of `url`; the client makes no retries of its own, so that the program has to."""
    with Proxy(server.ports["s3.port"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        thread = threading.Thread(target=proxy.serve_forever, args=[0.05])
        thread.start()
        yield proxy
        proxy.shutdown()
        thread.join()


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Preprocessing in this process: the shared Ray was started without credentials."""
    monkeypatch.setattr(cluster, "connect", lambda _: None)
    monkeypatch.setattr(cluster, "map_tasks", lambda function, tasks, **_: map(function, tasks))


def upload(folder: Path, url: str) -> None:
    for file in folder.iterdir():
        storage.copy(file, f"{url}/{file.name}")


def prepare(source: Path | str, home: Path | str, *more: str) -> tuple[PatchSet, bool]:
    return preparation.prepare(parse([f"--source={source}", f"--home={home}", *SMALL, *more], "preprocess", ""))


def start(server: S3Server, module: str, *argv: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", f"pipeline.{module}", *argv],
        cwd=ROOT,
        env={**os.environ, **server.env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def restart_when(server: S3Server, condition: Callable[[], bool]) -> threading.Thread:
    """Kill the server as soon as the condition holds, and start it 3 s later."""

    def restart() -> None:
        deadline = time.monotonic() + 60
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.001)
        server.stop()
        time.sleep(3)
        server.start()

    thread = threading.Thread(target=restart)
    thread.start()
    return thread


def test_files_come_back_as_they_were_written(url: str, tmp_path: Path) -> None:
    odd = f"{url}/deep/er/odd name+ä%20[1].json"
    storage.write_document(odd, {"ä": [1, 2.5, None]})
    assert storage.read_document(odd, dict) == {"ä": [1, 2.5, None]}
    with storage.create(f"{url}/made") as part:
        part.write_bytes(b"made")
    (tmp_path / "file").write_bytes(b"copied")
    storage.copy(tmp_path / "file", f"{url}/copied")
    storage.write(f"{url}/empty", b"")
    assert storage.names(url) == ["copied", "deep", "empty", "made"]
    assert storage.names(f"{url}/deep/er") == ["odd name+ä%20[1].json"]
    assert [storage.size(f"{url}/{name}") for name in ("made", "copied", "empty")] == [4, 6, 0]
    assert storage.exists(f"{url}/made")
    assert storage.exists(f"{url}/deep")
    with storage.local_copy(f"{url}/made") as file:
        assert file.read_bytes() == b"made"
    assert not file.exists()
    storage.write(f"{url}/made", b"made anew")
    assert storage.read(f"{url}/made") == b"made anew"


@pytest.mark.parametrize("missing", ["no", "deep/er/no"])
def test_what_is_not_there_is_none(url: str, missing: str) -> None:
    storage.write(f"{url}/here", b"")
    for where in (f"{url}/{missing}", f"s3://no-{BUCKET}/{missing}"):
        assert storage.read(where) is None
        assert storage.read_document(where, dict) is None
        assert storage.size(where) is None
        assert storage.names(where) == []
        assert not storage.exists(where)
        with pytest.raises(FileNotFoundError, match=where), storage.local_copy(where):
            pass


def test_an_unfinished_file_is_never_seen(url: str) -> None:
    storage.write(f"{url}/file", b"old")

    def stop(part: Path) -> None:
        part.write_bytes(b"ne")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), storage.create(f"{url}/file") as part:
        stop(part)
    assert not part.exists()
    assert storage.names(url) == ["file"]
    assert storage.read(f"{url}/file") == b"old"


def test_a_folder_that_a_console_made_is_not_in_itself(url: str) -> None:
    s3fs.S3FileSystem().pipe_file(f"{url}/folder/", b"")
    storage.write(f"{url}/folder/file", b"")
    assert storage.names(f"{url}/folder") == ["file"]


def test_what_another_process_wrote_is_seen(url: str, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos")
    storage.copy(tmp_path / "photos/coffee0.png", f"{url}/a.png")

    def seen() -> list[list[str]]:
        found = [sources.list_images([source], str(tmp_path)) for source in (url, f"{url}/*.png")]
        return [storage.names(url), *([image.name for image in images] for images in found)]

    assert seen() == [["a.png"]] * 3
    other = "import sys; from pipeline import storage; storage.write(sys.argv[1], b'new')"
    subprocess.run([sys.executable, "-c", other, f"{url}/b.png"], cwd=ROOT, check=True)
    assert seen() == [["a.png", "b.png"]] * 3
    assert storage.exists(f"{url}/b.png")


def test_a_write_outlives_the_servers_death(url: str, server: S3Server) -> None:
    content = random.Random(0).randbytes(20_000_000)
    process = server.process()
    before = process.io_counters().write_chars
    restarted = restart_when(server, lambda: process.io_counters().write_chars > before + 4_000_000)
    start = time.monotonic()
    storage.write(f"{url}/file", content)
    seconds = time.monotonic() - start
    read = storage.read(f"{url}/file")
    restarted.join()
    assert seconds > 3, "the write was over too soon"
    assert read == content
    assert storage.names(url) == ["file"]


@pytest.mark.parametrize("fault", ["503 SlowDown", "500 InternalError", "cut"])
def test_a_store_in_trouble_is_waited_for(url: str, proxy: Proxy, fault: str) -> None:
    content = random.Random(0).randbytes(300_000)
    proxy.fault = first(2, fault)
    storage.write(f"{url}/file", content)
    assert len(proxy.seen) > 1
    for operation, expected in ((storage.read, content), (storage.size, len(content)), (storage.exists, True)):
        proxy.fault = first(2, fault)
        assert operation(f"{url}/file") == expected
    proxy.fault = first(2, fault)
    assert storage.names(url) == ["file"]
    proxy.fault = first(2, fault)
    with storage.local_copy(f"{url}/file") as file:
        assert file.read_bytes() == content


def test_an_upload_in_parts_that_the_store_dropped_begins_anew(
    url: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client gives up an upload after an error, and takes for its outcome that there is none."""
    monkeypatch.setattr(s3fs.core, "calculate_chunksize", lambda *_, **__: 5 * 2**20)
    content = random.Random(0).randbytes(12_000_000)
    parts = first(1, "503 ServiceUnavailable")

    def fault(method: str, path: str) -> str | None:
        if method == "DELETE":
            return "404 NoSuchUpload"
        return parts(method, path) if "partNumber=2" in path else None

    proxy.fault = fault
    storage.write(f"{url}/file", content)
    assert "DELETE" in {method for method, _ in proxy.seen}
    assert storage.read(f"{url}/file") == content


def test_patience_ends_in_one_sentence(url: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(retries, "PATIENCE_S", 0.5)
    proxy.fault = lambda method, path: "503 ServiceUnavailable"
    with pytest.raises(OSError, match=rf"ServiceUnavailable.*{url}/file"):
        storage.write(f"{url}/file", b"")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(OSError, match=rf"Could not connect.*{url}/file"):
        storage.read(f"{url}/file")
    with pytest.raises(UserError, match=rf"source {url} cannot be listed: .*Could not connect"):
        sources.list_images([url], str(tmp_path))
    with pytest.raises(UserError, match=rf"source {url}/a.zip cannot be read: .*Could not connect"):
        sources.list_images([f"{url}/a.zip"], str(tmp_path))


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "signature"),
        ({"AWS_ACCESS_KEY_ID": "wrong"}, "access key"),
        ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, "locate credentials"),
        ({"AWS_SECRET_ACCESS_KEY": None}, "Partial credentials"),
    ],
)
def test_wrong_credentials_fail_at_once(
    url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wrong: dict[str, str | None], reason: str
) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")  # nothing beyond this machine is asked
    monkeypatch.setenv("HOME", str(tmp_path))
    for key, value in wrong.items():
        if value is None:
            monkeypatch.delenv(key)
        else:
            monkeypatch.setenv(key, value)
    start = time.monotonic()
    with pytest.raises(OSError, match=rf"{reason}.*{url}/file"):
        storage.write(f"{url}/file", b"")
    for operation in (storage.read, storage.size, storage.exists, storage.names):
        with pytest.raises(OSError, match=f"{url}/file"):
            operation(f"{url}/file")
    with pytest.raises(UserError, match=f"source {url} cannot be listed"):
        sources.list_images([url], str(tmp_path))
    with pytest.raises(UserError, match=f"source s3://{BUCKET} cannot be listed"):
        sources.list_images([f"s3://{BUCKET}"], str(tmp_path))
    assert time.monotonic() - start < 20


def test_a_bucket_that_is_not_there_is_named(url: str, proxy: Proxy) -> None:
    proxy.fault = lambda method, path: "404 NoSuchBucket"  # this server would make it
    with pytest.raises(FileNotFoundError, match=rf"NoSuchBucket.*{url}/file"):
        storage.write(f"{url}/file", b"")
    assert len(proxy.seen) == 1


def test_images_and_archives_are_read_through_trouble(url: str, proxy: Proxy, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos")
    expected = {file.name: file.read_bytes() for file in (tmp_path / "photos").iterdir()}
    upload(tmp_path / "photos", f"{url}/photos")
    subprocess.run(["tar", "-cf", tmp_path / "photos.tar", "-C", tmp_path / "photos", *expected], check=True)
    storage.copy(tmp_path / "photos.tar", f"{url}/photos.tar")
    for source in (f"{url}/photos", f"{url}/photos/*.png", f"{url}/photos.tar"):
        proxy.fault = first(2, "503 ServiceUnavailable")
        found = sources.list_images([source], str(tmp_path))
        proxy.fault = first(2, "503 ServiceUnavailable")
        assert {image.name: sources.read_bytes(image.location) for image in found} == expected


def test_an_unfinished_patch_set_is_none_and_goes_on_where_it_stopped(
    url: str, proxy: Proxy, without_ray: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_photos(tmp_path / "photos")
    expected, _ = prepare(tmp_path / "photos", tmp_path / "home")

    def stop(patch_set: PatchSet) -> PatchSet:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PatchSet, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(tmp_path / "photos", url)
    folder = f"{url}/patchsets/{expected.name}"
    assert storage.names(folder) == sorted([*(shard.file for shard in expected.all_shards), "index"])
    with pytest.raises(UserError, match=f"{folder} has no manifest.json, so it is no finished patch set"):
        patchset.load(folder)
    storage.write(f"{folder}/{expected.shards[0].file}", b"half")
    proxy.seen.clear()
    made, found = prepare(tmp_path / "photos", url)
    assert not found
    assert made.manifest == expected.manifest
    written = [path.rsplit("/", 1)[-1] for method, path in proxy.seen if method == "PUT" and "/patchsets/" in path]
    tables = [f"{part}-00000.parquet" for part in ("train", "train", "holdout", "holdout")]
    assert written == [expected.shards[0].file, "etags.parquet", *tables, "manifest.json"]
    assert patchset.load(folder) == made


def test_a_row_group_is_read_alone_and_through_trouble(url: str, proxy: Proxy, tmp_path: Path) -> None:
    """Training jumps from group to group, and shards are large."""
    hr = [random_image(64, 64, seed=i) for i in range(40)]
    lr = [image[::4, ::4] for image in hr]
    with parquet.create_shard(tmp_path / "shard", parquet.TILE_SCHEMA) as writer:
        for i in range(0, 40, 8):
            numbers = [pa.array([0] * 8, pa.int32())] * 2
            columns = [pa.array(["a"] * 8), *numbers, parquet.pack(hr[i : i + 8]), parquet.pack(lr[i : i + 8])]
            writer.write_table(pa.Table.from_arrays(columns, schema=parquet.TILE_SCHEMA))
        writer.add_key_value_metadata(parquet.shard_metadata(4, Preprocess(), []))
    shard = parquet.read_shard(tmp_path / "shard", "train.parquet", check=True)
    assert shard is not None
    storage.copy(tmp_path / "shard", f"{url}/train.parquet")
    patch_set = patchset.assemble(url, "set", 4, Preprocess(tile=64), [(0, shard)], 1)
    for group in (3, 0, 4):
        proxy.seen.clear()
        proxy.fault = first(2, "503 ServiceUnavailable")
        got_hr, got_lr = patch_set.read_group(group)
        assert np.array_equal(got_hr, hr[group * 8 : group * 8 + 8])
        assert np.array_equal(got_lr, lr[group * 8 : group * 8 + 8])
    assert [method for method, _ in proxy.seen] == ["GET"] * 3, "more than one request for a group"


def test_the_shards_of_another_set_are_copied_without_reading_them(
    url: str, without_ray: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_photos(tmp_path / "photos")
    first, _ = prepare(tmp_path / "photos", url)
    (tmp_path / "photos/chelsea1.png").unlink()
    expected, _ = prepare(tmp_path / "photos", tmp_path / "home")

    def refuse(place: str) -> None:
        raise AssertionError(f"{place} was read")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "local_copy", refuse)
        second, _ = prepare(tmp_path / "photos", url)
    assert {shard.file for shard in first.all_shards} & {shard.file for shard in second.all_shards}
    assert list(second.read_shards()) == list(expected.read_shards())
    for shard in expected.all_shards:
        assert storage.read(f"{second.url}/{shard.file}") == Path(expected.url, shard.file).read_bytes()
    assert not unknown_files(second)


@pytest.mark.long
def test_the_commands_take_s3_for_source_and_home(
    url: str, server: S3Server, without_ray: None, tmp_path: Path
) -> None:
    write_photos(tmp_path / "photos")
    expected, _ = prepare(tmp_path / "photos", tmp_path / "home")
    upload(tmp_path / "photos", f"{url}/photos")

    def run(module: str, *argv: str) -> tuple[int, str, str]:
        with start(server, module, *argv) as process:
            output, errors = process.communicate(timeout=120)
        return process.returncode, output, errors

    folder = f"{url}/home/patchsets/{expected.name}"
    status, output, errors = run("preprocess", f"--source={url}/photos", f"--home={url}/home", *SMALL)
    assert status == 0, errors
    assert f"patch set {folder}: 6 images (2 held out, 0 rejected)" in output
    assert patchset.load(folder).manifest == expected.manifest
    found, again = prepare(f"{url}/photos", f"{url}/home")
    assert again
    assert found.url == folder

    sheet = tmp_path / "sheet.png"
    status, output, errors = run("patchset", "show", folder, f"--sheet={sheet}")
    assert status == 0, errors
    assert folder in output.splitlines()[0]
    assert Image.open(sheet).size[0] > 48

    damaged = f"{folder}/{expected.shards[0].file}"
    content = bytearray(storage.read(damaged) or b"")
    content[len(content) // 2] ^= 1
    storage.write(damaged, bytes(content))
    status, output, errors = run("patchset", "verify", folder)
    assert status == 1, errors
    assert f"{expected.shards[0].file}: has another checksum than the manifest says" in output


@pytest.mark.long
def test_preprocessing_outlives_the_servers_death(
    url: str, server: S3Server, without_ray: None, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(40):
        name = f"{'coffee' if i < 3 else 'noise'}{i}.png"
        Image.fromarray(random_image(480, 480, seed=i)).save(tmp_path / "photos" / name)
    expected, _ = prepare(tmp_path / "photos", tmp_path / "home", "preprocess.shard_mb=1")
    upload(tmp_path / "photos", f"{url}/photos")
    folder = f"{url}/home/patchsets/{expected.name}"
    options = [f"--source={url}/photos", f"--home={url}/home", *SMALL, "preprocess.shard_mb=1"]
    with start(server, "preprocess", *options) as process:
        restarted = restart_when(server, lambda: len(storage.names(folder)) >= 3)
        restarted.join()
        unfinished = "manifest.json" not in storage.names(folder)
        _, errors = process.communicate(timeout=300)
    assert unfinished, "the run was over too soon"
    assert process.returncode == 0, errors
    manifest = json.loads((tmp_path / f"home/patchsets/{expected.name}/manifest.json").read_text())
    assert storage.read_document(f"{folder}/manifest.json", dict) == manifest
    for shard in expected.read_shards():
        with storage.local_copy(f"{folder}/{shard.file}") as file:
            assert storage.sha256(file) == shard.sha256
