"""Where trust lies on the disk: ``<data>/trust``, outside the slots, so that no update takes it back.

``root.json`` is the anchor of the enrolment; ``metadata/`` is the cache of ngclient, which may be lost; ``floors.json``
and ``keys.json`` may not; ``damaged/`` holds what was found broken.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TrustPlaces:
    """Paths below ``AgentLayout.trust``."""

    folder: Path

    @property
    def root(self) -> Path:
        """Root metadata of the enrolment: the trust anchor."""
        return self.folder / "root.json"

    @property
    def metadata(self) -> Path:
        """Cache of ngclient."""
        return self.folder / "metadata"

    @property
    def damaged(self) -> Path:
        """Files of the cache that could not be read; one of each name."""
        return self.folder / "damaged"

    @property
    def floors(self) -> Path:
        """Highest versions seen."""
        return self.folder / "floors.json"

    @property
    def keys(self) -> Path:
        """Instruction keys, current and past."""
        return self.folder / "keys.json"
