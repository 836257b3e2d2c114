from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.runtime.broker_process import ControlPlane, Wait


@pytest.fixture
def control_plane(tmp_path: Path, wait_until: Wait) -> Iterator[ControlPlane]:
    """A control plane whose broker runs."""
    plane = ControlPlane(tmp_path / "plane", wait_until)
    plane.start_broker()
    yield plane
    plane.close()
