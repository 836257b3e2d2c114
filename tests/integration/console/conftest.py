"""The console's page and files from the real application."""

from __future__ import annotations

from integration.api.conftest import app, client, seeded, template

__all__ = ["app", "client", "seeded", "template"]
