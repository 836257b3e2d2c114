"""Engines that take long are built while something else answers, and swapped in when they are done."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from skerry_agent.engine.background_build import BackgroundBuild
from skerry_agent.engine.loader import LoadedRelease
from skerry_agent.errors import ArtifactError
from skerry_agent.update.ports import ProofResult
from skerry_agent.update.slots import SlotName


class Prover:
    def __init__(self) -> None:
        self.started: list[str] = []
        self.stopped = 0
        self.result: ProofResult | None = None

    def start(self, slot: SlotName) -> None:
        self.started.append(slot)

    def poll(self) -> ProofResult | None:
        return self.result

    def stop(self) -> None:
        self.stopped += 1


class Answering:
    """Where the release is activated."""

    def __init__(self) -> None:
        self.activated: list[tuple[str, str]] = []
        self.refuses = False

    def __call__(self, slot: SlotName, *, release_id: str) -> object:
        if self.refuses:
            raise ArtifactError(release_id, "refused")
        self.activated.append((slot, release_id))
        return None


def release(name: str = "r1", *, incomplete: bool = True, slot: str = "a") -> LoadedRelease:
    model: Any = SimpleNamespace(spec=SimpleNamespace(release_id=name))
    loaded: Any = LoadedRelease(cast("SlotName", slot), (model,), cast("Any", None), b"", (), incomplete)
    return cast("LoadedRelease", loaded)


@pytest.fixture
def prover() -> Prover:
    return Prover()


@pytest.fixture
def answering() -> Answering:
    return Answering()


@pytest.fixture
def build(prover: Prover, answering: Answering) -> BackgroundBuild:
    return BackgroundBuild(prover, answering)


def test_a_complete_release_needs_nothing(build: BackgroundBuild, prover: Prover) -> None:
    build.follow(None)
    build.follow(release(incomplete=False))
    assert prover.started == []


def test_swaps_when_the_build_is_done(build: BackgroundBuild, prover: Prover, answering: Answering) -> None:
    build.follow(release())
    build.follow(release())
    assert (prover.started, answering.activated, build.working) == (["a"], [], True)
    prover.result = ProofResult(True, "variant int8-qdq")
    build.follow(release())
    assert (answering.activated, build.working) == ([("a", "r1")], False)
    build.follow(release())  # still incomplete by what it was loaded with: not built for ever
    assert prover.started == ["a"]


@pytest.mark.parametrize("refuses", [False, True])
def test_a_failed_build_changes_nothing_and_is_not_repeated(
    build: BackgroundBuild, prover: Prover, answering: Answering, refuses: bool
) -> None:
    answering.refuses = refuses
    prover.result = ProofResult(refuses, "no memory")
    for _ in range(4):
        build.follow(release())
    assert (prover.started, answering.activated, prover.stopped) == (["a"], [], 1)


def test_a_newer_release_ends_the_build_of_the_old_one(build: BackgroundBuild, prover: Prover) -> None:
    build.follow(release())
    build.follow(release("r2", slot="b"))
    assert (prover.stopped, build.working) == (1, False)
    build.follow(release("r2", slot="b"))
    assert prover.started == ["a", "b"]


def test_stop_ends_it(build: BackgroundBuild, prover: Prover) -> None:
    build.follow(release())
    build.stop()
    build.stop()
    assert (prover.stopped, build.working) == (1, False)
