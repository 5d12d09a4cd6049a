import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from pipeline.settings import UserError
from pipeline.training.ranks import Ranks
from tests.commands import run_ranks

TIMEOUT_S = 3


@pytest.mark.long
def test_a_slow_action_may_take_longer_than_the_time_out_of_a_collective_operation(tmp_path: Path) -> None:
    run_ranks(_call, (str(tmp_path),), 2)
    assert (tmp_path / "0").read_text() == (tmp_path / "1").read_text() == "done"


def _call(rank: int, folder: str) -> None:
    Path(folder, f"{rank} is there").touch()  # so that the time-out does not include the start of the processes
    while not Path(folder, f"{1 - rank} is there").exists():
        time.sleep(0.01)
    store = f"file://{folder}/meet"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timedelta(seconds=TIMEOUT_S))
    ranks = Ranks(torch.device("cpu"), rank, 2)

    def work(seconds: float) -> int:
        time.sleep(seconds * rank)
        if seconds < 0.5 and rank == 1:
            raise OSError("the disk is full")
        return rank

    assert ranks.call_on_all(lambda: work(TIMEOUT_S + 1), slow=True) == rank
    with pytest.raises(UserError, match="cannot unpack: the disk is full"):
        ranks.call_on_all(lambda: work(0.1), "cannot unpack", slow=True)
    assert ranks.gather(rank) == [0, 1]
    with pytest.raises(RuntimeError):  # without signs of life, the same takes too long
        ranks.call_on_all(lambda: work(TIMEOUT_S + 1))
    Path(folder, str(rank)).write_text("done")
