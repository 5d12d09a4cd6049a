from pathlib import Path

import pytest
import torch

from pipeline.training import preflight
from pipeline.training.compilers import has_c_compiler, has_compiler

CPU = torch.device("cpu")


def put(folder: Path, name: str) -> None:
    """Put a program that does nothing into a folder."""
    (folder / name).write_text("#!/bin/sh\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that is the only one on the path, without CC and CXX."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.parametrize(("name", "cpp_name"), [("gcc", "g++"), ("clang", "clang++")])
def test_a_compiler_on_the_path_is_found(path: Path, name: str, cpp_name: str) -> None:
    assert not has_c_compiler()
    assert not has_compiler(CPU)
    put(path, name)
    put(path, cpp_name)
    assert has_c_compiler()
    assert has_compiler(CPU)


def test_the_environment_names_the_compiler(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gcc", "g++", "own"):
        put(path, name)
    for variable in ("CC", "CXX"):
        monkeypatch.setenv(variable, "own")
    assert has_c_compiler()
    assert has_compiler(CPU)
    for variable in ("CC", "CXX"):
        monkeypatch.setenv(variable, "missing")
    assert not has_c_compiler()
    assert not has_compiler(CPU)


def test_the_check_of_gpus_asks_the_same(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "own")
    assert not preflight.collect("10.0.0.7").c_compiler
    put(path, "own")
    assert preflight.collect("10.0.0.7").c_compiler == has_c_compiler() is True
