"""Engines that take minutes to build are built in a process of low priority while another form answers.

A release that came by an update was proven before it answered, engines and all. A runtime that was installed or renewed
since makes those engines useless: then serving starts with what can be measured at once, and this has the slot proven
anew in a process of its own and activated again when that is done. Once per release and process: a build that fails is
told in the log and not repeated until the next start.
"""

from __future__ import annotations

import logging
from typing import Protocol

from skerry_agent.config import AgentLayout
from skerry_agent.engine.loader import LoadedRelease
from skerry_agent.errors import ArtifactError, DeviceError
from skerry_agent.update.ports import Prover
from skerry_agent.update.prover import SubprocessProver
from skerry_agent.update.slots import SlotName

_log = logging.getLogger(__name__)


class Activate(Protocol):
    """Loads the release in a slot."""

    def __call__(self, slot: SlotName, *, release_id: str) -> object:
        """Raises ArtifactError and DeviceError."""
        ...


class BackgroundBuild:
    """Owned by the engine; every call from the same thread.

    Args:
        prover: Proves a slot in a process of its own.
        activate: Loads the release in a slot again: ``Engine.activate``.
    """

    def __init__(self, prover: Prover, activate: Activate) -> None:
        self._prover = prover
        self._activate = activate
        self._working: tuple[SlotName, str] | None = None
        self._tried: set[tuple[SlotName, str]] = set()

    @property
    def working(self) -> bool:
        """Whether a build is under way."""
        return self._working is not None

    def follow(self, release: LoadedRelease | None) -> None:
        """Start a build if what answers lacks one; swap when one is done; drop one that nobody needs any more."""
        wanted = None if release is None else (release.slot, release.model.spec.release_id)
        if self._working is not None:
            self._go_on(wanted)
        elif release is not None and release.incomplete and wanted is not None and wanted not in self._tried:
            self._tried.add(wanted)
            self._working = wanted
            _log.info("release %s: engines are built in the background", wanted[1])
            self._prover.start(wanted[0])

    def stop(self) -> None:
        """End a build that is under way."""
        if self._working is not None:
            self._working = None
            self._prover.stop()

    def _go_on(self, wanted: tuple[SlotName, str] | None) -> None:
        if self._working is None or wanted != self._working:
            self.stop()
            return
        result = self._prover.poll()
        if result is None:
            return
        slot, release_id = self._working
        self.stop()
        if not result.proved:
            _log.warning("release %s: what was chosen at the start goes on: %s", release_id, result.detail)
            return
        try:
            self._activate(slot, release_id=release_id)
        except (ArtifactError, DeviceError) as error:
            _log.warning("release %s: what was chosen at the start goes on: %s", release_id, error)


def build_in_background(layout: AgentLayout, activate: Activate) -> BackgroundBuild:
    """The builds of one data directory, each in a process of its own."""
    return BackgroundBuild(SubprocessProver(layout.root), activate)
