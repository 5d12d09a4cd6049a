"""Hand jobs to the replicas of Ray Serve, and repeat a job whose replica was lost."""

from __future__ import annotations

import asyncio
import time

from ray.exceptions import ObjectLostError, RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from pipeline.serving.jobs import Job, Refusal, Upscaled
from pipeline.serving.metrics import Metrics

_ATTEMPTS = 2
"""A job that ends two replicas may be the cause, so it gets no third one."""


class Workers:
    """The replicas, and the requests that are on the way to them.

    Args:
        handle: the deployment.
        ongoing: number of requests that the replicas work on together.
        queue: number of further requests that may wait.
        metrics: counts lost replicas.
    """

    def __init__(self, handle: DeploymentHandle, ongoing: int, queue: int, metrics: Metrics) -> None:
        self._handle = handle
        self._ongoing = ongoing
        self._room = ongoing + queue
        # Requests wait here, because Ray Serve would ask full replicas again and again if they have room.
        self._places = asyncio.Semaphore(ongoing)
        self._metrics = metrics
        self._inside = 0
        self._seconds = 1.0
        """Moving average of the time of a job."""

    def enter(self) -> Refusal | None:
        """Take a place for a request, before its image is read; `leave` gives it back.

        Returns:
            The refusal if there is no place.
        """
        if self._inside >= self._room:
            return self._busy("all places in the queue are taken")
        self._inside += 1
        self._metrics.inside.set(self._inside)
        return None

    def leave(self) -> None:
        """Give a place back."""
        self._inside -= 1
        self._metrics.inside.set(self._inside)

    async def upscale(self, job: Job) -> Upscaled | Refusal:
        """Let a replica do a job. If this call is cancelled, the job is cancelled too.

        A job depends on nothing but itself and writes nothing, so it can be repeated.
        """
        async with self._places:
            start = time.perf_counter()
            for _ in range(_ATTEMPTS):
                response = self._handle.remote(job)
                try:
                    answer: Upscaled | Refusal = await response
                except asyncio.CancelledError:
                    response.cancel()
                    raise
                except (RayActorError, ObjectLostError):  # the replica, or its node with the image or the result
                    self._metrics.lost.inc()
                except (BackPressureError, DeploymentUnavailableError):
                    return self._busy("no replica takes the image")
                else:
                    self._seconds += 0.1 * (time.perf_counter() - start - self._seconds)
                    return answer
        return self._busy("the replicas that worked on this image were lost")

    def _busy(self, reason: str) -> Refusal:
        wait = round(self._seconds * self._inside / self._ongoing)
        return Refusal(503, f"the server is busy: {reason}; try again later", max(1, min(wait, 60)))
