"""The command line against a real server with a seeded store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from fastapi import FastAPI

from integration.api.conftest import app, seeded, template
from integration.api.live import serving
from integration.api.seeding import TOKENS, Seeded
from skerry_server.api.app import bind
from skerry_server.cli.main import main

__all__ = ["app", "seeded", "template"]


@dataclass(frozen=True)
class Result:
    """What one command did."""

    code: int
    out: str
    err: str

    def document(self) -> Any:
        """Standard output as JSON."""
        return json.loads(self.out)


class Skerry:
    """Runs ``skerry`` in this process against one server."""

    def __init__(self, url: str, capture: pytest.CaptureFixture[str]) -> None:
        self.url = url
        self._capture = capture

    def __call__(self, *arguments: str, role: str = "admin") -> Result:
        self._capture.readouterr()
        code = main([*arguments, "--url", self.url, "--token", TOKENS[role]])
        captured = self._capture.readouterr()
        return Result(code, captured.out, captured.err)


@pytest.fixture
def url(app: FastAPI, seeded: Seeded) -> Iterator[str]:
    bind(app, seeded.context)
    with serving(app) as url:
        yield url


@pytest.fixture
def skerry(url: str, capsys: pytest.CaptureFixture[str]) -> Skerry:
    return Skerry(url, capsys)
