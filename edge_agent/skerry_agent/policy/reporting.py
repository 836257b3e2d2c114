"""How often the control plane wants drift windows: one small file that control writes and serving reads.

Invariants: the file is replaced in one step; where it is absent or broken the device's own configuration holds, so
that a bad file costs a reporting pace and never an answer.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass

from skerry_agent.config import AgentLayout
from skerry_agent.files import write_atomically

log = logging.getLogger(__name__)
#: Largest value on the wire (uint32).
LARGEST = 2**32 - 1


@dataclass(frozen=True)
class WindowPolicy:
    """When a drift window closes, as the control plane wants it; 0 leaves it to the device's own configuration.

    Attributes:
        window_requests: After so many rows.
        window_ms: After so much time (ms).
    """

    window_requests: int = 0
    window_ms: int = 0


def read_window_policy(layout: AgentLayout) -> WindowPolicy:
    """What control wrote last; all 0 if there is nothing that can be used."""
    path = layout.reporting_file
    try:
        document = json.loads(path.read_bytes())
        values = {name: document[name] for name in ("window_requests", "window_ms")}
        for name, value in values.items():
            if type(value) is not int or not 0 <= value <= LARGEST:
                raise ValueError(f"{name}: expected 0 to {LARGEST}, got {value!r}")
    except FileNotFoundError:
        return WindowPolicy()
    except (OSError, ValueError, TypeError, KeyError) as error:
        log.warning("%s: %s: the device's own windows hold", path, error)
        return WindowPolicy()
    return WindowPolicy(**values)


class WindowPolicyFile:
    """Owned by the control loop."""

    def __init__(self, layout: AgentLayout) -> None:
        self._layout = layout
        self._written = read_window_policy(layout)

    def follow(self, policy: WindowPolicy) -> None:
        """Write ``policy`` down if it is news; what fails is tried again with the next call."""
        if policy == self._written:
            return
        try:
            self._layout.run.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(self._layout.reporting_file, json.dumps(asdict(policy)).encode())
        except OSError as error:
            log.warning("%s cannot be written: %s", self._layout.reporting_file, error)
            return
        self._written = policy
        log.info("drift windows: %d requests, %d ms (0: own)", policy.window_requests, policy.window_ms)
