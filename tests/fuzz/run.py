"""Fuzz one parser with atheris, guided by coverage, until its time is up or its promise is broken.

``python tests/fuzz/run.py TARGET [SECONDS]``, in an environment with the extra ``fuzz``; ``make fuzz`` does it for all.
The corpus grows below the folder ``fuzz-corpus``, or ``SKERRY_FUZZ_CORPUS``. An
input that breaks a promise is written beside it and ends the run with a status that is not 0.
"""

from __future__ import annotations

import os
import sys
import tracemalloc
from pathlib import Path

import atheris

ROOT = Path(__file__).resolve().parents[2]
#: Memory of the whole process at which the fuzzer gives up (MiB), and of one allocation.
PROCESS_MB, ALLOCATION_MB = 1500, 64


def main(arguments: list[str]) -> int:
    """Fuzz; returns 2 for wrong arguments, else atheris ends the process."""
    sys.path[:0] = [str(ROOT / folder) for folder in ("protos", "models", "server", "edge_agent", "tests")]
    with atheris.instrument_imports(include=["skerry_contract", "skerry_agent", "skerry_server", "tuf"]):
        from fuzz.targets import TARGETS
    if arguments == ["--list"]:
        print("\n".join(sorted(TARGETS)))
        return 0
    if not 1 <= len(arguments) <= 2 or arguments[0] not in TARGETS:
        print(f"usage: run.py TARGET [SECONDS]; targets: {', '.join(sorted(TARGETS))}", file=sys.stderr)
        return 2
    target = TARGETS[arguments[0]]
    seconds = int(arguments[1]) if len(arguments) == 2 else 60
    corpus = Path(os.environ.get("SKERRY_FUZZ_CORPUS", ROOT / "fuzz-corpus")) / target.name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
        target.try_memory(seed)
    tracemalloc.stop()
    atheris.Setup(
        [
            sys.argv[0],
            f"-max_total_time={seconds}",
            f"-max_len={target.longest}",
            f"-rss_limit_mb={PROCESS_MB}",
            f"-malloc_limit_mb={ALLOCATION_MB}",
            "-timeout=10",
            f"-artifact_prefix={corpus}-",
            "-print_final_stats=1",
            str(corpus),
        ],
        target.try_bytes,
    )
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
