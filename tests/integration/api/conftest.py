"""A seeded control plane behind the real application, in this process."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from integration.api.seeding import TOKENS, Seeded, make_context, seed_fleet, write_config
from skerry_server.api.app import bind, create_app
from skerry_server.config import ServerLayout
from skerry_server.context import open_context


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Seeded:
    """A seeded data directory that tests copy; its context is closed."""
    seeded = make_context(tmp_path_factory.mktemp("template") / "server")
    seed_fleet(seeded)
    seeded.context.close()
    return seeded


@pytest.fixture
def seeded(template: Seeded, tmp_path: Path) -> Iterator[Seeded]:
    """A data directory with a fleet, this test's own."""
    folder = tmp_path / "server"
    shutil.copytree(template.folder, folder)
    config = write_config(ServerLayout(folder))
    context = open_context(folder)
    yield Seeded(folder, context, f"http://127.0.0.1:{config.api_port}")
    context.close()


@pytest.fixture(scope="session")
def app(template: Seeded) -> FastAPI:
    """The application; its routes are built once."""
    return create_app(template.context)


@pytest.fixture
def client(app: FastAPI, seeded: Seeded) -> Iterator[TestClient]:
    """A caller with the administrator's token; a defect of the server is an answer, as in production."""
    bind(app, seeded.context)
    with TestClient(app, raise_server_exceptions=False) as client:
        client.headers["authorization"] = f"Bearer {TOKENS['admin']}"
        yield client
