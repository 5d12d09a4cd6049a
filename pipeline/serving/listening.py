"""Reserve the address of a server before anything that takes time."""

from __future__ import annotations

import socket

from pipeline.settings import UserError


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that has the address. Whoever connects waits until a server answers.

    Args:
        host: name or address of a network interface.
        port: TCP port; 0 for a free one.

    Raises:
        UserError: if there is no such interface, or the port is taken.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server that has just ended leaves traces
        listening.bind((host, port))
        listening.listen()  # two sockets may be bound to one port as long as neither listens
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"the server cannot listen on port {port} of {host} ({reason}): expected a free port (--port) and an "
            "address of this machine (--host)"
        ) from None
    return listening
