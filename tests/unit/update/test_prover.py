"""The proof in a process of its own: what each way of ending means."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from skerry_agent.update.ports import ProofResult
from skerry_agent.update.prover import SubprocessProver, prove_command

Wait = Callable[..., None]


def outcome(script: str, wait_until: Wait, *, deadline_s: float = 30.0) -> ProofResult:
    prover = SubprocessProver(
        Path("/data"), command=lambda root, slot: [sys.executable, "-c", script, str(root), slot], deadline_s=deadline_s
    )
    prover.start("b")
    results: list[ProofResult] = []

    def ended() -> bool:
        result = prover.poll()
        if result is not None:
            results.append(result)
        return bool(results)

    wait_until(ended, what="the proof ends")
    return results[0]


@pytest.mark.parametrize(
    ("script", "proved", "detail"),
    [
        (
            'import sys; print(\'noise\'); print(\'{"variant": "int8-x86", "latency_us": 41.5}\')',
            True,
            "variant int8-x86, 41.5 us",
        ),
        ('import sys; print(\'{"error": "golden outputs differ"}\'); sys.exit(3)', False, "golden outputs differ"),
        ("import sys; sys.exit(3)", False, "no output"),
        (
            'import sys; print(\'{"error": "no memory"}\'); sys.exit(1)',
            False,
            "the proof ended with status 1: no memory",
        ),
        ("raise RuntimeError('boom')", False, "the proof ended with status 1: RuntimeError: boom"),
        ("import os; os.abort()", False, "the proof ended with status -6: no output"),
        ("print('all good, no JSON')", False, "the proof ended with status 0: all good, no JSON"),
        ("print('x' * 200_000); print('{\"variant\": \"fp32\"}')", True, "variant fp32, ? us"),
    ],
)
def test_endings(script: str, proved: bool, detail: str, wait_until: Wait) -> None:
    assert outcome(script, wait_until) == ProofResult(proved, detail)


def test_one_that_hangs_is_killed(wait_until: Wait) -> None:
    result = outcome("import time; time.sleep(600)", wait_until, deadline_s=0.2)
    assert result == ProofResult(False, "the proof took more than 0 s")


def test_arguments_and_binding_to_this_process() -> None:
    command = prove_command(Path("/data"), "b")
    assert command[:3] == [sys.executable, "-m", "skerry_agent.launch"]
    assert command[-4:] == ["-m", "skerry_agent.engine.prove", "/data", "b"]


def test_stopping_kills_the_process(wait_until: Wait, tmp_path: Path) -> None:
    started = tmp_path / "started"
    script = f"open({str(started)!r}, 'w').close(); import time; time.sleep(600)"
    prover = SubprocessProver(tmp_path, command=lambda root, slot: [sys.executable, "-c", script])
    prover.start("a")
    wait_until(started.exists, what="started")
    process = prover._process
    assert process is not None
    prover.stop()
    assert process.returncode == -9
    assert prover.poll() == ProofResult(False, "no proof is running")
