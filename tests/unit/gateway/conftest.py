from __future__ import annotations

from pathlib import Path

import pytest

from skerry_server.config import ServerLayout
from skerry_server.first_start import make_folders, prepare


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory of a control plane after its first start, to be copied."""
    folder = tmp_path_factory.mktemp("prepared") / "data"
    layout = ServerLayout(folder)
    make_folders(layout)
    prepare(layout, {})
    return folder
