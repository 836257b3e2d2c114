"""Running the demo as its user does."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SIM = [sys.executable, "-m", "skerry_simulation.cli"]


@dataclass
class Finished:
    """A demo that came to its end."""

    folder: Path
    result: dict[str, Any]
    output: str


def run_demo(folder: Path, *arguments: str) -> Finished:
    json_file = folder / "result.json"
    command = [*SIM, "demo", "--folder", str(folder / "run"), "--json", str(json_file), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr[-6000:]
    return Finished(folder / "run", json.loads(json_file.read_text()), done.stderr)
