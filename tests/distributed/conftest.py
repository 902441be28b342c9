"""The processes that the distributed tests share."""

from collections.abc import Iterator

import pytest
from processes import Processes


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    processes = Processes(2, tmp_path_factory.mktemp("processes"))
    yield processes
    processes.stop()
