"""A replica by itself: what it keeps of cancelled jobs, and which models it refuses."""

import asyncio
import gc
import weakref
from pathlib import Path

import numpy as np

from pipeline.networks.sources import find_model
from pipeline.serving.jobs import Format, Job, Method, Upscaled
from pipeline.serving.models import ServedModel, checksum
from pipeline.serving.replicas import ONGOING, Replica
from tests.pipeline.serving.inputs import as_file, write_model

MOST_PIXELS = 10**7


def test_cancelled_jobs_are_forgotten() -> None:
    content = as_file(np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8))

    def new_job() -> Job:
        return Job(content, Method.MODEL, Format.PNG, None)

    async def act() -> None:
        replica = Replica(ServedModel(find_model("bicubic"), ""), "cpu", "auto", 2, MOST_PIXELS)
        jobs = [new_job() for _ in range(5 * ONGOING)]
        known = [weakref.ref(job) for job in jobs]
        doing = [asyncio.ensure_future(replica(job)) for job in jobs]
        del jobs
        await asyncio.sleep(0.01)
        for one in doing:
            one.cancel()
        await asyncio.gather(*doing, return_exceptions=True)
        del one, doing
        await asyncio.sleep(0)  # until then, asyncio itself holds the tasks
        gc.collect()
        assert 0 < sum(job() is not None for job in known) <= ONGOING
        answers = await asyncio.gather(*(replica(new_job()) for _ in range(2 * ONGOING)))
        assert [(type(answer), getattr(answer, "width", 0)) for answer in answers] == [(Upscaled, 1200)] * 2 * ONGOING

    asyncio.run(act())


def test_a_replica_takes_no_other_model_than_the_server_started_with(tmp_path: Path) -> None:
    source = find_model(str(write_model(tmp_path)))
    served = ServedModel(source, checksum(source))

    def facts(model: ServedModel) -> tuple[int, str]:
        found = asyncio.run(Replica(model, "cpu", "auto", 2, MOST_PIXELS).facts())
        return found.scale, found.fault

    assert facts(served) == (4, "")
    scale, fault = facts(ServedModel(source, "0" * 64))
    assert scale == 0
    assert "have changed since the server started" in fault
    Path(source.weights).write_bytes(b"no weights")
    assert "cannot read the weights" in facts(served)[1]
    Path(source.weights).unlink()
    assert "there is no such file" in facts(served)[1]
