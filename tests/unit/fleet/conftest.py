from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from skerry_server.config import ServerLayout
from skerry_server.context import ServerContext, open_context
from skerry_server.first_start import make_folders, prepare


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory after its first start, to be copied."""
    folder = tmp_path_factory.mktemp("prepared") / "data"
    layout = ServerLayout(folder)
    make_folders(layout)
    prepare(layout, {})
    return folder


@pytest.fixture
def context(prepared: Path, tmp_path: Path) -> Iterator[ServerContext]:
    """A control plane without processes."""
    folder = tmp_path / "data"
    shutil.copytree(prepared, folder)
    made = open_context(folder)
    yield made
    made.close()
