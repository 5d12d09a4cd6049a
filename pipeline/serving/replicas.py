"""The deployment of Ray Serve: each replica is a process that holds the model and upscales images."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from pipeline.serving.jobs import Job, ModelFacts, Refusal, Upscaled
from pipeline.settings import UserError

if TYPE_CHECKING:
    from pipeline.networks.engine import Precision

ONGOING = 4
"""Jobs that a replica works on at the same time: it decodes and encodes some while the model enlarges others."""


class Replica:
    """Upscales images in a process of its own; see `Work` for the arguments."""

    def __init__(self, model: str, device: str, precision: Precision, threads: int, most_pixels: int) -> None:
        from pipeline.serving.work import Work  # here, because the process of the HTTP server needs no PyTorch

        self._threads = ThreadPoolExecutor(ONGOING, "job")
        self._work: Work | None = None
        try:
            self._work = Work(model, device, precision, threads, most_pixels)
        except UserError as error:  # Ray Serve would try again and again
            self._facts = ModelFacts(0, device, str(error))
        else:
            self._facts = ModelFacts(self._work.scale, device)

    async def facts(self) -> ModelFacts:
        """Return what is known about the model."""
        return self._facts

    async def __call__(self, job: Job) -> Upscaled | Refusal:
        """Do a job."""
        if self._work is None:
            return Refusal(500, self._facts.fault)
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._work.do, job)
