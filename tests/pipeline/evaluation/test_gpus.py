"""Evaluation on a cluster with GPUs: Ray counts a GPU that PyTorch cannot use."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.data import preparation
from pipeline.evaluation import trained_network
from pipeline.networks.weights import build_network, to_safetensors
from pipeline.settings.command_line import parse
from tests.conftest import ROOT, SMALL, write_photos

SCRIPT = """
import json, os, sys
import ray
from pipeline import cluster
from pipeline.data import patchset
from pipeline.evaluation import trained_network
from pipeline.settings.command_line import parse

url, weights, folder, options = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]
ray.init("local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=10**8)
config = parse(options, "evaluate", "")
cluster.connect(config)

def look(number):
    return os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"], ray.get_runtime_context().get_assigned_resources()

pool = cluster.gpu_pool(config, 4)
assert cluster.gpu_pool(parse([*options, "cluster.gpu=false"], "evaluate", ""), 4) is None
seen = list(cluster.map_tasks(look, range(8), pool))
scored = trained_network.evaluate(config, patchset.load(url), weights, folder)
print(json.dumps([seen, scored.sets["held-out"].mean]))
"""


@pytest.mark.long
def test_tasks_share_a_gpu_and_fall_back_to_the_cpu(tmp_path: Path, ray_session: None) -> None:
    write_photos(tmp_path / "photos")
    options = [f"--source={tmp_path / 'photos'}", f"--home={tmp_path / 'home'}", *SMALL, "evaluate.images=1"]
    config = parse(options, "evaluate", "")
    patch_set, _ = preparation.prepare(config)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(to_safetensors(build_network(config.scale, config.model, 1)))
    expected = trained_network.evaluate(config, patch_set, str(weights), f"{tmp_path}/cpu").sets["held-out"].mean
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, patch_set.url, str(weights), f"{tmp_path}/gpu", *options],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen, found = json.loads(done.stdout.splitlines()[-1])
    assert len(seen) == 8
    assert 1 <= len({process for process, _, _ in seen}) <= 2  # each needs a core
    assert {visible for _, visible, _ in seen} == {"0"}
    assert all(resources["GPU"] == 0.25 and resources["CPU"] == 1 for _, _, resources in seen)
    if torch.cuda.is_available():
        for method, mean in expected.items():
            assert found[method] == pytest.approx(mean, abs=1e-3)
    else:
        assert found == expected
        (line,) = [line for line in done.stderr.splitlines() if "CPU" in line]
        assert line.startswith("images are scored on the CPU, because PyTorch cannot use a GPU that Ray counts (")
