"""The only writer of the slot pointer once a device runs, and what brings serving to follow it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace

from skerry_agent.config import AgentLayout
from skerry_agent.errors import ArtifactError
from skerry_agent.files import DISK, Disk
from skerry_agent.update.pointer import Pointer, SlotName, go_back, read_pointer, write_pointer
from skerry_agent.update.ports import Serving
from skerry_agent.update.slots import read_slot
from skerry_agent.update.stage import inactive_slot
from skerry_contract.signing import EnvelopeVerifier

log = logging.getLogger(__name__)
#: First and longest pause between two attempts to bring serving to the committed release (seconds).
ALIGN_S = (2.0, 300.0)
_SLOTS: tuple[SlotName, SlotName] = ("a", "b")


class PointerKeeper:
    """Switches, commits and restores; every method can be repeated after a power cut."""

    def __init__(
        self,
        layout: AgentLayout,
        *,
        verifier: EnvelopeVerifier,
        serving: Serving,
        disk: Disk = DISK,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._layout = layout
        self._verifier = verifier
        self._serving = serving
        self._disk = disk
        self._monotonic = monotonic
        self._asked = False
        self._pause = ALIGN_S[0]
        self._next = 0.0

    def read(self) -> Pointer | None:
        """The pointer; a broken one is replaced by one to a slot whose manifest is signed, if there is such a slot.

        Raises:
            OSError: The replacement could not be written.
        """
        try:
            return read_pointer(self._layout)
        except ArtifactError as error:
            log.error("%s: looking for a slot that is whole", error)
        for slot in _SLOTS:
            try:
                content = read_slot(self._layout, slot, self._verifier)
            except ArtifactError:
                continue
            pointer = Pointer(slot, content.manifest.release_id, committed=True)
            write_pointer(self._layout, pointer, self._disk)
            return pointer
        return None

    def switch(self, release_id: str) -> Pointer:
        """Point to the staged slot, not committed; nothing changes if that is so already."""
        pointer = self.read()
        if pointer is not None and pointer.release_id == release_id:
            return pointer
        switched = Pointer(
            inactive_slot(pointer),
            release_id,
            committed=False,
            previous_slot=None if pointer is None else pointer.slot,
            previous_release="" if pointer is None else pointer.release_id,
        )
        write_pointer(self._layout, switched, self._disk)
        return switched

    def commit(self, release_id: str) -> bool:
        """Keep the release that the pointer names; False if it names another one."""
        pointer = self.read()
        if pointer is None or pointer.release_id != release_id:
            return False
        write_pointer(self._layout, replace(pointer, committed=True), self._disk)
        return True

    def restore(self) -> None:
        """Point back to the release before, if the present one is not committed."""
        pointer = self.read()
        if pointer is not None and not pointer.committed:
            go_back(self._layout, pointer, self._disk)

    def align(self) -> str:
        """Ask serving to answer with the committed release if it answers with another one.

        Returns:
            What is waited for, for people; empty while all is well.
        """
        now = self._monotonic()
        pointer, sight = self.read(), self._serving.sight()
        result = self._serving.activation() if self._asked else None
        if result is not None:
            self._asked = False
            if not result.activated:
                log.warning("serving does not answer with the committed release: %s", result.detail)
        if pointer is None or sight is None or sight.release_id == pointer.release_id:
            self._pause = ALIGN_S[0]
            return ""
        if not self._asked and now >= self._next:
            self._serving.activate(pointer.slot, pointer.release_id)
            self._asked = True
            self._next = now + self._pause
            self._pause = min(ALIGN_S[1], self._pause * 2)
        return f"serving answers with {sight.release_id or 'no release'}, not with {pointer.release_id}"
