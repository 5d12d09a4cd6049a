"""Replicas of a server are killed while clients send images."""

from __future__ import annotations

import io
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import pytest
from PIL import Image

from benchmarks.server import Exchange, Server, load
from pipeline.networks.loading import load_upscaler
from pipeline.networks.sources import find_model
from pipeline.upscaling.images import decode_image, enlarge_image
from tests.pipeline.serving.inputs import PHOTO, as_file, eventually, write_model


@pytest.mark.long
def test_no_request_is_lost_or_wrong_when_replicas_are_killed(tmp_path: Path) -> None:
    model = write_model(tmp_path)
    crops = [PHOTO[top : top + 48, :64] for top in (0, 16, 32)]
    upscaler = load_upscaler(find_model(str(model)), device="cpu")

    def is_right(expected: npt.NDArray[np.uint8], answer: bytes) -> bool:
        got = np.asarray(Image.open(io.BytesIO(answer))).astype(int)
        return got.shape == expected.shape and int(np.abs(got - expected).max()) <= 1

    exchanges = []
    for crop in crops:
        content = as_file(crop)
        expected = enlarge_image(upscaler, decode_image(content, 10**6)).pixels
        exchanges.append(Exchange(content, partial(is_right, expected)))
    server = Server.start(model, tmp_path / "log", "--replicas=2", "--device=cpu", "--queue=4")
    killed: list[psutil.Process] = []

    def kill() -> None:
        for _ in range(3):
            assert eventually(lambda: len(server.replicas()) == 2)
            time.sleep(3)
            killed.append(server.replicas()[len(killed) % 2])
            killed[-1].kill()

    try:
        with ThreadPoolExecutor(1) as killer:
            killing = killer.submit(kill)
            outcome = load(server, exchanges, clients=24, seconds=40)
            killing.result()
        assert not outcome.lost
        assert outcome.wrong == 0
        assert outcome.refused > 0
        assert len(outcome.latencies) > 100
        assert len(killed) == 3
        assert server.count("sr_lost_attempts_total") > 0
        assert eventually(lambda: server.count("sr_replicas") == 2)
        assert server.interrupt() == 130
    finally:
        server.kill()
