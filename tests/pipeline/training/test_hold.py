from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.data import preparation
from pipeline.settings import UserError, with_values
from pipeline.settings.command_line import parse
from pipeline.training.ranks import Ranks
from pipeline.training.worker import Worker


@pytest.mark.long
@pytest.mark.usefixtures("ray_session")
def test_a_training_is_the_same_wherever_its_tiles_are(small: Callable[..., list[str]], tmp_path: Path) -> None:
    short = ["train.length=4 steps", "train.checkpoint_every=4"]
    config = parse(small(f"data.scratch={tmp_path / 'scratch'}", *short), "train", "")
    patch_set, _ = preparation.prepare(config)
    weights = []
    for hold in ("stream", "device"):
        folder = tmp_path / hold
        folder.mkdir()
        Worker(with_values(config, {"data.hold": hold}), patch_set, str(folder), Ranks(torch.device("cpu"))).run()
        weights.append((folder / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    limited = with_values(config, {"data.hold": "device", "train.memory_mb": 0.1})
    with pytest.raises(UserError, match=r"data\.hold is device, but the tiles take"):
        Worker(limited, patch_set, str(tmp_path), Ranks(torch.device("cpu"))).make_reader(2)
