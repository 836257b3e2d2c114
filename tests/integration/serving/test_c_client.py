"""``skerry.h``: no warning as C99 and as C++, and the example's answers are those of the Python client."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from integration.engine.tiny_bundle import enrol, install, some_input
from integration.serving.doors_rig import RELEASE
from integration.serving.serving_process import ServingProcess
from skerry_agent.client import SharedMemoryClient
from skerry_agent.serving import shared_memory_layout as layout

AGENT = Path(__file__).resolve().parents[3] / "edge_agent"
COMPILERS = {
    "c": ("gcc", "-std=c99", "-Wpedantic", "-x", "c"),
    "c++": ("g++", "-std=c++11", "-x", "c++"),
}


def compile_example(language: str, folder: Path) -> Path:
    compiler, *options = COMPILERS[language]
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    program = folder / f"classify-{language}"
    sources = [AGENT / "examples" / "classify.c", AGENT / "include" / "skerry.c"]
    command: list[str | Path] = [
        compiler,
        "-Wall",
        "-Wextra",
        "-Werror",
        "-I",
        AGENT / "include",
        "-o",
        program,
        *options,
        *sources,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return program


def run(program: Path, data_dir: Path, data: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([program, data_dir], input=data, capture_output=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingProcess]:
    device = enrol(tmp_path_factory.mktemp("device"))
    install(device, RELEASE)
    with ServingProcess(device) as process:
        yield process


@pytest.mark.parametrize("language", sorted(COMPILERS))
def test_the_example_answers_like_the_python_client(serving: ServingProcess, tmp_path: Path, language: str) -> None:
    program = compile_example(language, tmp_path)
    x = some_input(40)
    done = run(program, serving.layout.root, x.tobytes())
    assert (done.returncode, done.stderr) == (0, b"")
    lines = [line.split("\t") for line in done.stdout.decode().splitlines()]
    assert len(lines) == 40
    with SharedMemoryClient.connect(serving.layout.root) as client:
        for row, (name, best, scores, variant, release_id) in zip(x, lines, strict=True):
            wanted = client.infer(row)
            assert (name, variant, release_id) == (wanted.class_name, "fp32", "release-one")
            assert np.float32(best) == wanted.scores.max()
            np.testing.assert_array_equal(np.array(scores.split(), dtype=np.float32), wanted.scores[0])


def test_the_example_says_what_is_wrong(serving: ServingProcess, tmp_path: Path) -> None:
    program = compile_example("c", tmp_path)
    refused = run(program, serving.layout.root, struct.pack("<6f", *[float("nan")] * 6))
    assert (refused.returncode, refused.stdout) == (1, b"")
    assert b"status 1: input: expected finite values, got NaN at index [0, 0, 0]" in refused.stderr
    nobody = run(program, tmp_path, b"")
    assert nobody.returncode == 1
    assert nobody.stderr.startswith(b"status 100: no serving process answers")


def test_the_header_and_python_agree_about_numbers() -> None:
    header = (AGENT / "include" / "skerry.h").read_text()
    for name, value in (("VERSION", layout.VERSION), ("MAX_SLOTS", layout.SLOTS), ("MAX_ROWS", layout.ROWS)):
        assert f"#define SKERRY_{name} {value}\n" in header
    for status in layout.Status:
        assert f"SKERRY_{status.name} = {status.value}" in header
