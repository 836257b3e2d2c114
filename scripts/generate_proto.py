"""Generate the Python code of every .proto file, or check that what is committed is what would be generated.

Run by ``make proto`` and, with ``--check``, by ``make check``.
"""

from __future__ import annotations

import argparse
import filecmp
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent / "protos"


def generate(output: Path) -> list[Path]:
    """Run protoc over the contract into ``output``; returns the generated files relative to it."""
    import grpc_tools
    from grpc_tools import protoc

    builtin = str(Path(grpc_tools.__file__).parent / "_proto")
    common = ["protoc", f"-I{ROOT}", f"-I{builtin}"]
    for proto in sorted(ROOT.rglob("*.proto")):
        arguments = [*common, f"--python_out={output}", f"--pyi_out={output}"]
        if "\nservice " in proto.read_text():
            arguments.append(f"--grpc_python_out={output}")
        status = protoc.main([*arguments, str(proto)])
        if status != 0:
            raise SystemExit(f"protoc failed on {proto.relative_to(ROOT)} with status {status}")
    return sorted(path.relative_to(output) for path in output.rglob("*_pb2*.py*") if "__pycache__" not in path.parts)


def main() -> int:
    """Generate or check; 1 when the committed code is stale."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if something would change")
    if not parser.parse_args().check:
        generate(ROOT)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        fresh = generate(Path(folder))
        stale = [p for p in fresh if not (ROOT / p).exists() or not filecmp.cmp(ROOT / p, Path(folder) / p, False)]
        orphans = [
            path.relative_to(ROOT)
            for path in ROOT.rglob("*_pb2*.py*")
            if "__pycache__" not in path.parts and path.relative_to(ROOT) not in fresh
        ]
    for path in stale + orphans:
        print(f"{path} is not what the .proto files say: run `make proto`", file=sys.stderr)
    return 1 if stale or orphans else 0


if __name__ == "__main__":
    sys.exit(main())
