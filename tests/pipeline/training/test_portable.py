"""The state of a training in a record: training goes on from it as from a checkpoint."""

import io
import pickletools
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from pipeline.storage import DamagedFileError
from pipeline.training import portable
from pipeline.training.checkpoints import OPTIMIZERS, Files
from pipeline.training.learner import Learner
from tests.pipeline.training.test_learner import config, make_learner, make_step

OPTIONS = ["train.optimizer=muon", "train.ema_decay=0.5"]


def trained(first: int, last: int, learner: Learner) -> Learner:
    for step in range(first, last):
        make_step(learner, step, [16], seed=step)
    return learner


def resumed(files: Files) -> Learner:
    learner = make_learner(config(*OPTIONS))
    learner.load(files, learner.skips)
    return trained(3, 6, learner)


def states(files: Files) -> Any:
    return torch.load(io.BytesIO(files[OPTIMIZERS]), weights_only=True)


@pytest.fixture(scope="module")
def files() -> Files:
    return trained(0, 3, make_learner(config(*OPTIONS))).save()


def test_with_fp32_moments_a_training_goes_on_bit_for_bit(files: Files) -> None:
    packed = portable.pack(files, "fp32")
    straight, again = trained(0, 6, make_learner(config(*OPTIONS))).save(), resumed(portable.unpack(packed)).save()
    for name in ("model.safetensors", "ema.safetensors"):
        assert again[name] == straight[name]
    torch.testing.assert_close(states(again), states(straight), rtol=0, atol=0)


def test_with_bf16_moments_it_goes_on_up_to_their_rounding(files: Files) -> None:
    packed = portable.pack(files, "bf16")
    assert len(packed["optimizer.safetensors"]) < 0.7 * len(portable.pack(files, "fp32")["optimizer.safetensors"])
    straight, again = (resumed(kept).net.state_dict() for kept in (files, portable.unpack(packed)))
    start = safetensors.torch.load(files["model.safetensors"])

    def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
        return float(torch.stack([(one[name] - other[name]).norm() for name in one]).norm())

    assert 0 < distance(again, straight) < 0.02 * distance(straight, start)


def test_moments_keep_the_memory_layout_of_their_weights(files: Files) -> None:
    before, after = states(files), states(portable.unpack(portable.pack(files, "bf16")))
    for optimizer, same in zip(before["model"], after["model"], strict=True):
        assert same["param_groups"] == optimizer["param_groups"]
        for number, values in optimizer["state"].items():
            for key, value in values.items():
                assert same["state"][number][key].stride() == value.stride()
                assert same["state"][number][key].dtype == value.dtype


def test_a_record_holds_no_pickle(files: Files) -> None:
    for name, content in portable.pack(files, "bf16").items():
        assert name.endswith((".safetensors", ".json"))
        with pytest.raises(ValueError, match=r"at position|opcode|unknown"):
            list(pickletools.genops(content))


@pytest.mark.parametrize("name", ["optimizer.json", "optimizer.safetensors"])
@pytest.mark.parametrize("content", [b"", b"{}", b'{"model": [[{}]]}', None])
def test_a_damaged_state_is_refused_in_a_sentence(files: Files, name: str, content: bytes | None) -> None:
    packed = portable.pack(files, "bf16")
    del packed[name]
    if content is not None:
        packed[name] = content
    with pytest.raises(DamagedFileError):
        portable.unpack(packed)
