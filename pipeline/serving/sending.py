"""Send an image no faster than the client takes it, and give up on a client that does not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

_PATIENCE_S = 60.0
"""Seconds that any client has to take an image."""
_SLOWEST = 250_000
"""Bytes for which a client has a further second."""
_PART = 2**16
"""Bytes that are handed over at once; the next ones wait until the connection has room for them."""


class ImageResponse(Response):
    """An image, which is sent part by part.

    The server buffers what it is given, so a whole image would stay in memory for as long as the client likes.

    Args:
        content: the image file.
        media_type: its media type.
        headers: further headers.
        finish: is called once when the image has been sent, the client has gone away, or its time is over.
        patience_s: seconds that any client has; large images get more.
    """

    def __init__(
        self,
        content: bytes,
        media_type: str,
        headers: Mapping[str, str],
        finish: Callable[[], object],
        patience_s: float = _PATIENCE_S,
    ) -> None:
        super().__init__(content, headers=headers, media_type=media_type)
        self._content = content
        self._finish = finish
        self._seconds = patience_s + len(content) / _SLOWEST

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the image."""
        try:
            async with asyncio.timeout(self._seconds):
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                for start in range(0, len(self._content), _PART):
                    stop = start + _PART
                    part, is_last = self._content[start:stop], stop >= len(self._content)
                    await send({"type": "http.response.body", "body": part, "more_body": not is_last})
        except TimeoutError:
            return  # uvicorn closes the connection, because the answer is not complete
        finally:
            self._finish()
