"""Container engines for tests that build and start images."""

import pytest

from tests.infra.engine import Engine, base_image, find_engine, torch_arguments


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """Return Docker or Podman."""
    found = find_engine(tmp_path_factory.mktemp("engine"))
    if found is None:
        pytest.skip("neither docker nor podman can be used here")
    return found


@pytest.fixture(scope="session")
def build_arguments(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the arguments with which the Dockerfile can be built here."""
    base = base_image(engine)
    if base is None:
        pytest.skip("no base image can be pulled, and none made without debootstrap and root")
    return {"BASE": base, **torch_arguments(tmp_path_factory.mktemp("torch"), engine)}
