"""Headless Chromium on the console of a real server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from integration.api.conftest import app, seeded, template
from integration.api.live import serving
from integration.api.seeding import TOKENS, Seeded
from skerry_server.api.app import bind

__all__ = ["app", "seeded", "template"]

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
TIMEOUT_MS = 30_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One Chromium for the session; the tests are skipped where there is none."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("Chromium is not installed")
    expect.set_options(timeout=TIMEOUT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def url(app: FastAPI, seeded: Seeded) -> Iterator[str]:
    bind(app, seeded.context)
    with serving(app) as url:
        yield url


class Visitor:
    """A person at the console; whatever the browser complains about is remembered."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.complaints: list[str] = []
        #: Status of a refusal that the test brings about: the browser itself remarks on it, at a time of its choosing.
        self.expected_status: int | None = None
        self.hosts: set[str] = set()
        page.set_default_timeout(TIMEOUT_MS)
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.hosts.add(request.url.split("/")[2]))

    def _hear(self, message: ConsoleMessage) -> None:
        wanted = self.expected_status is not None and f"status of {self.expected_status} " in message.text
        if message.type in ("error", "warning") and not wanted:
            self.complaints.append(message.text)

    def sign_in(self, role: str = "admin") -> None:
        """Open the page and sign in."""
        self.page.goto(self.url)
        self.page.fill("#token", TOKENS[role])
        self.page.click("#sign-in button")
        expect(self.page.locator("#fleet tbody tr").first).to_be_visible()
        expect(self.page.locator("#connection-text")).to_have_text("live")


@pytest.fixture
def visitor(browser: Browser, url: str) -> Iterator[Visitor]:
    """Signs nobody in; fails the test if the browser complained about anything."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    visitor = Visitor(context.new_page(), url)
    yield visitor
    context.close()
    assert visitor.complaints == []
    assert visitor.hosts <= {url.removeprefix("http://")}
