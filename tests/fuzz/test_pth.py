"""Mutated .pth files are tensors or are refused, and nothing in them is run."""

import io
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.networks.features import prepare_distance
from pipeline.settings import Config, UserError
from tests.fuzz.campaign import Campaign, whole_campaign
from tests.fuzz.mutations import mutate_bytes


class Program:
    """Makes a folder when it is unpickled by a loader that runs what a file says."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self._folder,)


def as_pth(value: object, zipped: bool = True) -> bytes:
    """Return a file as `torch.save` writes it."""
    sink = io.BytesIO()
    torch.save(value, sink, _use_new_zipfile_serialization=zipped)
    return sink.getvalue()


def prepare(folder: Path, name: str, content: bytes) -> None:
    """Use a file as the weights of the SqueezeNet distance, as a command does."""
    file = folder / name
    file.write_bytes(content)
    try:
        config = Config.model_validate({"evaluate": {"squeezenet": str(file)}, "home": str(folder / "home")})
        prepare_distance(config)
    finally:
        file.unlink()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_program_in_a_file_is_not_run(tmp_path: Path, zipped: bool) -> None:
    for number, value in enumerate(({"a": Program(tmp_path / "made")}, Program(tmp_path / "made"))):
        with pytest.raises(UserError, match=r"holds nothing but tensors"):
            prepare(tmp_path, f"{number}.pth", as_pth(value, zipped))
    with pytest.raises(UserError, match=r"holds nothing but tensors"):
        prepare(tmp_path, "plain.pth", pickle.dumps(Program(tmp_path / "made")))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("count", [25, pytest.param(1000, marks=whole_campaign)])
def test_mutated_pth_files(tmp_path: Path, count: int) -> None:
    tensors = {"features.0.weight": torch.zeros(4, 3, 3, 3), "features.0.bias": torch.zeros(4, dtype=torch.float16)}
    seeds = [as_pth(tensors), as_pth(tensors, zipped=False), as_pth([1, "a", tensors]), pickle.dumps({"a": [1.5]})]
    numbers = iter(range(count))

    def use(content: bytes) -> None:
        prepare(tmp_path, f"{next(numbers)}.pth", content)  # a name of its own, because a process reads a file once

    Campaign("pth", lambda random_: mutate_bytes(random_, seeds), use, (UserError,), tmp_path).run(count)
