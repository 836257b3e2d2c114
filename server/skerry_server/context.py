"""What every process of the control plane works with: configuration, store, artifacts, signing key.

>>> context = open_context(Path("/var/lib/skerry"))  # doctest: +SKIP
>>> with context.database.transaction() as session:  # doctest: +SKIP
...     pass
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from skerry_server.config import ServerConfig, ServerLayout, load_config
from skerry_server.releases.artifacts import ArtifactStore
from skerry_server.releases.signing import KeyFileSigner, load_or_create_key
from skerry_server.store.database import Database


@dataclass(frozen=True)
class ServerContext:
    """The parts that a process of the control plane shares between its threads.

    Attributes:
        config: Settings, as written at the first start.
        layout: Paths of the data directory.
        database: The store; made anew in each process.
        artifacts: Content-addressed blobs and bundles.
        signer: Signs what devices are to trust.
    """

    config: ServerConfig
    layout: ServerLayout
    database: Database
    artifacts: ArtifactStore
    signer: KeyFileSigner

    def close(self) -> None:
        """Give the connections back."""
        self.database.close()


def open_context(data_dir: Path) -> ServerContext:
    """Open a data directory that ``skerry up`` has set up; the schema is not touched.

    Raises:
        PlatformError: The configuration is missing or broken, or a key cannot be read.
    """
    layout = ServerLayout(data_dir.resolve())
    config = load_config(layout)
    return ServerContext(
        config=config,
        layout=layout,
        database=Database(layout.database_url(config)),
        artifacts=ArtifactStore(layout.artifacts_url(config), local=layout.artifacts),
        signer=load_or_create_key(layout),
    )
