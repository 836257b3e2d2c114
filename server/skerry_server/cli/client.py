"""The control plane's REST API as the command line uses it: answers become documents, failures become our errors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx

from skerry_server.api.access import ForbiddenError, UnauthenticatedError
from skerry_server.cli.output import Document
from skerry_server.config import ServerLayout, default_data_dir, load_config
from skerry_server.errors import (
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    PlatformError,
    RequestError,
    SkerryError,
)

#: Rows asked for at a time.
PAGE = 200
#: How long one call may take (seconds).
TIMEOUT_S = 30.0


def connect(url: str = "", token: str = "", data_dir: Path | None = None) -> ApiClient:
    """A client for the control plane that the options and the environment point at.

    Address and token are looked for one by one: the argument, ``SKERRY_URL`` and ``SKERRY_TOKEN`` (unless a data
    directory is named), then the data directory's ``server.json`` and ``admin-token``.

    Raises:
        PlatformError: Nothing says where the control plane is, or the data directory cannot be read.
    """
    if data_dir is None:
        url = url or os.environ.get("SKERRY_URL", "")
        token = token or os.environ.get("SKERRY_TOKEN", "")
    layout = ServerLayout((data_dir or default_data_dir()).expanduser())
    if not url:
        config = load_config(layout)
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(config.host, config.host)
        url = f"http://{host}:{config.api_port}"
    if not token:
        try:
            token = layout.admin_token.read_text().strip()
        except OSError as error:
            raise PlatformError(
                f"{layout.admin_token} cannot be read ({error.strerror})",
                remedy="set SKERRY_TOKEN, or name the control plane's directory with --data-dir",
            ) from error
    return ApiClient(url, token)


class ApiClient:
    """One caller with one token; close it."""

    def __init__(self, url: str, token: str, *, transport: httpx.BaseTransport | None = None) -> None:
        """Make a client; nothing is sent yet.

        Args:
            url: Root of the API.
            token: API token.
            transport: In place of the network, for tests.

        Raises:
            InvalidRequestError: The address is not one.
        """
        self.url = url.rstrip("/")
        if not self.url.startswith(("http://", "https://")):
            raise InvalidRequestError("--url", expected="http://host:port or https://host:port", got=url)
        self._http = httpx.Client(
            base_url=self.url,
            headers={"authorization": f"Bearer {token}"},
            timeout=TIMEOUT_S,
            transport=transport,
            trust_env=False,
        )

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    def get(self, *path: str, **query: str | int) -> Document:
        """GET a document; the parts of the path are escaped."""
        return self._document("GET", path, query=query)

    def post(self, *path: str, body: Document | None = None) -> Document:
        """POST a document; an empty answer is an empty document."""
        return self._document("POST", path, body=body or {})

    def put(self, *path: str, body: Document) -> Document:
        """PUT a document."""
        return self._document("PUT", path, body=body)

    def text(self, *path: str) -> str:
        """GET a page."""
        return self._call("GET", path).text

    def items(self, *path: str, limit: int, **query: str | int) -> list[Document]:
        """The first ``limit`` rows of a list, over as many pages as it takes."""
        rows: list[Document] = []
        for page in self._pages(path, limit=limit, query=query):
            rows.extend(page)
        return rows[:limit]

    def _pages(self, path: tuple[str, ...], *, limit: int, query: dict[str, str | int]) -> Iterator[list[Document]]:
        token = ""
        while limit > 0:
            size = min(limit, PAGE)
            page = self._document(
                "GET", path, query={**query, "page_size": size, **({"page_token": token} if token else {})}
            )
            yield page["items"]
            limit -= size
            token = page["next_page_token"]
            if not token:
                return

    def _document(
        self,
        method: str,
        path: tuple[str, ...],
        *,
        query: dict[str, str | int] | None = None,
        body: Document | None = None,
    ) -> Document:
        response = self._call(method, path, query=query, body=body)
        if response.status_code == 204:
            return {}
        try:
            document = response.json()
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise PlatformError(f"{self.url} does not answer like a control plane", remedy="check the address")
        return document

    def _call(
        self,
        method: str,
        path: tuple[str, ...],
        *,
        query: dict[str, str | int] | None = None,
        body: Document | None = None,
    ) -> httpx.Response:
        target = "/v1/" + "/".join(quote(part, safe="") for part in path)
        try:
            response = self._http.request(method, target, params=query, json=body)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            reason = str(error) or type(error).__name__
            raise PlatformError(
                f"the control plane at {self.url} cannot be reached ({reason})",
                remedy="is `skerry up` running there? name it with --url or --data-dir",
            ) from error
        if response.is_success:
            return response
        raise _failure(response, self.url)


def _failure(response: httpx.Response, url: str) -> SkerryError:
    """The error that the API told, as the exception that it was there."""
    try:
        told = response.json()["error"]
        kind, message = str(told["kind"]), str(told["message"])
        field, expected, got = (str(told.get(name, "")) for name in ("field", "expected", "got"))
    except (ValueError, KeyError, TypeError):
        return PlatformError(f"{url} answered {response.status_code}", remedy="is it a control plane?")
    match kind:
        case "not-found" if field:
            return NotFoundError(field, got)
        case "not-found":
            return PlatformError(f"{response.url} is not there", remedy="check the address of the control plane")
        case "conflict":
            return ConflictError(message)
        case "invalid":
            return InvalidRequestError(field, expected=expected, got=got)
        case "unauthenticated":
            return UnauthenticatedError(f"{message}; set SKERRY_TOKEN or --token")
        case "forbidden":
            return ForbiddenError(role=got, needed=expected.removeprefix("role ").removesuffix(" or higher"))
        case "unavailable" | "internal":
            return PlatformError(message, remedy="try again, and look at the control plane's log")
        case _:
            return RequestError(message)
