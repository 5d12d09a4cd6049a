"""The deployment of Ray Serve: each replica is a process that holds the model and upscales images."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from pipeline.serving.jobs import Job, ModelFacts, Refusal, Upscaled
from pipeline.serving.models import ServedModel
from pipeline.settings import UserError
from pipeline.storage import one_line, redact

if TYPE_CHECKING:
    from pipeline.networks.engine import Precision

ONGOING = 4
"""Jobs that a replica works on at the same time: it decodes and encodes some while the model enlarges others."""


class Replica:
    """Upscales images in a process of its own; see `Work` for the arguments."""

    def __init__(self, model: ServedModel, device: str, precision: Precision, threads: int, most_pixels: int) -> None:
        from pipeline.serving.work import Work  # here, because the process of the HTTP server needs no PyTorch

        self._threads = ThreadPoolExecutor(ONGOING, "job")
        self._places = asyncio.Semaphore(ONGOING)
        self._work: Work | None = None
        try:
            self._work = Work(model, device, precision, threads, most_pixels)
        except Exception as error:  # Ray Serve would try again and again
            self._facts = ModelFacts(0, device, _explain(error, model.name))
        else:
            self._facts = ModelFacts(self._work.scale, device)

    async def facts(self) -> ModelFacts:
        """Return what is known about the model."""
        return self._facts

    async def __call__(self, job: Job) -> Upscaled | Refusal:
        """Do a job. If this call is cancelled, the job is forgotten unless a thread works on it already."""
        if self._work is None:
            return Refusal(500, self._facts.fault)
        # Jobs wait here and not in the queue of the threads, which would keep those that were cancelled.
        await self._places.acquire()
        loop = asyncio.get_running_loop()
        doing = self._threads.submit(self._work.do, job)
        doing.add_done_callback(lambda _: loop.call_soon_threadsafe(self._places.release))
        return await asyncio.wrap_future(doing)


def _explain(error: Exception, name: str) -> str:
    if isinstance(error, UserError):
        return redact(str(error))
    reason = redact(f"{type(error).__name__}: {one_line(error, 200)}")
    return f"the model {name} cannot be loaded ({reason}): expected a model that this machine can compute"
