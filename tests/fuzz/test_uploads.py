"""Mutated requests to the server: each gets an answer that is documented, and the server goes on."""

import asyncio
import http.client
import io
import json
import random
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from PIL import Image
from starlette.types import ASGIApp, Message

from pipeline.networks.sources import find_model
from pipeline.serving.jobs import Format, Job, Refusal, Upscaled
from pipeline.serving.metrics import Metrics
from pipeline.serving.models import ServedModel
from pipeline.serving.options import Limits
from pipeline.serving.web import About, create_app
from pipeline.serving.work import Work
from pipeline.serving.workers import Workers
from tests.fuzz.campaign import Campaign, whole_campaign
from tests.fuzz.mutations import mutate_bytes
from tests.fuzz.test_images import ALL_SEEDS, RGB, make
from tests.pipeline.data.formats.encoders import saved
from tests.pipeline.serving.test_web import running

LIMITS = Limits(megabytes=0.05, megapixels=0.5)
ANSWERS = {200, 400, 403, 404, 405, 413, 415, 422, 499}
"""Statuses that a request may get. 408 and 503 would mean that requests before it have left something behind."""


class NoImageError(Exception):
    """The answer is a documented one, but no image."""


class InThisProcess:
    """Does the jobs that Ray Serve would give to replicas."""

    def __init__(self) -> None:
        self._work = Work(ServedModel(find_model("bicubic"), ""), "cpu", "fp32", 1, int(LIMITS.megapixels * 1e6))

    def remote(self, job: Job) -> "asyncio.Future[Upscaled | Refusal]":
        return asyncio.get_running_loop().run_in_executor(None, self._work.do, job)


@pytest.fixture(scope="module")
def app() -> ASGIApp:
    """The application of the server without Ray."""
    about = About(
        model="bicubic",
        scale=4,
        device="cpu",
        max_megabytes=LIMITS.megabytes,
        max_megapixels=LIMITS.megapixels,
        formats=list(Format),
    )
    metrics = Metrics()
    workers = Workers(InThisProcess(), 4, 2, metrics)
    return create_app(about, LIMITS, workers, metrics, lambda: 1, ["127.0.0.1", "localhost"])


@dataclass(frozen=True)
class Upload:
    """A request."""

    query: bytes
    headers: list[tuple[bytes, bytes]]
    parts: list[bytes]
    """The body as it arrives."""
    whole: bool
    """False if the client goes away before the end of the body."""


def form(image: bytes, boundary: bytes = b"b0undary") -> bytes:
    """Return a form with an image and another field."""
    head = b'Content-Disposition: form-data; name="image"; filename="../../a.png"\r\nContent-Type: image/png'
    other = b'Content-Disposition: form-data; name="other"'
    parts = (other + b"\r\n\r\nvalue", head + b"\r\n\r\n" + image)
    return b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + boundary + b"--\r\n"


TYPES = (
    b"image/png", b"application/octet-stream", b"", b"multipart/form-data; boundary=b0undary", b"text/html",
    b"multipart/form-data", b"multipart/form-data; boundary=", b'multipart/form-data; boundary="\xff"',
)  # fmt: skip
QUERIES = (b"", b"format=webp&quality=80", b"method=bicubic&format=tiff", b"format=avif&quality=1", b"format=jpeg")


class Uploads:
    """Makes requests."""

    def __init__(self) -> None:
        self._makers = [make(kind) for kind in ALL_SEEDS]
        self._whole = [saved(RGB), saved(RGB, "JPEG"), saved(RGB.resize((400, 400)))]

    def __call__(self, random_: random.Random) -> Upload:
        image = random_.choice(self._makers)(random_) if random_.random() < 0.6 else random_.choice(self._whole)
        kind, body = random_.choice(TYPES), image
        if b"b0undary" in kind:
            body = form(image)
            if random_.random() < 0.7:
                body = mutate_bytes(random_, [body, form(form(image)), form(image) * 20])
        query = random_.choice(QUERIES)
        if random_.random() < 0.3:
            query = mutate_bytes(random_, QUERIES[1:])
        headers = [(b"host", b"127.0.0.1:80"), (b"content-type", kind), (b"content-length", b"%d" % len(body))]
        if random_.random() < 0.3:
            place = random_.randrange(len(headers))
            headers[place] = headers[place][0], mutate_bytes(random_, [headers[place][1] or b"x", b"1" * 30])
        if random_.random() < 0.1:
            headers.append(
                (b"origin", random_.choice((b"http://evil.example", b"null", b"http://127.0.0.1:80", b"http://[")))
            )
        cut = sorted(random_.randrange(len(body) + 1) for _ in range(random_.choice((0, 0, 1, 3))))
        parts = [body[start:end] for start, end in zip([0, *cut], [*cut, len(body)], strict=True)]
        return Upload(query, headers, parts, random_.random() < 0.9)


