"""Maintenance windows: texts such as ``mon-fri 22:00-05:00`` or ``daily 01:00-04:00``, in local time. Pure.

A window is a set of weekdays on which it begins, and two wall-clock minutes. One that ends at or before its beginning
goes over midnight: ``fri 22:00-05:00`` holds on Saturday at 04:59. Times are what the clock on the wall shows, so a
change to or from summer time moves nothing but the clock.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from skerry_agent.errors import InputError

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY_MINUTES = 24 * 60
WEEK_MINUTES = 7 * DAY_MINUTES
#: Most windows of a device.
WINDOWS = 32
_FORM = "days and times such as 'mon-fri 22:00-05:00', 'sat,sun 00:00-24:00' or 'daily 01:00-04:00'"
_TEXT = re.compile(r"(?P<days>[a-z,-]{1,64}) +(?P<start>\d\d:\d\d) ?- ?(?P<end>\d\d:\d\d)")


@dataclass(frozen=True)
class Window:
    """One window.

    Attributes:
        days: Weekdays on which it begins; Monday is 0.
        start: Minute of the day at which it begins, 0 to 1439.
        minutes: How long it is open, 1 to 1440.
    """

    days: frozenset[int]
    start: int
    minutes: int

    def is_open(self, minute: int) -> bool:
        """Whether it is open in a minute of the week, 0 (Monday 00:00) to 10079."""
        return any((minute - day * DAY_MINUTES - self.start) % WEEK_MINUTES < self.minutes for day in self.days)

    def opens_in(self, minute: int) -> int:
        """Minutes until it next begins; 0 if it begins in this one."""
        return min((day * DAY_MINUTES + self.start - minute) % WEEK_MINUTES for day in self.days)


def parse_windows(texts: Sequence[str], *, field: str) -> tuple[Window, ...]:
    """Parse the windows of a configuration.

    Args:
        texts: One window each.
        field: Name of the setting, for errors.

    Raises:
        InputError: Too many, or one that is no window; ``field`` tells which.
    """
    if len(texts) > WINDOWS:
        raise InputError(field, expected=f"at most {WINDOWS} windows", got=len(texts))
    return tuple(_parse(text, f"{field}[{index}]") for index, text in enumerate(texts))


def _parse(text: str, field: str) -> Window:
    match = _TEXT.fullmatch(text.strip().lower())
    if match is None:
        raise InputError(field, expected=_FORM, got=f"{text!r:.100}")
    days = frozenset(day for part in match["days"].split(",") for day in _days(part, field))
    start = _minute(match["start"], field, most=DAY_MINUTES - 1)
    end = _minute(match["end"], field, most=DAY_MINUTES)
    if start == end:
        raise InputError(field, expected="an end that is not the beginning; the whole day is 00:00-24:00", got=text)
    return Window(days, start, end - start if end > start else end - start + DAY_MINUTES)


def _days(text: str, field: str) -> Sequence[int]:
    if text == "daily":
        return range(7)
    names = text.split("-")
    if len(names) > 2 or not set(names) <= set(DAYS):
        raise InputError(field, expected=f"'daily', or of {', '.join(DAYS)} one, a list or a range", got=text)
    first, last = DAYS.index(names[0]), DAYS.index(names[-1])
    return [(first + step) % 7 for step in range((last - first) % 7 + 1)]


def _minute(text: str, field: str, *, most: int) -> int:
    hours, minutes = int(text[:2]), int(text[3:])
    minute = hours * 60 + minutes
    if minutes > 59 or minute > most:
        raise InputError(field, expected=f"a time from 00:00 to {most // 60:02d}:{most % 60:02d}", got=text)
    return minute


def is_open(windows: Sequence[Window], minute: int) -> bool:
    """Whether one of ``windows`` is open in a minute of the week; with none it always is."""
    return not windows or any(window.is_open(minute) for window in windows)


def next_opening(windows: Sequence[Window], minute: int) -> str:
    """When the first of ``windows`` begins, as ``tue 01:00``; ``windows`` is not empty."""
    opening = (minute + min(window.opens_in(minute) for window in windows)) % WEEK_MINUTES
    day, rest = divmod(opening, DAY_MINUTES)
    return f"{DAYS[day]} {rest // 60:02d}:{rest % 60:02d}"
