"""``skerry-agent score`` on a real release, as its user types it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from integration.engine.tiny_bundle import TinyRelease, enrol, install
from skerry_agent import cli


@pytest.fixture
def device(tmp_path: Path) -> Path:
    return enrol(tmp_path / "device").root


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_scores_are_those_of_the_release_and_nothing_is_reported(
    tmp_path: Path, device: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    release = TinyRelease(variants={"fp32": 0.0})
    layout = enrol(tmp_path / "device")
    install(layout, release)
    x = np.random.default_rng(3).normal(size=(150, 2, 3)).astype(np.float32)
    x[70, 0, 0] = np.nan
    np.savez(tmp_path / "in.npz", input=x, id=np.arange(150))
    given = ["--input", str(tmp_path / "in.npz"), "--output", str(tmp_path / "out.npz"), "--data-dir", str(device)]
    niceness = os.nice(0)
    assert cli.run(["score", *given, "--json"]) == 0
    assert os.nice(0) == niceness  # only the thread that scores is lowered
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"], found["refused"], found["release_ids"]) == (150, 1, ["release-one"])
    good = np.arange(150) != 70
    with np.load(tmp_path / "out.npz") as answers:
        np.testing.assert_allclose(answers["scores"][good], release.compute(x[good])[0], atol=1e-5)
        assert np.isnan(answers["scores"][70]).all()
        assert answers["id"].tolist() == list(range(150))
        assert answers["error"][70].startswith("input")
        assert set(answers["variant"][good]) == {"fp32"}
    assert not [name for name in files(device) if "outbox" in name]  # rows of a file raise no drift
    assert cli.run(["score", *given]) == 0
    assert "149" not in capsys.readouterr().err


def test_refusals_name_the_option_and_write_nothing(
    tmp_path: Path, device: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "in.npz", input=np.zeros((3, 2, 3), np.float32))
    before = files(tmp_path)

    def refused(source: str, output: str, *more: str) -> tuple[int, str]:
        files_given = ["--input", str(tmp_path / source), "--output", str(tmp_path / output)]
        status = cli.run(["score", *files_given, "--data-dir", str(device), *more])
        return status, capsys.readouterr().err

    status, said = refused("in.txt", "out.npz")
    assert (status, "--input" in said, ".parquet" in said) == (2, True, True)
    status, said = refused("in.npz", "out.npy")
    assert (status, "--output" in said) == (2, True)
    status, said = refused("in.npz", "in.npz")
    assert (status, "another file" in said) == (2, True)
    status, said = refused("in.npz", "nowhere/out.npz")
    assert (status, "folder" in said) == (2, True)
    status, said = refused("in.npz", "out.npz")
    assert (status, "no release active" in said) == (3, True)
    install(enrol(tmp_path / "device"), TinyRelease(variants={"fp32": 0.0}, maximum=1.0))
    after_install = files(tmp_path)
    status, said = refused("gone.npz", "out.npz")
    assert (status, "gone.npz" in said) == (3, True)
    np.savez(tmp_path / "in.npz", input=np.full((3, 2, 3), 7, np.float32))
    status, said = refused("in.npz", "out.npz", "--fail-on-bad-row")
    assert (status, "row 0" in said) == (2, True)
    assert "Traceback" not in said
    assert "out.npz" not in {Path(name).name for name in files(tmp_path)}
    assert before <= after_install
