"""The HTTP interface when something behind it or in front of it fails."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import pytest
import requests
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.serving.health import ReplicaCount
from pipeline.serving.jobs import Format
from pipeline.serving.listening import listen
from pipeline.serving.metrics import Metrics
from pipeline.serving.options import Limits
from pipeline.serving.sending import ImageResponse
from pipeline.serving.web import About, create_app
from pipeline.serving.workers import Workers
from pipeline.settings import UserError


class Broken:
    """A deployment that fails."""

    def remote(self, _: object) -> NoReturn:
        """Fail."""
        raise RuntimeError("broken")


@contextmanager
def running(app: ASGIApp) -> Iterator[str]:
    """Run an application on a free port, and give its URL."""
    listening = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def test_a_fault_is_a_sentence_with_all_headers_and_is_counted() -> None:
    def look() -> int:
        raise KeyError("no such application")

    about = About(model="m", scale=4, device="cpu", max_megabytes=1, max_megapixels=1, formats=list(Format))
    metrics = Metrics()
    workers = Workers(Broken(), 4, 2, metrics)
    with running(create_app(about, Limits(), workers, metrics, look, [])) as url:
        answer = requests.post(f"{url}/v1/upscale", data=b"x", timeout=60)
        assert answer.status_code == 500
        assert list(answer.json()) == ["error"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        health = requests.get(f"{url}/healthz", timeout=60)
        assert (health.status_code, health.json()["replicas"]) == (503, 0)
        counted = requests.get(f"{url}/metrics", timeout=60).text
        assert 'sr_requests_total{status="500"} 1.0' in counted
        assert "sr_requests_inside 0.0" in counted


def test_an_image_that_turns_out_too_large_with_its_last_part_is_refused() -> None:
    about = About(model="m", scale=4, device="cpu", max_megabytes=0.001, max_megapixels=1, formats=list(Format))
    metrics = Metrics()
    workers = Workers(Broken(), 4, 2, metrics)
    with running(create_app(about, Limits(megabytes=0.001), workers, metrics, lambda: 1, [])) as url:
        parts = (part for part in [bytes(1001)])  # no size is stated
        assert requests.post(f"{url}/v1/upscale", data=parts, timeout=60).status_code == 413


def test_replicas_are_looked_at_once_a_second_and_not_waited_for() -> None:
    looks: list[float] = []

    def look() -> int:
        looks.append(time.monotonic())
        return 3

    async def read_often() -> list[int]:
        count = ReplicaCount(look)
        together = list(await asyncio.gather(*(count.read() for _ in range(5))))
        return [*together, await count.read()]

    assert asyncio.run(read_often()) == [3] * 6
    assert len(looks) == 1
    go_on = threading.Event()

    async def read_in_vain() -> list[int]:
        count = ReplicaCount(go_on.wait, patience_s=0.05)
        try:
            return [await count.read(), await count.read()]
        finally:
            go_on.set()

    assert asyncio.run(read_in_vain()) == [0, 0]


@pytest.mark.parametrize("takes", [0, 1])
def test_a_client_that_takes_no_image_is_given_up(takes: int) -> None:
    finished: list[bool] = []
    sent: list[Message] = []

    async def send(message: Message) -> None:
        if len(sent) > takes:
            await asyncio.Event().wait()
        sent.append(message)

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def act(scope: Scope, receive: Receive, send: Send) -> None:
        response = ImageResponse(b"x" * 70_000, "image/png", {}, lambda: finished.append(True), patience_s=0.1)
        await asyncio.wait_for(response(scope, receive, send), 30)

    asyncio.run(act({"type": "http"}, receive, send))
    assert finished == [True]
    assert len(sent) == takes + 1


def test_two_servers_cannot_reserve_one_port() -> None:
    first: socket.socket = listen("127.0.0.1", 0)
    with first, pytest.raises(UserError, match="Address already in use"):
        listen("127.0.0.1", first.getsockname()[1])
