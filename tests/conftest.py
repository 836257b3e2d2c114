"""What every test may use: a place for data, deadlines instead of sleeps, a quiet environment for child processes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Exports of one run serve every worker and process of it, and the next run.
os.environ.setdefault("SKERRY_CACHE_DIR", str(Path(__file__).resolve().parents[1] / ".cache"))
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")


#: Where the long tests are: they start first, so that no worker is left with one at the end.
LONGEST_FIRST = (
    "integration/demo/",
    "integration/firmware/",
    "integration/federation/",
    "integration/simulation/",
    "integration/releases/",
    "integration/models/",
    "integration/",
)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder with the public data sets (``har.npz``); the test is skipped where it is not there."""
    folder = os.environ.get("SKERRY_DATA_DIR", "")
    if not folder or not (Path(folder) / "har.npz").exists():
        pytest.skip("SKERRY_DATA_DIR does not hold har.npz")
    return Path(folder)


@pytest.fixture
def wait_until() -> Callable[..., None]:
    """Poll a condition until it holds; fail with what was waited for after a deadline."""

    def wait(condition: Callable[[], object], *, what: str, seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"{what}: not within {seconds:g} s")
            time.sleep(0.02)

    return wait


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order by :data:`LONGEST_FIRST`, otherwise as collected."""
    items.sort(key=lambda item: next((i for i, part in enumerate(LONGEST_FIRST) if part in item.nodeid), 99))


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Bytes may be random (signatures, keys), and two workers must give a test the same name."""
    return argname if isinstance(val, bytes) else None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests have counted: each ``record_property("summary", text)``."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.stats.get(outcome, [])]
    texts = [str(text) for report in reports for name, text in report.user_properties if name == "summary"]
    if texts:
        terminalreporter.section("counted")
        for text in texts:
            terminalreporter.line(text)
