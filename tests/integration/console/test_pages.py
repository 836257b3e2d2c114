from __future__ import annotations

import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

import skerry_server.console
from skerry_server.console.pages import CONTENT_SECURITY_POLICY

FOLDER = Path(skerry_server.console.__file__).parent
STATIC = sorted(path for path in (FOLDER / "static").rglob("*") if path.is_file())


def test_the_page_needs_no_token_and_holds_no_data(client: TestClient) -> None:
    answer = client.get("/", headers={"authorization": ""})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert "press-01" not in answer.text
    assert "digits" not in answer.text


def test_the_policy_allows_nothing_inline_and_no_other_host(client: TestClient) -> None:
    policy = client.get("/").headers["content-security-policy"]
    assert policy == CONTENT_SECURITY_POLICY
    assert "unsafe" not in policy
    assert "http" not in policy
    assert policy.startswith("default-src 'none'")
    for header, value in (
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("referrer-policy", "no-referrer"),
    ):
        assert client.get("/").headers[header] == value


def test_the_page_has_no_inline_code_or_style(client: TestClient) -> None:
    page = client.get("/").text
    assert not re.search(r"<script(?![^>]*\bsrc=)", page)
    assert not re.search(r"<style|\sstyle=|\son\w+=", page)


@pytest.mark.parametrize("path", STATIC, ids=lambda path: path.name)
def test_no_file_reaches_for_another_host_or_parses_html(path: Path) -> None:
    text = path.read_text()
    addresses = set(re.findall(r"https?://[^\s\"'`)]+", text)) - {"http://www.w3.org/2000/svg"}
    assert addresses == set()
    if path.suffix == ".js":
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
        assert 'setAttribute("style"' not in text


@pytest.mark.parametrize("path", STATIC, ids=lambda path: path.name)
def test_files_are_served_with_their_type_and_asked_for_again_cheaply(client: TestClient, path: Path) -> None:
    url = "/console/" + path.relative_to(FOLDER / "static").as_posix()
    answer = client.get(url)
    assert answer.content == path.read_bytes()
    kind = {".js": "javascript", ".css": "text/css", ".svg": "image/svg+xml"}[path.suffix]
    assert kind in answer.headers["content-type"]
    again = client.get(url, headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "path", ["/console/../pages.py", "/console/%2e%2e/pages.py", "/console/nothing.js", "/console/"]
)
def test_nothing_else_is_served(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert answer.json()["error"]["kind"] == "not-found"


def test_modules_import_only_what_is_there() -> None:
    for path in (path for path in STATIC if path.suffix == ".js"):
        for target in re.findall(r"from \"(\.[^\"]+)\"", path.read_text()):
            assert (path.parent / target).resolve() in STATIC, f"{path.name} imports {target}"
