"""The control plane's REST API as a patient operator uses it.

Every call is repeated until a deadline when the connection fails or the server answers 5xx: the control plane may be
killed at any moment of a run. Creations are made once: before a repeated POST, the caller's ``existing`` looks whether
the first one arrived after all.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from skerry_simulation.errors import StepError

Document = dict[str, Any]


class ControlPlaneClient:
    """One operator with one token.

    Attributes:
        url: Root of the API, ``http://127.0.0.1:8080``.
        patience_s: How long a call is repeated while the control plane is away.
    """

    def __init__(self, url: str, token: str, *, patience_s: float = 90.0) -> None:
        self.url = url
        self.patience_s = patience_s
        self._http = httpx.Client(
            base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=20.0, trust_env=False
        )

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    def get(self, path: str, **parameters: str | int) -> Document:
        """GET a document."""
        return self._repeat("GET", path, lambda: self._http.get(path, params=parameters), None)

    def put(self, path: str, body: Document) -> Document:
        """PUT a document."""
        return self._repeat("PUT", path, lambda: self._http.put(path, json=body), None)

    def post(self, path: str, body: Document, *, existing: Callable[[], Document | None] | None = None) -> Document:
        """POST a document.

        Args:
            path: Resource.
            body: JSON document.
            existing: Finds what an earlier attempt of this call made, or None.
        """
        return self._repeat("POST", path, lambda: self._http.post(path, json=body), existing)

    def items(self, path: str, **parameters: str | int) -> list[Document]:
        """Every item of a paged list."""
        found: list[Document] = []
        token = ""
        while True:
            extra = {"page_token": token} if token else {}
            page = self.get(path, page_size=500, **parameters, **extra)
            found.extend(page["items"])
            token = page.get("next_page_token") or ""
            if not token:
                return found

    def download(self, path: str, target: Path) -> None:
        """GET a file."""
        deadline = time.monotonic() + self.patience_s
        while True:
            try:
                response = self._http.get(path)
                response.raise_for_status()
            except httpx.HTTPError as error:
                if time.monotonic() > deadline:
                    raise StepError(f"GET {path}", str(error)) from error
                time.sleep(0.5)
                continue
            target.write_bytes(response.content)
            return

    def wait_for(
        self,
        path: str,
        *,
        what: str,
        until: Callable[[Document], bool],
        failed: Callable[[Document], str | None] = lambda _: None,
        seconds: float,
        seen: Callable[[Document], None] = lambda _: None,
    ) -> Document:
        """Poll a document.

        Args:
            path: Resource.
            what: What is waited for, for errors.
            until: Whether it is there.
            failed: Why it will never be there, or None.
            seconds: Deadline.
            seen: Called with every document, to show progress.

        Raises:
            StepError: ``failed`` gave a reason, or the deadline passed.
        """
        deadline = time.monotonic() + seconds
        while True:
            document = self.get(path)
            seen(document)
            if until(document):
                return document
            reason = failed(document)
            if reason is not None:
                raise StepError(what, reason)
            if time.monotonic() > deadline:
                raise StepError(what, f"not within {seconds:g} s; last seen: {str(document)[:400]}")
            time.sleep(0.25)

    def _repeat(
        self,
        method: str,
        path: str,
        call: Callable[[], httpx.Response],
        existing: Callable[[], Document | None] | None,
    ) -> Document:
        deadline = time.monotonic() + self.patience_s
        attempt = 0
        while True:
            attempt += 1
            if attempt > 1 and existing is not None and (found := existing()) is not None:
                return found
            try:
                response = call()
            except httpx.TransportError as error:
                reason = str(error) or type(error).__name__
            else:
                if response.is_success:
                    document: Document = response.json()
                    return document
                reason = f"{response.status_code} {response.text[:400]}"
                if response.status_code < 500:
                    raise StepError(f"{method} {path}", reason)
            if time.monotonic() > deadline:
                raise StepError(f"{method} {path}", reason)
            time.sleep(min(0.1 * attempt, 1.0))
