"""Only its user can read the token of a local Ray."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cluster.tokens import protect_token
from tests.conftest import ROOT


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the place of the token of a user who has none."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / ".ray" / "auth_token"


def test_a_new_token_is_private(file: Path) -> None:
    protect_token()
    token = file.read_text()
    assert len(token) == 64
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert [other.name for other in file.parent.iterdir()] == ["auth_token"]
    protect_token()
    assert file.read_text() == token


def test_a_token_that_others_could_read_is_kept_and_becomes_private(file: Path) -> None:
    file.parent.mkdir()
    file.write_text("known")
    file.chmod(0o644)
    protect_token()
    assert file.read_text() == "known"
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("name", "value"), [("RAY_AUTH_MODE", "disabled"), ("RAY_AUTH_TOKEN", "x"), ("RAY_AUTH_TOKEN_PATH", "/x")]
)
def test_no_file_is_made_that_ray_does_not_read(
    file: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    protect_token()
    assert not file.exists()


@pytest.mark.long
def test_ray_takes_the_token(file: Path) -> None:
    program = "from pipeline import cluster; from pipeline.settings import Config; cluster.connect(Config())"
    environment = {**os.environ, "HOME": str(file.parents[1])}
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, check=True)
    assert len(file.read_text()) == 64
    assert file.stat().st_mode & 0o777 == 0o600
