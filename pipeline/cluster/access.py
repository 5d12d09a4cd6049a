"""Find out at once whether a Ray cluster answers and accepts this machine's token; Ray itself would retry for long."""

from __future__ import annotations

import os
import re
import socket
from contextlib import suppress

import grpc
from ray._private.authentication.authentication_utils import is_token_auth_enabled
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]
from ray.exceptions import AuthenticationError

from pipeline.cluster.tokens import TOKEN_FILE
from pipeline.settings import UserError
from pipeline.storage import one_line

_TIMEOUT_S = 10
_METHOD = "/ray.rpc.NodeInfoGcsService/GetClusterId"
"""A call without arguments that every Ray head answers."""


def check_access(address: str) -> None:
    """Check that a cluster answers and accepts this machine's token.

    Args:
        address: HOST:PORT or ray://HOST:PORT; other forms, such as "auto", are not checked.

    Raises:
        UserError: if nothing answers, or the token is missing or another one than that of the head.
    """
    match = re.fullmatch(r"(ray://)?([^/:]+):(\d+)", address)
    if not match:
        return
    client, host, port = match.groups()
    try:
        socket.create_connection((host, int(port)), timeout=_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise unreachable(address, error) from None
    if not client and _refuses(f"{host}:{port}", _token_header(address)):
        raise _wrong_token(address)


def unreachable(address: str, error: Exception) -> UserError:
    """Return the error for a cluster that does not answer."""
    return UserError(
        f"no Ray cluster answers at {address} ({one_line(error, 200)}): expected HOST:PORT of a head node, where the "
        "port is often 6379, or no address to start a local Ray"
    )


def _token_header(address: str) -> list[tuple[str, str]]:
    if not is_token_auth_enabled():
        return []
    try:
        headers = AuthenticationTokenLoader.instance().get_token_for_http_header()
    except AuthenticationError:
        raise UserError(
            f"this machine has no token for the Ray cluster at {address}: copy {TOKEN_FILE} of the head node to the "
            "same place here, or set RAY_AUTH_TOKEN to its content"
        ) from None
    return [(name.lower(), value) for name, value in headers.items()]


def _refuses(address: str, headers: list[tuple[str, str]]) -> bool:
    """Tell whether the head answers that the token is wrong; any other problem is left to Ray."""
    with suppress(grpc.RpcError), grpc.insecure_channel(address) as channel:
        try:
            channel.unary_unary(_METHOD)(b"", timeout=_TIMEOUT_S, metadata=headers)
        except grpc.RpcError as error:
            return bool(error.code() is grpc.StatusCode.UNAUTHENTICATED)
    return False


def _wrong_token(address: str) -> UserError:
    if not is_token_auth_enabled():
        return UserError(
            f"the Ray cluster at {address} asks for a token, which RAY_AUTH_MODE={os.environ.get('RAY_AUTH_MODE', '')} "
            f"switches off here: set RAY_AUTH_MODE=token and copy {TOKEN_FILE} of the head node to the same place here"
        )
    if os.environ.get("RAY_AUTH_TOKEN"):
        return UserError(
            f"the Ray cluster at {address} refuses the token in RAY_AUTH_TOKEN: expected the content of {TOKEN_FILE} "
            "of the head node"
        )
    file = os.environ.get("RAY_AUTH_TOKEN_PATH") or TOKEN_FILE
    return UserError(
        f"the Ray cluster at {address} refuses the token of this machine, {file}: copy {TOKEN_FILE} of the head node "
        "to it, or set RAY_AUTH_TOKEN to its content"
    )
