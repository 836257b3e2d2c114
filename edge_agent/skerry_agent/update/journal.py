"""What the update machine writes down before it acts, so that a restart goes on where the last process stopped.

One JSON document with its version, replaced as a whole. One of an earlier version is brought to this one step by step
(:data:`UPGRADES`). One of a later version is left alone and raises :class:`NewerJournalError`: an agent that was
downgraded must not undo what it does not understand. One that cannot be read at all is put aside and answered by an
empty journal in state *idle*: the updater then sees an uncommitted slot pointer, if there is one, and rolls it back. A
state that this version does not know comes out as *rolled_back*, with everything else kept.

======= ====================================================================================
version what it brought
======= ====================================================================================
1       the first; documents without a version are of this one
2       ``approved``, and the state *need*
======= ====================================================================================
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from skerry_agent.config import AgentLayout
from skerry_agent.files import DISK, Disk
from skerry_agent.update.update_machine import State

log = logging.getLogger(__name__)
VERSION = 2
#: What makes a document of a version one of the next, by the version that it has.
UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: lambda document: document | {"approved": 0}}
#: Bundle digests whose failures are remembered; the oldest is forgotten first.
REMEMBERED_DIGESTS = 64


class NewerJournalError(Exception):
    """The journal was written by a later version of the agent; it is untouched.

    Attributes:
        version: Its version.
    """

    def __init__(self, version: int) -> None:
        self.version = version
        super().__init__(
            f"the update journal is of version {version}, this agent knows versions up to {VERSION}:"
            " updates wait for a newer agent"
        )


@dataclass(frozen=True)
class Journal:
    """State of the update machine.

    Attributes:
        state: Where the update is.
        detail: Why, for people.
        sequence: Number of the newest desired state that was accepted; lower and equal ones are replays.
        desired: That desired state, as its signed envelope; empty before the first.
        handled: Number of the desired state that ``target`` came with; below ``sequence`` means: something newer waits.
        target: Signed envelope of the desired state that is, or was last, worked on.
        resumes: Restarts that found ``state`` unfinished.
        failures: Failed attempts by bundle digest (hexadecimal), oldest first.
        signed_ms: Latest moment of issue that a trusted signature has vouched for (Unix ms): a floor for the clock.
        approved: Version under which the signed metadata approved ``target``, known from *activating* on; 0 before,
            and in an update that an earlier version of the agent began.
    """

    state: State = State.IDLE
    detail: str = ""
    sequence: int = 0
    desired: bytes = b""
    handled: int = 0
    target: bytes = b""
    resumes: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    signed_ms: int = 0
    approved: int = 0


def count_failure(journal: Journal, digest: str) -> Journal:
    """The journal with one more failure of ``digest``."""
    failures = {key: value for key, value in journal.failures.items() if key != digest}
    failures[digest] = journal.failures.get(digest, 0) + 1
    while len(failures) > REMEMBERED_DIGESTS:
        del failures[next(iter(failures))]
    return replace(journal, failures=failures)


def journal_path(layout: AgentLayout) -> Path:
    """Where the journal lies."""
    return layout.update / "journal.json"


def write_journal(layout: AgentLayout, journal: Journal, disk: Disk = DISK) -> None:
    """Replace the journal durably.

    Raises:
        OSError: It could not be written; the old one stands.
    """
    document = journal.__dict__ | {
        "version": VERSION,
        "state": journal.state.value,
        "desired": base64.b64encode(journal.desired).decode(),
        "target": base64.b64encode(journal.target).decode(),
    }
    disk.make_folder(layout.update)
    disk.write_atomically(journal_path(layout), json.dumps(document).encode())


def read_journal(layout: AgentLayout, disk: Disk = DISK) -> Journal:
    """Read the journal; see the module for what becomes of a broken one.

    Raises:
        NewerJournalError: It was written by a later version of the agent.
        OSError: The disk failed.
    """
    path = journal_path(layout)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Journal()
    try:
        return _parse(json.loads(data))
    except (ValueError, TypeError, KeyError, AttributeError, binascii.Error) as error:
        aside = path.with_name("journal.broken.json")
        log.error("update journal cannot be used (%s: %s): put aside as %s", type(error).__name__, error, aside.name)
        disk.rename(path, aside)
        return Journal()


def _parse(document: dict[str, Any]) -> Journal:
    version = int(document.get("version", 1))
    if version > VERSION:
        raise NewerJournalError(version)
    while version < VERSION:
        document = UPGRADES[version](document)
        version += 1
    state, detail = State.ROLLED_BACK, str(document["detail"])
    if document["state"] in set(State):
        state = State(document["state"])
    else:
        log.error("update journal has the unknown state %r: rolled back", document["state"])
        detail = f"unknown state {document['state']!r} was rolled back"
    return Journal(
        state=state,
        detail=detail,
        sequence=int(document["sequence"]),
        desired=base64.b64decode(document["desired"], validate=True),
        handled=int(document["handled"]),
        target=base64.b64decode(document["target"], validate=True),
        resumes=int(document["resumes"]),
        failures={str(key): int(value) for key, value in document["failures"].items()},
        signed_ms=int(document["signed_ms"]),
        approved=int(document["approved"]),
    )
