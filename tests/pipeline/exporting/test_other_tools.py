"""Exported weights in the networks of the packages that they are meant for, which are installed for this test."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.networks.weights import to_safetensors
from sr_model.networks.edsr import EDSR
from tests.conftest import ROOT
from tests.pipeline.exporting.running import run

PACKAGES = ("spandrel==0.4.2", "einops", "basicsr==1.4.2", "mmagic==1.2.0", "super-image==0.2.0")
"""They are installed without what they depend on, because their networks need torch alone."""


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-compile", "--target", str(folder)]
    done = subprocess.run([*pip, *PACKAGES], capture_output=True, text=True, timeout=500)
    if done.returncode:
        pytest.skip(f"the other packages cannot be installed: {done.stderr[-300:]}")
    return folder


@pytest.mark.long
@pytest.mark.parametrize(
    ("tool", "form"),
    [
        ("spandrel", "rcan"),
        ("basicsr", "basicsr"),
        ("mmagic", "mmagic"),
        ("super_image", "edsr-pytorch"),
        ("edsr_pytorch", "edsr-pytorch"),
    ],
)
def test_other_packages_compute_the_same(tool: str, form: str, packages: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    own, exported = tmp_path / "own.safetensors", tmp_path / "exported.safetensors"
    own.write_bytes(to_safetensors(EDSR(4, blocks=4, residual_scale=0.5, init="paper"), 4))
    run(own, exported, "--format", form)
    done = subprocess.run(
        [sys.executable, "-m", "tests.pipeline.exporting.published", tool, packages, own, exported],
        capture_output=True, text=True, cwd=ROOT, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    difference = float(done.stdout.splitlines()[-1])
    print(f"{form} in {tool}: differs by at most {difference:.1e}")
    assert difference <= 1e-5
