"""Run every benchmark, or one by name: ``python benchmarks/run.py [NAME] [--json FILE]``.

Each benchmark is a script of its own beside this file, so that no contender shares a process with another.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
#: Files of this folder that are not benchmarks.
SUPPORT = {
    "broker_rig",
    "busy_device",
    "federation_peers",
    "inference_peers",
    "inference_rig",
    "inference_swaps",
    "learning_tasks",
    "receivers",
    "run",
}


def names() -> list[str]:
    """Every benchmark in this folder."""
    return sorted(path.stem for path in HERE.glob("*.py") if path.stem not in SUPPORT)


def main() -> int:
    """Run what was asked for; 1 if one failed to run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", nargs="?", choices=names(), help="only this one")
    parser.add_argument("--json", type=Path, help="write every result into this file")
    arguments = parser.parse_args()
    results: list[object] = []
    failed: list[str] = []
    for name in [arguments.name] if arguments.name else names():
        print(f"== {name}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "result.json"
            if subprocess.run([sys.executable, HERE / f"{name}.py", "--json", output], check=False).returncode:
                failed.append(name)
            elif output.exists():
                results.append(json.loads(output.read_text()))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2))
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
