"""Version of the installed distribution."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def agent_version() -> str:
    """For example "0.1.0"; "0" when the package runs without being installed."""
    try:
        return version("skerry")
    except PackageNotFoundError:
        return "0"
