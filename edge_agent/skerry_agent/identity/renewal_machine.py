"""The life of a device's certificate as a table, and when it is renewed. Pure.

::

    valid ──aged, doubted──► due ──asked──► renewing ──renewed──► valid
      │                       │  ◄──failed──┘
      └──ended──► expired ◄───┘
                     └──asked──► renewing

*Due* and *expired* both renew, and by the same way: possession of the old key proves who asks, so an ended certificate
can be renewed too. They differ in what still works meanwhile: an expired certificate opens no connection, so only the
renewal is expected to succeed. The local clock may be wrong in both directions; it only ever decides to ask early,
never to stay silent or to stop connecting: *doubted* comes from the broker, which refused the certificate.
"""

from __future__ import annotations

import enum
import hashlib
from datetime import datetime

from skerry_agent.identity.certificate import CertificateFacts
from skerry_agent.state_table import next_state

#: Part of a certificate's life after which it is renewed: at a fixed point between the two, different for each.
FROM, TO = 0.50, 0.66
#: Shortest time between two renewals (seconds), or the part of a life if that is less: a clock that jumped ahead calls
#: every certificate old, and must not renew it again and again.
PAUSE_S = 6 * 3600.0
PAUSE_PART = 1 / 8


class State(enum.StrEnum):
    """Where a certificate is."""

    VALID = "valid"
    DUE = "due"
    EXPIRED = "expired"
    RENEWING = "renewing"


class Event(enum.StrEnum):
    """What happens to it."""

    AGED = "aged"
    DOUBTED = "doubted"
    ENDED = "ended"
    YOUNG = "young"
    ASKED = "asked"
    RENEWED = "renewed"
    FAILED = "failed"


#: YOUNG leaves a state into which a wrong clock had led. RENEWING has no row for time: its answer decides.
TABLE: dict[State, dict[Event, State]] = {
    State.VALID: {Event.AGED: State.DUE, Event.DOUBTED: State.DUE, Event.ENDED: State.EXPIRED},
    State.DUE: {Event.YOUNG: State.VALID, Event.ENDED: State.EXPIRED, Event.ASKED: State.RENEWING},
    State.EXPIRED: {
        Event.YOUNG: State.VALID,
        Event.AGED: State.DUE,
        Event.DOUBTED: State.DUE,
        Event.ASKED: State.RENEWING,
    },
    State.RENEWING: {Event.RENEWED: State.VALID, Event.FAILED: State.DUE},
}


def advance(state: State, event: Event) -> State:
    """The next state.

    Raises:
        IllegalEventError: ``state`` has no such row.
    """
    return next_state(TABLE, state, event, subject="a certificate")


def renewal_moment(facts: CertificateFacts) -> datetime:
    """When a certificate is due: between 50 and 66 % of its life, the same at every look, spread over a fleet."""
    digest = hashlib.sha256(f"{facts.device_id}/{facts.serial}".encode()).digest()
    draw = int.from_bytes(digest[:8]) / 2**64
    return facts.not_before + (facts.not_after - facts.not_before) * (FROM + (TO - FROM) * draw)


def pause_s(facts: CertificateFacts) -> float:
    """How long after its issue a certificate is not renewed, whatever clock and broker say (seconds)."""
    return min(PAUSE_S, (facts.not_after - facts.not_before).total_seconds() * PAUSE_PART)


def look(state: State, facts: CertificateFacts, now: datetime, *, doubted: bool) -> Event | None:
    """What time and the broker have done to a certificate.

    Args:
        state: Where it is.
        facts: What it says.
        now: The time to go by (UTC).
        doubted: Whether the broker has refused it since it was issued.

    Returns:
        The event; None if it stays where it is.
    """
    if state is State.RENEWING:
        return None
    if now >= facts.not_after:
        return None if state is State.EXPIRED else Event.ENDED
    if now >= renewal_moment(facts):
        return None if state is State.DUE else Event.AGED
    if doubted:
        return None if state is State.DUE else Event.DOUBTED
    return None if state is State.VALID else Event.YOUNG
