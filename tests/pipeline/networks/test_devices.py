"""The device of networks, and TF32."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.networks import devices
from pipeline.networks.devices import best_device, cuda_fault, free_bytes, tf32
from tests.conftest import ROOT


def flags() -> tuple[bool, str, str, str]:
    """Everything that PyTorch reads: the older and the newer flags of cuDNN and of cuBLAS."""
    backends = torch.backends
    return (
        backends.cudnn.allow_tf32,
        torch.get_float32_matmul_precision(),
        backends.cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
        backends.cuda.matmul.fp32_precision,
    )


def test_tf32_is_on_or_off_inside_the_block_only() -> None:
    before = flags()
    with tf32(True):
        assert flags() == (True, "high", "tf32", "tf32")
        with tf32(False):
            cudnn, matmul, newer_cudnn, newer_matmul = flags()
            assert (cudnn, matmul) == (False, "highest")
            assert "tf32" not in (newer_cudnn, newer_matmul)
        assert flags() == (True, "high", "tf32", "tf32")
    with pytest.raises(KeyError), tf32(False):
        raise KeyError
    assert flags()[:2] == before[:2]


@pytest.mark.parametrize("enabled", [True, False])
def test_compiled_code_runs_inside_the_block(enabled: bool) -> None:
    def double(x: Tensor) -> Tensor:
        return 2 * x

    with tf32(enabled):
        assert torch.equal(torch.compile(double)(torch.ones(3)), torch.full((3,), 2.0))


def test_the_best_device_is_one_that_computes() -> None:
    assert torch.ones(1, device=best_device()).add(1).item() == 2
    assert (best_device().type == "cpu") == bool(cuda_fault())


def test_the_free_memory_of_a_container_includes_its_cache_of_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(devices, "_CGROUP", tmp_path)
    assert free_bytes(cpu) > 9000, "without a limit, what the machine has"
    for name, text in (("max", "9000"), ("current", "8000"), ("stat", "anon 500\ninactive_file 7000\nactive_file 1\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert free_bytes(cpu) == 8000
    (tmp_path / "memory.current").write_text("20000")
    assert free_bytes(cpu) == 0
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes(cpu) > 9000


def test_a_gpu_that_is_hidden_is_named_as_the_fault_and_nothing_warns() -> None:
    script = """
from pipeline.networks.devices import best_device, cuda_fault, tf32
with tf32(True), tf32(False):
    print(best_device(), cuda_fault())
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    device, fault = done.stdout.split(maxsplit=1)
    assert device == "cpu"
    assert len(fault.strip().splitlines()) == 1
    assert not done.stderr