async def send(app: ASGIApp, upload: Upload, path: str = "/v1/upscale", method: str = "POST") -> tuple[int, bytes]:
    """Send a request, and return the status and the body of its answer."""
    parts = list(upload.parts)
    answered = asyncio.Event()
    sent: list[Message] = []

    async def receive() -> Message:
        if parts:
            return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts) or not upload.whole}
        if upload.whole:
            await answered.wait()
        return {"type": "http.disconnect"}

    async def take(message: Message) -> None:
        sent.append(message)

    scope: dict[str, Any] = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path,
        "raw_path": path.encode(), "query_string": upload.query, "root_path": "", "scheme": "http",
        "headers": upload.headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
    }  # fmt: skip
    await app(scope, receive, take)
    answered.set()
    assert sent[0]["type"] == "http.response.start"
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


def check(status: int, body: bytes) -> None:
    """Check that an answer is a documented one.

    Raises:
        NoImageError: if it is no image.
    """
    assert status in ANSWERS, (status, body[:300])
    if status == 200:
        with Image.open(io.BytesIO(body)) as image:
            image.load()
        return
    if status == 499:
        raise NoImageError("the client has gone away")
    ((key, sentence),) = json.loads(body).items()
    assert key == "error"
    assert "Traceback" not in sentence
    raise NoImageError(sentence)  # the campaign checks that it is one sentence


@pytest.mark.parametrize("count", [30, pytest.param(1500, marks=whole_campaign)])
def test_mutated_uploads(app: ASGIApp, count: int) -> None:
    with asyncio.Runner() as runner:

        def use(upload: Upload) -> None:
            status, body = runner.run(send(app, upload))
            check(status, body)

        Campaign("uploads", Uploads(), use, (NoImageError,)).run(count)
        counters = runner.run(send(app, Upload(b"", [(b"host", b"localhost")], [b""], True), "/metrics", "GET"))[1]
        assert b"sr_requests_inside 0.0" in counters, "a request keeps its place"


@pytest.fixture(scope="module")
def address(app: ASGIApp) -> Iterator[str]:
    """The address of the server."""
    with running(app) as url:
        yield url


def request_seeds(host: str) -> list[bytes]:
    image = saved(RGB)
    head = f"POST /v1/upscale?format=png HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n".encode()
    kinds = (b"image/png", b"multipart/form-data; boundary=b0undary")
    whole = [
        head + b"Content-Type: %s\r\nContent-Length: %d\r\n\r\n%s" % (kind, len(body), body)
        for kind, body in zip(kinds, (image, form(image)), strict=True)
    ]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (image[:100], image[100:])) + b"0\r\n\r\n"
    return [
        *whole,
        head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks,
        f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode(),
        f"GET /v1/model HTTP/1.0\r\nHost: {host}\r\n\r\n".encode(),
        f"OPTIONS * HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode(),
    ]


@pytest.mark.parametrize("count", [10, pytest.param(500, marks=whole_campaign)])
def test_mutated_bytes_on_the_wire(address: str, count: int) -> None:
    host = urlsplit(address).netloc
    seeds = request_seeds(host)

    def use(content: bytes) -> None:
        with socket.create_connection((urlsplit(address).hostname, urlsplit(address).port), timeout=0.3) as connection:
            try:
                connection.sendall(content)
                answer = http.client.HTTPResponse(connection, method="GET")
                answer.begin()
                body = answer.read()
            except (TimeoutError, OSError, http.client.HTTPException):
                raise NoImageError("the server waits for more, or has ended the connection") from None
        assert answer.status in ANSWERS | {304, 307}, (answer.status, body[:300])
        assert not re.search(rb"Traceback|File \"", body)
        if answer.status != 200:
            raise NoImageError(f"status {answer.status}")

    Campaign("HTTP requests", lambda random_: mutate_bytes(random_, seeds), use, (NoImageError,)).run(count)
    assert requests.post(f"{address}/v1/upscale", data=saved(RGB), timeout=60).status_code == 200
