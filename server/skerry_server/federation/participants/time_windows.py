"""Time windows of the day in the local time of each device. Pure: no clock.

A window runs from its start to its end, the end excluded, and may cross midnight: 22:00 to 06:00 is a night. Equal ends
are the whole day. A device tells its offset from UTC itself, so that a fleet over many time zones trains in each one's
night.

>>> night = Window.parse({"start": "22:00", "end": "06:00"}, field="window")
>>> night.contains(minute_of_day(0, utc_offset_minutes=-60))  # 1970 began at 23:00 in the Azores
True
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from skerry_server.errors import InvalidRequestError

DAY_MINUTES = 1_440
MINUTE_MS = 60_000
#: Offsets of the world's time zones (minutes east of UTC): Baker Island to the Line Islands.
OFFSETS = (-720, 840)
_TIME = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])")


@dataclass(frozen=True)
class Window:
    """A part of every day.

    Attributes:
        start: First minute of the day, 0 to 1439.
        end: First minute that is outside, 0 to 1439.
    """

    start: int
    end: int

    @classmethod
    def parse(cls, value: object, *, field: str) -> Self:
        """Read ``{"start": "22:00", "end": "06:00"}``; raises InvalidRequestError naming ``field``."""
        if not isinstance(value, Mapping) or set(value) != {"start", "end"}:
            raise InvalidRequestError(field, expected='{"start": "HH:MM", "end": "HH:MM"}', got=value)
        return cls(_minute(value["start"], f"{field}.start"), _minute(value["end"], f"{field}.end"))

    def contains(self, minute: int) -> bool:
        """Whether the minute of the day, 0 to 1439, is inside."""
        if self.start == self.end:
            return True
        if self.start < self.end:
            return self.start <= minute < self.end
        return minute >= self.start or minute < self.end

    def opens_in(self, minute: int) -> int:
        """Minutes until the window contains the minute of the day; 0 when it does."""
        return 0 if self.contains(minute) else (self.start - minute) % DAY_MINUTES

    def as_dict(self) -> dict[str, str]:
        """JSON form, as it is parsed."""
        return {"start": format_minute(self.start), "end": format_minute(self.end)}


def minute_of_day(at_ms: int, *, utc_offset_minutes: int) -> int:
    """Local minute of the day, 0 to 1439, of a moment (milliseconds since 1970, UTC)."""
    return (at_ms // MINUTE_MS + utc_offset_minutes) % DAY_MINUTES


def format_minute(minute: int) -> str:
    """HH:MM of a minute of the day."""
    return f"{minute // 60:02d}:{minute % 60:02d}"


def _minute(value: object, field: str) -> int:
    found = _TIME.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise InvalidRequestError(field, expected="a time of the day, 00:00 to 23:59", got=value)
    return int(found[1]) * 60 + int(found[2])
