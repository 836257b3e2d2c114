"""The gRPC server beside the REST application over one seeded store."""

from __future__ import annotations

from integration.api.conftest import app, client, seeded, template

__all__ = ["app", "client", "seeded", "template"]
