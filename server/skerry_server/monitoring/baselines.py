"""Which windows of a device are its baseline: what "as usual" means for it. Pure.

* A device is compared with itself: devices differ more than drift does.
* The baseline of a device under a release are the first windows that it served under that release's *lineage* until
  there are enough rows. A window names the release that answered, so every one of them lies after the activation.
* The lineage of a release goes back over its parents as long as they have the same edges. Drift features are computed
  from the raw input, so they mean the same under another model: a device that has drifted slowly does not get away
  by an ordinary update.
* The lineage stops at a release that an incident asked for. Such a release learned the new conditions; they are the
  usual ones from then on, and the baseline begins anew.
* Predictions are another matter: they depend on the model, so their baseline are windows of the release alone.
* Windows with a data-quality fault or an unusable report are never baseline.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from skerry_server.monitoring.windows import WindowCounts

#: Most releases that a lineage goes back.
LONGEST_LINEAGE = 100


@dataclass(frozen=True)
class ReleaseFacts:
    """What the lineage needs of a release.

    Attributes:
        release_id: Which one.
        parent: Release that it was made from; empty for none.
        edges_sha256: Digest of its edges, hexadecimal.
        from_incident: Whether an incident asked for it.
    """

    release_id: str
    parent: str
    edges_sha256: str
    from_incident: bool


@dataclass(frozen=True)
class Baseline:
    """The first windows of a device.

    Attributes:
        windows: (row id, counts), in order.
        rows: Rows that count, in all.
        complete: Whether they are enough to judge by.
    """

    windows: tuple[tuple[int, WindowCounts], ...]
    rows: int
    complete: bool

    @property
    def last_id(self) -> int:
        """Row id of the last window; 0 without one."""
        return self.windows[-1][0] if self.windows else 0


def lineage(release_id: str, find: Callable[[str], ReleaseFacts | None]) -> list[str]:
    """Releases whose windows may be baseline for ``release_id``, itself first; empty if it is unknown.

    Args:
        release_id: The release that is judged.
        find: Looks a release up.
    """
    facts = find(release_id)
    if facts is None:
        return []
    edges = facts.edges_sha256
    found = [facts.release_id]
    while not facts.from_incident and facts.parent and len(found) < LONGEST_LINEAGE:
        parent = find(facts.parent)
        if parent is None or parent.edges_sha256 != edges or parent.release_id in found:
            break
        found.append(parent.release_id)
        facts = parent
    return found


def collect_baseline(
    windows: Iterable[tuple[int, WindowCounts]], *, minimum_rows: int, minimum_windows: int
) -> Baseline:
    """Take windows, oldest first and without faults, until there are enough.

    Args:
        windows: (row id, counts).
        minimum_rows: Rows that the baseline needs.
        minimum_windows: Windows that it needs: two or more also tell how much quiet windows vary.
    """
    taken: list[tuple[int, WindowCounts]] = []
    rows = 0
    for row_id, counts in windows:
        taken.append((row_id, counts))
        rows += counts.counted
        if rows >= minimum_rows and len(taken) >= minimum_windows:
            return Baseline(tuple(taken), rows, complete=True)
    return Baseline(tuple(taken), rows, complete=False)
