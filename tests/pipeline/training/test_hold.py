from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from pipeline import storage
from pipeline.data import patchset, preparation
from pipeline.data.held import HeldTiles
from pipeline.data.tiles import open_tiles
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


@pytest.mark.long
@pytest.mark.usefixtures("ray_session")
def test_workers_of_a_node_that_hold_tiles_read_each_shard_from_the_store_once(
    small: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local, _ = preparation.prepare(parse(small(), "train", ""))
    url = f"memory://{tmp_path.name}"
    for file in Path(local.url).rglob("*.*"):
        storage.write(f"{url}/{file.relative_to(local.url)}", file.read_bytes())
    remote = patchset.load(url)
    read: Counter[str] = Counter()

    def count(name: str) -> None:
        real: Any = getattr(MemoryFileSystem, name)

        def counted(self: MemoryFileSystem, path: str, *more: Any, **named: Any) -> Any:
            read[Path(path).name] += 1
            return real(self, path, *more, **named)

        monkeypatch.setattr(MemoryFileSystem, name, counted)

    for name in ("_open", "cat_file"):  # of whole files, and of parts
        count(name)

    def open_as_worker(scratch: str, budget_mb: float) -> HeldTiles:
        tiles = open_tiles(remote, "device", budget_mb, scratch, sharing=2)
        assert isinstance(tiles, HeldTiles)
        return tiles

    with ThreadPoolExecutor(2) as pool:  # each thread stands for a worker
        found = list(pool.map(open_as_worker, [str(tmp_path / "scratch")] * 2, [1000] * 2))
    assert read == {shard.file: 1 for shard in remote.shards}
    expected = open_tiles(local, "device", 0)
    assert isinstance(expected, HeldTiles)
    for tiles in found:
        assert torch.equal(tiles.hr, expected.hr)
        assert torch.equal(tiles.lr, expected.lr)
    monkeypatch.setattr("pipeline.data.tiles._PATIENCE_S", 0.5)
    without_room = open_as_worker(str(tmp_path / "other"), 0)
    assert torch.equal(without_room.hr, expected.hr)
    assert all(read[shard.file] > 1 for shard in remote.shards)
