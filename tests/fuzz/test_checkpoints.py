"""Damaged checkpoints of a training are passed over, whatever is wrong with them."""

import random
from pathlib import Path

import pytest

from pipeline.tracking import Best
from pipeline.training.checkpoints import Checkpoints, SkipCounts, TrainingState
from tests.fuzz.campaign import Campaign, whole_campaign
from tests.fuzz.mutations import mutate_bytes, mutate_json


@pytest.mark.parametrize("count", [40, pytest.param(1500, marks=whole_campaign)])
def test_mutated_checkpoints(tmp_path: Path, count: int) -> None:
    whole = Checkpoints(str(tmp_path / "whole"), keep=2)
    for step in (10, 20):
        files = {"weights.safetensors": b"%d" % step * 50, "optimizer.pt": bytes(200)}
        whole.save(files, TrainingState(step, SkipCounts(2, 1), Best(10, 27.5)))
    whole.wait()
    newest = tmp_path / "whole/000000020"
    contents = {file.name: file.read_bytes() for file in newest.iterdir()}

    def make(random_: random.Random) -> tuple[str, bytes]:
        name = random_.choice(["state.json", "state.json", "state.json", *contents])
        mutate = mutate_json if name == "state.json" else mutate_bytes
        return name, mutate(random_, [contents[name]])

    def use(changed: tuple[str, bytes]) -> None:
        name, content = changed
        (newest / name).write_bytes(content)
        try:
            restored = Checkpoints(str(tmp_path / "whole"), keep=2).restore()
        finally:
            (newest / name).write_bytes(contents[name])
        assert restored is not None
        files, state = restored
        assert state.step in (10, 20)
        if state.step == 20:
            assert files.items() <= contents.items()

    Campaign("checkpoints", make, use, (), tmp_path).run(count)
