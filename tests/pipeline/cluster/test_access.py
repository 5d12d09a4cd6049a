"""A cluster that cannot be used is reported in one sentence and within seconds."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
import ray

from pipeline import cluster
from pipeline.cluster.access import check_access
from pipeline.settings import Config, UserError


class _Head(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers every call as a head does that wants a token, or accepts it without one."""

    def __init__(self, wants_token: bool) -> None:
        self._wants_token = wants_token

    def service(self, handler_call_details: Any) -> Any:
        def answer(_: bytes, context: Any) -> bytes:
            if self._wants_token:
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
            return b""

        return grpc.unary_unary_rpc_method_handler(answer)


@contextmanager
def head(wants_token: bool) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(1), handlers=[_Head(wants_token)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None)


def test_a_head_that_accepts_this_machine_passes() -> None:
    with head(wants_token=False) as address:
        check_access(address)


def test_a_head_that_wants_a_token_is_named_with_what_to_copy() -> None:
    with (
        head(wants_token=True) as address,
        pytest.raises(UserError, match=rf"{address} asks for a token, .* RAY_AUTH_MODE=token .* of the head node"),
    ):
        check_access(address)


def test_an_address_where_nothing_answers_is_refused_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    for unreachable in (address, f"ray://{address}", "127.0.0.1:99999"):
        with pytest.raises(UserError, match=f"no Ray cluster answers at {unreachable} .* expected HOST:PORT"):
            check_access(unreachable)


def test_a_local_ray_that_does_not_start_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(**_: Any) -> None:
        raise Exception("The current node timed out during startup.\nThis could happen")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", start)
    with pytest.raises(UserError, match=r"Ray does not start on this machine \(The current node timed out .*rerun"):
        cluster.connect(Config())
