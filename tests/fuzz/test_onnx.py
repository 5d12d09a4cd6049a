"""Mutated .onnx files are upscalers or are refused."""

import random
from pathlib import Path

import pytest
import torch

from pipeline.networks.onnx_upscaler import load_onnx
from pipeline.settings import UserError
from tests import onnx_models
from tests.fuzz.campaign import Campaign, whole_campaign
from tests.fuzz.mutations import mutate_bytes


@pytest.mark.parametrize("count", [60, pytest.param(2000, marks=whole_campaign)])
def test_mutated_onnx_models(tmp_path: Path, count: int) -> None:
    whole = [onnx_models.repeating(scale).SerializeToString() for scale in (2, 3)]
    file = tmp_path / "model.onnx"

    def make(random_: random.Random) -> bytes:
        return mutate_bytes(random_, whole)

    def use(content: bytes) -> None:
        file.write_bytes(content)
        upscaler = load_onnx(str(file))
        sr = upscaler.enlarge(torch.zeros(3, 8, 9, dtype=torch.uint8))
        assert sr.shape == (3, 8 * upscaler.scale, 9 * upscaler.scale)

    Campaign("ONNX", make, use, (UserError,), tmp_path).run(count)
