"""Serves the console's page and its files.

The page holds no data: everything it shows it asks of the API with the token that a person typed in. Its content
security policy allows scripts and styles from this origin only, nothing inline, no frames, no other host.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, FileSystemLoader, select_autoescape
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

_FOLDER = Path(__file__).parent
_STATIC = _FOLDER / "static"

#: What the page may do.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)


class _Files(StaticFiles):
    """Static files that a browser asks for again every time, cheaply: they are answered by their ETag."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["cache-control"] = "no-cache"
        response.headers["content-security-policy"] = CONTENT_SECURITY_POLICY
        return response


def render_page(version: str) -> str:
    """The page as it is sent."""
    environment = Environment(
        loader=FileSystemLoader(_FOLDER / "templates"),
        autoescape=select_autoescape(default=True, default_for_string=True),
    )
    return environment.get_template("console.html").render(version=version, revision=_revision())


def mount(app: FastAPI) -> None:
    """Serve the page at ``/`` and its files below ``/console``."""
    page = render_page(app.version)
    headers = {"content-security-policy": CONTENT_SECURITY_POLICY, "cache-control": "no-cache"}

    @app.get("/", include_in_schema=False)
    def show_console() -> HTMLResponse:
        return HTMLResponse(page, headers=headers)

    @app.get("/favicon.ico", include_in_schema=False)
    def show_icon() -> RedirectResponse:
        return RedirectResponse("/console/icon.svg")

    app.mount("/console", _Files(directory=_STATIC), name="console")


def _revision() -> str:
    """A short digest of all files: what a bug report should name."""
    digest = hashlib.sha256()
    for path in sorted(_STATIC.rglob("*")):
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()[:8]
