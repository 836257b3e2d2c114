"""A site: devices that one gateway sums for, as names in one text field.

>>> split_members(join_members(["press-2", "press-1"]))
('press-1', 'press-2')
"""

from __future__ import annotations

from collections.abc import Iterable

from skerry_contract.errors import WireError
from skerry_contract.identifiers import check_name

#: Most devices of one site.
SITE_DEVICES = 2_000
#: Label of a device with the name of its site.
SITE_LABEL = "site"
#: Label, and its value, of an enrolment token that makes a gateway of whoever uses it.
ROLE_LABEL = "role"
GATEWAY_ROLE = "gateway"
#: Label of a gateway: host:port at which the devices of its site reach it.
ADDRESS_LABEL = "gateway-address"


def join_members(names: Iterable[str]) -> str:
    """Names, sorted, one a line."""
    return "\n".join(sorted(names))


def split_members(text: str, *, field: str = "members") -> tuple[str, ...]:
    """What :func:`join_members` wrote; empty for an empty text.

    Raises:
        WireError: A bad name, one that is there twice, or more than :data:`SITE_DEVICES`.
    """
    if not text:
        return ()
    if len(text) > SITE_DEVICES * 64:
        raise WireError(field, expected=f"at most {SITE_DEVICES} names", got=f"{len(text)} characters")
    names = tuple(check_name(name, field=field) for name in text.split("\n"))
    if len(names) > SITE_DEVICES or len(set(names)) != len(names):
        raise WireError(field, expected=f"at most {SITE_DEVICES} different names", got=f"{len(names)} names")
    return names
