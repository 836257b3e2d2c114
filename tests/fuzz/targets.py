"""Every parser of bytes from the wire, by name."""

from __future__ import annotations

from fuzz import agent_targets, contract_targets, server_targets
from fuzz.target import Target

TARGETS: dict[str, Target] = {
    target.name: target for module in (contract_targets, agent_targets, server_targets) for target in module.TARGETS
}
