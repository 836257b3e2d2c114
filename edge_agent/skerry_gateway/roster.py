"""Which devices are this gateway's, by their keys, and who takes part in which campaign through it.

The control plane says so; the newest roster lies on disk and holds while the control plane is away. What is read, from
the wire or from disk, is checked as a whole before any of it counts.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skerry_agent.files import write_atomically
from skerry_contract.errors import WireError
from skerry_contract.identifiers import check_name
from skerry_contract.site import SITE_DEVICES

logger = logging.getLogger(__name__)

#: Most campaigns of a roster, and longest key (characters).
CAMPAIGNS = 64
_KEY_CHARACTERS = 1_024


@dataclass(frozen=True)
class SiteCampaign:
    """A campaign in which devices take part through this gateway.

    Attributes:
        quorum: Share of them whose answers the site's mean needs, above 0, at most 1.
        grace_factor: Once the quorum is there, stragglers get this share of the time that it took, 0 to 100.
        members: The devices that accepted.
    """

    quorum: float
    grace_factor: float
    members: tuple[str, ...]


@dataclass(frozen=True)
class Roster:
    """What the control plane says about a site.

    Attributes:
        site: Its name; empty before the first roster came.
        address: host:port at which the devices reach the gateway.
        keys: Device to the public key of its node, PEM.
        campaigns: By identifier.
        digest: By which the control plane knows what this gateway has; empty for nothing.
    """

    site: str = ""
    address: str = ""
    keys: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    campaigns: Mapping[str, SiteCampaign] = field(default_factory=dict)
    digest: str = ""


def parse_roster(document: object, *, digest: str) -> Roster:
    """Check a roster.

    Raises:
        WireError: Anything about it is not as it must be.
    """
    if not isinstance(document, dict):
        raise WireError("roster", expected="an object", got=type(document).__name__)
    keys: dict[str, bytes] = {}
    for entry in _list(document, "devices", SITE_DEVICES):
        name, key = check_name(_text(entry, "device_id"), field="devices.device_id"), _text(entry, "node_key")
        if name in keys or not 0 < len(key) <= _KEY_CHARACTERS:
            raise WireError("devices", expected="one key for each device", got=name)
        keys[name] = key.encode()
    campaigns: dict[str, SiteCampaign] = {}
    for entry in _list(document, "campaigns", CAMPAIGNS):
        name = check_name(_text(entry, "campaign_id"), field="campaigns.campaign_id")
        members = tuple(check_name(str(each), field="members") for each in _list(entry, "members", SITE_DEVICES))
        quorum, grace = _number(entry, "quorum", 1.0), _number(entry, "grace_factor", 100.0)
        if quorum <= 0 or len(set(members)) != len(members):
            raise WireError("campaigns", expected="a quorum above 0 and different members", got=name)
        campaigns[name] = SiteCampaign(quorum, grace, members)
    return Roster(_text(document, "site"), _text(document, "address"), keys, campaigns, digest)


def _list(document: Mapping[str, Any], name: str, most: int) -> list[Any]:
    value = document.get(name)
    if not isinstance(value, list) or len(value) > most:
        raise WireError(name, expected=f"a list of at most {most}", got=type(value).__name__)
    return value


def _text(document: object, name: str) -> str:
    value = document.get(name) if isinstance(document, dict) else None
    if not isinstance(value, str):
        raise WireError(name, expected="text", got=type(value).__name__)
    return value


def _number(document: Mapping[str, Any], name: str, most: float) -> float:
    value = document.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise WireError(name, expected=f"a number from 0 to {most:g}", got=value)
    return float(value)


class RosterFile:
    """The newest roster, in memory and on disk; safe to call from several threads."""

    def __init__(self, path: Path) -> None:
        """Read what is there; a file that is broken counts as none."""
        self._path = path
        self._changed = threading.Condition()
        self._roster = Roster()
        try:
            kept = json.loads(path.read_bytes())
            self._roster = parse_roster(kept["roster"], digest=str(kept["digest"]))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, WireError) as error:
            logger.warning("%s is dropped, the control plane is asked again: %s", path, error)

    @property
    def roster(self) -> Roster:
        """The newest one."""
        return self._roster

    def replace(self, document: object, *, digest: str) -> Roster:
        """Take a roster from the control plane.

        Raises:
            WireError: It is broken; the one before stands.
            OSError: It cannot be written; the one before stands.
        """
        roster = parse_roster(document, digest=digest)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path, json.dumps({"digest": digest, "roster": document}).encode())
        with self._changed:
            self._roster = roster
            self._changed.notify_all()
        return roster

    def campaign(self, campaign_id: str, *, wait_s: float) -> SiteCampaign | None:
        """A campaign; one that is not known yet is waited for."""
        with self._changed:
            self._changed.wait_for(lambda: campaign_id in self._roster.campaigns, timeout=wait_s)
            return self._roster.campaigns.get(campaign_id)
