"""Mutated .safetensors files are networks or are refused."""

import json
import random
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch

from pipeline.networks.weights import load_network, to_safetensors
from pipeline.settings import UserError
from sr_model.networks.edsr import EDSR
from sr_model.networks.srresnet import SRResNet
from tests.fuzz.campaign import Campaign, whole_campaign
from tests.fuzz.mutations import mutate_bytes, mutate_value


def seeds() -> list[bytes]:
    torch.manual_seed(0)
    small = to_safetensors(SRResNet(4, channels=4, blocks=2, batch_norm=True), 4)
    other = to_safetensors(SRResNet(2, channels=4, blocks=1), 2)
    third = to_safetensors(EDSR(3, channels=4, blocks=1, residual_scale=0.5), 3)
    return [
        small,
        other,
        third,
        safetensors.torch.save({"x": torch.zeros(3), "y": torch.zeros(2, 2, dtype=torch.float16)}),
    ]


def split(content: bytes) -> tuple[bytes, bytes]:
    (length,) = struct.unpack_from("<Q", content)
    return content[8 : 8 + length], content[8 + length :]


@pytest.mark.parametrize("count", [80, pytest.param(2000, marks=whole_campaign)])
def test_mutated_weights(tmp_path: Path, count: int) -> None:
    whole = seeds()
    file = tmp_path / "model.safetensors"

    def make(random_: random.Random) -> bytes:
        if random_.random() < 0.4:
            return mutate_bytes(random_, whole)
        header, data = split(random_.choice(whole))
        text = json.dumps(mutate_value(random_, json.loads(header))).encode()
        return struct.pack("<Q", len(text)) + text + data

    def use(content: bytes) -> None:
        file.write_bytes(content)
        net = load_network(str(file))
        with torch.no_grad():
            assert net(torch.zeros(1, 3, 8, 8)).shape == (1, 3, 8 * net.scale, 8 * net.scale)

    Campaign("safetensors", make, use, (UserError,), tmp_path).run(count)
