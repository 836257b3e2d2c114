"""A control plane's data directory for the jobs of training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from skerry_server.context import ServerContext
from unit.jobs.support import make_context


@pytest.fixture
def context(tmp_path: Path) -> Iterator[ServerContext]:
    """An open one, closed after the test."""
    made = make_context(tmp_path / "data")
    yield made
    made.close()
