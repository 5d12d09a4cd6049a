"""Files of weights: the same weights give the same file, and no file takes more than its size."""

import json
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.networks.weights import load_network, parse_weights, read_weights, serialise, to_safetensors
from pipeline.settings import UserError
from sr_model.networks.srresnet import SRResNet


def network() -> SRResNet:
    torch.manual_seed(0)
    return SRResNet(4, channels=8, blocks=2)


SMALL = to_safetensors(network(), 4)


def test_the_same_weights_give_the_same_file() -> None:
    """The library itself writes the metadata in an order that changes from call to call."""
    assert {to_safetensors(network(), 4) for _ in range(30)} == {SMALL}
    assert len({safetensors.torch.save(network().state_dict(), {"format": "pt", "scale": "4"}) for _ in range(30)}) == 2


def test_the_file_is_like_that_of_the_library(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(SMALL)
    with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "scale": "4"}
    found, expected = parse_weights(SMALL), network().state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert serialise(found) == safetensors.torch.save(found)


def file_of(header: dict[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(kind: str, shape: list[int], size: int = 0) -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": [0, size]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no weights",
        SMALL[:-1],
        SMALL[:100],
        struct.pack("<Q", 2**63) + SMALL[8:],
        file_of({"a": entry("F4", [2], 1)}, b"\0"),
        file_of({"a": entry("F8_E8M0", [1], 1)}, b"\0"),
        file_of({"a": entry("F32", [10**9])}),
        file_of({"a": entry("F32", [10**18, 10**18])}),
    ],
    ids=range(9),
)
def test_a_damaged_file_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(
        UserError, match=r"cannot read the weights .*model.safetensors: [^\n]+; expected a .safetensors"
    ):
        read_weights(str(file))


@given(place=st.integers(0, len(SMALL) - 1), value=st.integers(0, 255))
def test_a_changed_byte_raises_nothing_else(tmp_path_factory: pytest.TempPathFactory, place: int, value: int) -> None:
    content = bytearray(SMALL)
    content[place] = value
    file = tmp_path_factory.getbasetemp() / "changed.safetensors"
    file.write_bytes(content)
    try:
        net = load_network(str(file))
    except UserError:
        return
    assert net.scale == 4


@pytest.mark.parametrize("channels", [10**4, 10**6, 10**9, 10**12])
def test_a_small_file_cannot_ask_for_a_large_network(tmp_path: Path, channels: int) -> None:
    weights = {**network().state_dict(), "conv_first.weight": torch.empty(channels, 0, 9, 9)}
    file = tmp_path / "model.safetensors"
    file.write_bytes(serialise(weights, 4))
    assert file.stat().st_size < 50_000
    began = time.monotonic()
    with pytest.raises(UserError, match=r"no residual block has the 10+ channels of the first convolution"):
        load_network(str(file))
    assert time.monotonic() - began < 5


def test_names_alone_make_no_blocks(tmp_path: Path) -> None:
    """With a module for each name, this file would take minutes."""
    more = {f"body.{i}.conv1.weight": torch.empty(0) for i in range(20_000)}
    file = tmp_path / "model.safetensors"
    file.write_bytes(serialise({**more, **network().state_dict()}, 4))
    began = time.monotonic()
    with pytest.raises(UserError, match="the weights are not those of SRResNet"):
        load_network(str(file))
    assert time.monotonic() - began < 10
