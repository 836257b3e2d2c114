"""One SuperLink for the tests of the training process and of the node's identity."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from integration.federation.rig import SuperLink, TrainableBundle, build_bundle, issue_identity, server_config
from skerry_server.config import ServerLayout


@pytest.fixture(scope="package")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> TrainableBundle:
    """A signed bundle that a device can train."""
    return build_bundle(tmp_path_factory.mktemp("bundle") / "files")


@pytest.fixture(scope="package")
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SuperLink]:
    """A running SuperLink, over TLS, with node authentication."""
    layout = ServerLayout(tmp_path_factory.mktemp("server"))
    issue_identity(layout)
    link = SuperLink(layout, server_config())
    link.start()
    yield link
    link.nodes.close()
    link.kill(signal.SIGTERM)
