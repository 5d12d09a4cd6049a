"""Read the image out of a request, within limits and a given time. Nothing is written to a file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from starlette.requests import ClientDisconnect, Request
from werkzeug.exceptions import HTTPException
from werkzeug.http import parse_options_header
from werkzeug.sansio.multipart import Data, Epilogue, File, MultipartDecoder, NeedData

from pipeline.serving.jobs import Refusal

_PATIENCE_S = 60
"""Seconds in which an image has to arrive."""
_LINGER_S = 5
"""Seconds for which a refused image is still read, because a client that is sending may not see an answer otherwise."""
_FORM_BYTES = 4096
"""Room for the headers of a form besides the image."""
_FIELD = "image"


async def read_image(request: Request, most_bytes: int) -> bytes | Refusal:
    """Read the image of a request, which is the body or the file `image` of a form.

    Args:
        request: the request, of which nothing has been read.
        most_bytes: largest size of the image.

    Returns:
        The content of the image's file, or the reason for which there is none.

    Raises:
        ClientDisconnect: if the client goes away.
    """
    kind, parameters = parse_options_header(request.headers.get("content-type", ""))
    is_form = kind == "multipart/form-data"
    if not (is_form or kind in ("", "application/octet-stream") or kind.startswith("image/")):
        await discard(request)
        return Refusal(
            415, f"the content type is {kind[:80]}, expected image/*, application/octet-stream or multipart/form-data"
        )
    body = await _read(request, most_bytes + _FORM_BYTES * is_form)
    if isinstance(body, Refusal):
        return body
    if is_form:
        image = _find_file(body, parameters.get("boundary", ""))
        if isinstance(image, Refusal):
            return image
        body = image
    if len(body) > most_bytes:
        return _too_large(most_bytes)
    return body or Refusal(400, "the request has no image, expected the bytes of an image file")


async def discard(request: Request) -> None:
    """Read and forget the body of a request that is refused, for a few seconds at most."""
    await _discard(request.stream())


async def _discard(stream: AsyncIterator[bytes]) -> None:
    try:
        async with asyncio.timeout(_LINGER_S):
            async for _ in stream:
                pass
    except (TimeoutError, ClientDisconnect):
        return


async def _read(request: Request, most_bytes: int) -> bytes | Refusal:
    stated = request.headers.get("content-length", "0")
    if stated.isdecimal() and int(stated) > most_bytes:
        await discard(request)
        return _too_large(most_bytes)
    body = bytearray()
    stream = request.stream()
    try:
        async with asyncio.timeout(_PATIENCE_S):
            async for part in stream:
                body += part
                if len(body) > most_bytes:
                    break
            else:
                return bytes(body)
    except TimeoutError:
        return Refusal(408, f"the image did not arrive within {_PATIENCE_S} seconds")
    await _discard(stream)
    return _too_large(most_bytes)


def _too_large(most_bytes: int) -> Refusal:
    return Refusal(413, f"the file is too large, expected at most {most_bytes / 1e6:g} MB (--max-mb)")


def _find_file(body: bytes, boundary: str) -> bytes | Refusal:
    """Return the content of the file `image` in a form."""
    damaged = Refusal(400, "the form cannot be read, expected multipart/form-data with a file named image")
    if not boundary:
        return damaged
    decoder = MultipartDecoder(boundary.encode("latin-1", "replace"), max_parts=16)
    content, wanted, found = bytearray(), False, False
    try:
        decoder.receive_data(body)
        decoder.receive_data(None)
        while not isinstance(event := decoder.next_event(), Epilogue | NeedData):
            if isinstance(event, Data):
                content += event.data if wanted else b""
            else:
                wanted = isinstance(event, File) and event.name == _FIELD and not found
                found |= wanted
    except (ValueError, HTTPException):
        return damaged
    return bytes(content) if found else damaged
