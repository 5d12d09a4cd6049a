"""The command of the server refuses mistakes before it starts anything."""

import socket

import pytest

from pipeline import serve
from pipeline.settings import UserError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "nothing"], "^there is no model nothing"),
        (["--port", "{taken}"], r"^the server cannot listen on port \d+ of 127.0.0.1 \(Address already in use\)"),
        (["--host", "203.0.113.1"], r"^the server cannot listen on port 8000 of 203.0.113.1"),
        (["--replicas", "0"], "'0' is not a whole number above 0"),
        (["--max-mb", "none"], "'none' is not a number above 0"),
    ],
)
def test_a_mistake_is_reported_at_once(options: list[str], message: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = str(other.getsockname()[1])
        argv = [option.format(taken=taken) for option in options]
        with pytest.raises(UserError, match=message):
            serve.main.__wrapped__(argv)  # type: ignore[attr-defined]
