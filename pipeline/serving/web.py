"""The HTTP interface: the page, the endpoint for programs, health and metrics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from functools import partial
from importlib import resources
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Route
from starlette.types import ASGIApp

from pipeline.serving import bodies
from pipeline.serving.headers import Protection
from pipeline.serving.health import ReplicaCount
from pipeline.serving.jobs import Format, Job, Method, Refusal, Upscaled
from pipeline.serving.metrics import Counting, Metrics
from pipeline.serving.options import Limits
from pipeline.serving.sending import ImageResponse
from pipeline.serving.workers import Workers
from pipeline.storage import one_line

_PAGE = {"index.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
_UPSCALE = "/v1/upscale"
_CLOSED = 499
"""Status code that servers write into their logs if the client has gone away."""

_BODY = {
    "required": True,
    "content": {
        "image/*": {"schema": {"type": "string", "format": "binary"}},
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["image"],
                "properties": {"image": {"type": "string", "format": "binary"}},
            }
        },
    },
}


class About(BaseModel):
    """The model that is served, and its limits."""

    model: str
    """The model as it was named when the server started, without secrets."""
    scale: int
    """Factor by which height and width grow."""
    device: str
    """`cpu` or `cuda`."""
    max_megabytes: float
    """Largest image file, in MB."""
    max_megapixels: float
    """Largest upscaled image, in megapixels."""
    formats: list[Format]
    """File formats of the answer."""


class Problem(BaseModel):
    """The reason for which a request was refused."""

    error: str
    """One sentence."""


class Health(BaseModel):
    """The state of the server."""

    status: str
    """`ok` if a replica runs, else `no replica runs`."""
    replicas: int
    """Number of replicas that run."""


_REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "The request has no image, or a damaged one."},
    403: {"model": Problem, "description": "A page of another site sent the request, or the host is unknown."},
    408: {"model": Problem, "description": "The image did not arrive in time."},
    413: {"model": Problem, "description": "The file or the upscaled image would be too large."},
    415: {"model": Problem, "description": "The content is no image of a known format."},
    422: {"model": Problem, "description": "A parameter has a wrong value, or the format cannot hold the image."},
    500: {"model": Problem, "description": "The server or a replica has a fault."},
    503: {"model": Problem, "description": "The server is busy. The header Retry-After says when to try again."},
}


def create_app(
    about: About, limits: Limits, workers: Workers, metrics: Metrics, running: Callable[[], int], hosts: list[str]
) -> ASGIApp:
    """Make the application.

    Args:
        about: the model.
        limits: what is refused.
        workers: the replicas.
        metrics: what is counted.
        running: returns the number of replicas that run; it may block and raise anything.
        hosts: names by which the server may be called; empty for any.
    """
    # The pages of FastAPI for docs_url and redoc_url load scripts from elsewhere.
    app = FastAPI(title="Upscale images", version="1", docs_url=None, redoc_url=None)
    replicas = ReplicaCount(running)
    most_bytes = int(limits.megabytes * 1e6)

    @app.post(_UPSCALE, responses={200: _ANSWER, **_REFUSALS}, openapi_extra={"requestBody": _BODY})
    async def upscale(
        request: Request,
        format: Annotated[Format, Query(description="File format of the answer.")] = Format.PNG,
        quality: Annotated[
            int | None, Query(ge=1, le=100, description="Quality of JPEG, WebP (lossless without it) or AVIF.")
        ] = None,
        method: Annotated[Method, Query(description="The model, or bicubic interpolation.")] = Method.MODEL,
    ) -> Response:
        """Upscale an image: the body is an image file, or a form with the file `image`."""
        start = time.perf_counter()
        refusal = workers.enter()
        if refusal:
            await bodies.discard(request)
            return _refuse(refusal)
        with ExitStack() as place:
            place.callback(workers.leave)
            try:
                content = await bodies.read_image(request, most_bytes)
                if isinstance(content, Refusal):
                    return _refuse(content)
                done = await _unless_disconnected(request, workers.upscale(Job(content, method, format, quality)))
            except ClientDisconnect:
                done = None
            if done is None:
                return Response(status_code=_CLOSED)
            if isinstance(done, Refusal):
                return _refuse(done)
            seconds = time.perf_counter() - start
            metrics.seconds.observe(seconds)
            metrics.pixels.inc(done.width * done.height)
            headers = {"Server-Timing": f"total;dur={seconds * 1000:.0f}", "Cache-Control": "no-store"}
            # The request keeps its place until its image has been sent, because the image is in memory until then.
            return ImageResponse(done.content, format.media_type, headers, place.pop_all().close)

    @app.get("/v1/model")
    async def model() -> About:
        """Return the model that is served, and its limits."""
        return about

    @app.get("/healthz", responses={503: {"model": Health, "description": "No replica runs."}})
    async def health(response: Response) -> Health:
        """Tell whether images can be upscaled."""
        count = await replicas.read()
        response.status_code = 200 if count else 503
        return Health(status="ok" if count else "no replica runs", replicas=count)

    @app.get("/metrics", response_class=Response)
    async def read_metrics() -> Response:
        """Return counters in the text format of Prometheus."""
        metrics.replicas.set(await replicas.read())
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    app.router.routes += _page()
    app.add_exception_handler(RequestValidationError, _explain_parameters)
    app.add_exception_handler(HTTPException, _explain_status)
    app.add_exception_handler(Exception, _explain_fault)
    return Counting(Protection(app, hosts), _UPSCALE, metrics.requests)


_ANSWER: dict[str, Any] = {
    "description": "The upscaled image.",
    "content": {name.media_type: {"schema": {"type": "string", "format": "binary"}} for name in Format},
    "headers": {"Server-Timing": {"description": "Time in ms.", "schema": {"type": "string"}}},
}


async def _unless_disconnected(request: Request, work: Awaitable[Upscaled | Refusal]) -> Upscaled | Refusal | None:
    """Wait for work, and cancel it if the client goes away; then return None."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(request.receive())  # the body has been read, so only a disconnect can follow
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        return await working if working.done() else None
    finally:
        working.cancel()
        watching.cancel()


def _refuse(refusal: Refusal) -> Response:
    wait = {} if refusal.retry_after_s is None else {"Retry-After": str(refusal.retry_after_s)}
    return JSONResponse({"error": refusal.reason}, refusal.status, wait)


def _page() -> list[Route]:
    """Routes of the page's files, which are read once."""
    folder = resources.files("pipeline.serving") / "page"
    routes = []
    for name, media_type in _PAGE.items():
        answer = Response((folder / name).read_bytes(), media_type=media_type, headers={"Cache-Control": "no-cache"})
        routes.append(Route("/" if name == "index.html" else f"/{name}", partial(_give, answer)))
    return routes


async def _give(answer: Response, _: Request) -> Response:
    return answer


async def _explain_parameters(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name, given = first["loc"][-1], one_line(str(first.get("input")), 80)
    return JSONResponse({"error": f"the parameter {name} is {given}: {first['msg'].lower()}"}, 422)


async def _explain_status(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    path = one_line(request.url.path, 80)
    known = "expected POST /v1/upscale, or GET of /, /v1/model, /healthz, /metrics or /openapi.json"
    return JSONResponse(
        {"error": f"{request.method} {path} is not answered here: {known}"}, error.status_code, error.headers
    )


async def _explain_fault(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": "the server has a fault, which its terminal shows"}, 500)
