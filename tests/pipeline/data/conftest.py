from collections.abc import Iterator

import pytest

from benchmarks.simulated import Objects, serve


@pytest.fixture
def store() -> Iterator[Objects]:
    """An empty store that answers at once."""
    objects = Objects()
    serve(objects)
    yield objects
    serve(Objects())
