"""What the owner of a device allows of updates: maintenance windows, and bytes over a metered network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from skerry_agent.policy.network import network_obstacle
from skerry_agent.policy.windows import DAY_MINUTES, is_open, next_opening, parse_windows


class OwnerPolicy:
    """See :class:`skerry_agent.update.ports.InstallPolicy`."""

    def __init__(
        self,
        *,
        windows: Sequence[str],
        updates_on_metered: bool,
        metered_limit_bytes: int,
        metered: Callable[[], bool],
        clock_believable: Callable[[], bool],
        local_time: Callable[[], datetime] = datetime.now,
    ) -> None:
        """Take over the settings.

        Args:
            windows: Maintenance windows; none: an update may begin at any time.
            updates_on_metered: Whether updates may use a metered network.
            metered_limit_bytes: Most bytes of one update over such a network; 0: no limit.
            metered: Whether the present network is metered.
            clock_believable: Whether the clock is known to be about right; a window that nobody can tell to be open
                does not hold an update back.
            local_time: The clock on the wall.

        Raises:
            InputError: A window that is none.
        """
        self._texts = tuple(windows)
        self._windows = parse_windows(windows, field="maintenance_windows")
        self._updates_on_metered = updates_on_metered
        self._metered_limit_bytes = metered_limit_bytes
        self._metered = metered
        self._clock_believable = clock_believable
        self._local_time = local_time

    def window(self) -> str:
        """See :class:`InstallPolicy`."""
        if not self._windows or not self._clock_believable():
            return ""
        now = self._local_time()
        minute = now.weekday() * DAY_MINUTES + now.hour * 60 + now.minute
        if is_open(self._windows, minute):
            return ""
        opening = next_opening(self._windows, minute)
        return f"waits for a maintenance window ({', '.join(self._texts)}), next {opening} local time"[:300]

    def network(self, transfer_bytes: int) -> str:
        """See :class:`InstallPolicy`."""
        return network_obstacle(
            metered=self._metered(),
            allowed=self._updates_on_metered,
            limit_bytes=self._metered_limit_bytes,
            transfer_bytes=transfer_bytes,
        )
