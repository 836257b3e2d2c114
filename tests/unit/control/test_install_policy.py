"""Maintenance windows and metered networks: hand-made weeks, and every minute against a plain model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry_agent.config import AgentConfig, parse_settings
from skerry_agent.errors import InputError
from skerry_agent.policy.install import OwnerPolicy
from skerry_agent.policy.network import MeteredNetwork, default_interface, network_obstacle, says_metered
from skerry_agent.policy.windows import DAY_MINUTES, DAYS, WEEK_MINUTES, is_open, next_opening, parse_windows
from unit.control.test_config import REQUIRED


def at(day: str, time: str) -> int:
    return DAYS.index(day) * DAY_MINUTES + int(time[:2]) * 60 + int(time[3:])


@pytest.mark.parametrize(
    ("texts", "day", "time", "opens", "next_one"),
    [
        ([], "wed", "12:00", True, ""),
        (["daily 01:00-04:00"], "mon", "00:59", False, "mon 01:00"),
        (["daily 01:00-04:00"], "mon", "01:00", True, ""),
        (["daily 01:00-04:00"], "mon", "03:59", True, ""),
        (["daily 01:00-04:00"], "mon", "04:00", False, "tue 01:00"),
        (["mon-fri 22:00-05:00"], "fri", "22:00", True, ""),
        (["mon-fri 22:00-05:00"], "sat", "04:59", True, ""),
        (["mon-fri 22:00-05:00"], "sat", "05:00", False, "mon 22:00"),
        (["mon-fri 22:00-05:00"], "mon", "04:00", False, "mon 22:00"),
        (["sun 23:00-02:00"], "mon", "01:59", True, ""),
        (["sun 23:00-02:00"], "mon", "02:00", False, "sun 23:00"),
        (["SAT,Sun 10:00-11:00"], "sun", "10:30", True, ""),
        (["fri-mon 10:00-11:00"], "tue", "10:30", False, "fri 10:00"),
        (["fri-mon 10:00-11:00"], "mon", "10:30", True, ""),
        (["tue 00:00-24:00"], "tue", "23:59", True, ""),
        (["tue 00:00-24:00"], "wed", "00:00", False, "tue 00:00"),
        (["mon 01:00-02:00", "thu 05:00-06:00"], "tue", "00:00", False, "thu 05:00"),
    ],
)
def test_windows(texts: list[str], day: str, time: str, opens: bool, next_one: str) -> None:
    windows = parse_windows(texts, field="maintenance_windows")
    assert is_open(windows, at(day, time)) is opens
    if not opens:
        assert next_opening(windows, at(day, time)) == next_one


clock = st.integers(0, DAY_MINUTES - 1)


def text_of(minute: int) -> str:
    return f"{minute // 60:02d}:{minute % 60:02d}"


@settings(max_examples=60, deadline=None)
@given(days=st.sets(st.integers(0, 6), min_size=1), start=clock, end=clock, minute=st.integers(0, WEEK_MINUTES - 1))
def test_every_minute_agrees_with_a_list_of_minutes(days: set[int], start: int, end: int, minute: int) -> None:
    if start == end:
        end = (end + 1) % DAY_MINUTES
    text = f"{','.join(DAYS[day] for day in sorted(days))} {text_of(start)}-{text_of(end)}"
    windows = parse_windows([text], field="maintenance_windows")
    model: set[int] = set()
    for day in days:
        now = day * DAY_MINUTES + start
        while now % DAY_MINUTES != end:
            model.add(now % WEEK_MINUTES)
            now += 1
    assert is_open(windows, minute) == (minute in model)
    if minute not in model:
        day_name, opening = next_opening(windows, minute).split()
        ahead = (at(day_name, opening) - minute) % WEEK_MINUTES
        assert all((minute + step) % WEEK_MINUTES not in model for step in range(ahead))
        assert (minute + ahead) % WEEK_MINUTES in model


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="monfridaily tuewsh:-,0123456789", max_size=40) | st.text(max_size=20))
def test_any_text_is_a_window_or_an_error_that_names_the_field(text: str) -> None:
    try:
        (window,) = parse_windows([text], field="maintenance_windows")
    except InputError as error:
        window, field = None, error.field
    if window is None:
        assert field == "maintenance_windows[0]"
    else:
        assert window.days <= set(range(7))
        assert 0 <= window.start < DAY_MINUTES
        assert 1 <= window.minutes <= DAY_MINUTES


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"maintenance_windows": ["daily 01:00-04:00", "at night"]},
            r"maintenance_windows\[1\]: expected days and times",
        ),
        ({"maintenance_windows": ["mon 10:00-10:00"]}, "expected an end that is not the beginning"),
        ({"maintenance_windows": ["mon 24:00-01:00"]}, "expected a time from 00:00 to 23:59, got 24:00"),
        ({"maintenance_windows": ["mon 23:00-24:01"]}, "expected a time from 00:00 to 24:00, got 24:01"),
        ({"maintenance_windows": ["mon-tue-wed 10:00-11:00"]}, "got mon-tue-wed"),
        ({"maintenance_windows": ["month 10:00-11:00"]}, "got month"),
        (
            {"maintenance_windows": ["daily 01:00-04:00"] * 33},
            "maintenance_windows: expected at most 32 windows, got 33",
        ),
        ({"maintenance_windows": "daily 01:00-04:00"}, "maintenance_windows: expected a list of texts"),
        ({"metered": "maybe"}, "metered: expected text that matches auto|yes|no"),
        ({"updates_on_metered": 1}, "updates_on_metered: expected true or false, got int"),
        ({"metered_limit_bytes": -1}, "metered_limit_bytes: expected an integer, at least 0"),
        ({"metered_limit_bytes": True}, "metered_limit_bytes: expected an integer, got bool"),
    ],
)
def test_a_setting_that_is_none_is_named(changes: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        AgentConfig.from_document({**REQUIRED, **changes})


def test_settings_as_text() -> None:
    parsed = parse_settings(
        {"maintenance_windows": "daily 01:00-04:00; sat,sun 00:00-24:00", "updates_on_metered": "false"}, field="--set"
    )
    config = AgentConfig.from_document({**REQUIRED, **parsed})
    assert config.maintenance_windows == ["daily 01:00-04:00", "sat,sun 00:00-24:00"]
    assert config.updates_on_metered is False
    assert AgentConfig.from_document(json.loads(config.to_json())) == config
    with pytest.raises(InputError, match="--set: updates_on_metered: expected true or false, got maybe"):
        parse_settings({"updates_on_metered": "maybe"}, field="--set")


def policy(now: Callable[[], datetime], *, believable: bool = True, metered: bool = False) -> OwnerPolicy:
    return OwnerPolicy(
        windows=["daily 01:00-04:00"],
        updates_on_metered=True,
        metered_limit_bytes=1000,
        metered=lambda: metered,
        clock_believable=lambda: believable,
        local_time=now,
    )


def test_a_clock_that_jumps_moves_the_window_and_one_that_is_not_believed_has_none() -> None:
    now = datetime(2026, 3, 28, 23, 30, tzinfo=UTC)
    owner = policy(lambda: now)
    assert owner.window() == "waits for a maintenance window (daily 01:00-04:00), next sun 01:00 local time"
    now += timedelta(hours=2)
    assert owner.window() == ""
    now = datetime(1970, 1, 1, 12, 0, tzinfo=UTC)
    assert owner.window() != ""
    assert policy(lambda: now, believable=False).window() == ""


@pytest.mark.parametrize(
    ("metered", "allowed", "limit", "transfer", "says"),
    [
        (False, False, 1, 10**9, ""),
        (True, True, 0, 10**9, ""),
        (True, True, 1000, 1000, ""),
        (True, True, 1000, 1001, "1001 bytes to download, metered_limit_bytes is 1000"),
        (True, False, 0, 1, "updates_on_metered is false"),
        (True, False, 0, 0, ""),
    ],
)
def test_bytes_over_a_metered_network(metered: bool, allowed: bool, limit: int, transfer: int, says: str) -> None:
    why = network_obstacle(metered=metered, allowed=allowed, limit_bytes=limit, transfer_bytes=transfer)
    assert (says in why) if says else why == ""


def system(root: Path, *, route: str = "wlan0", devtype: str = "wlan") -> tuple[Path, Path]:
    """A /proc and a /sys with a default route."""
    proc, sys_folder = root / "proc", root / "sys"
    (proc / "net").mkdir(parents=True)
    lines = ["Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT"]
    lines += ["eth1\t0000A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0"]
    lines += ["slow0\t00000000\t0101A8C0\t0003\t0\t0\t900\t00000000\t0\t0\t0"] if route else []
    lines += [f"{route}\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0"] if route else []
    (proc / "net" / "route").write_text("\n".join(lines))
    (sys_folder / "class" / "net" / route).mkdir(parents=True, exist_ok=True)
    (sys_folder / "class" / "net" / route / "uevent").write_text(f"DEVTYPE={devtype}\nINTERFACE={route}\n")
    return proc, sys_folder


def nmcli(root: Path, answer: str) -> str:
    """A NetworkManager that says what it is told, for the right question only."""
    script = root / "nmcli"
    script.write_text(
        f"#!{sys.executable}\nimport sys\n"
        "assert sys.argv[1:] == ['-g', 'GENERAL.METERED', 'device', 'show', 'wlan0'], sys.argv\n"
        f"print({answer!r})\n"
    )
    script.chmod(0o755)
    return str(script)


@pytest.mark.parametrize(
    ("answer", "metered"), [("yes", True), ("yes (guessed)", True), ("no (guessed)", False), ("unknown", False)]
)
def test_network_manager_is_asked_without_waiting(
    tmp_path: Path, answer: str, metered: bool, wait_until: Callable[..., None]
) -> None:
    assert says_metered(answer) is metered
    proc, sys_folder = system(tmp_path)
    network = MeteredNetwork("auto", nmcli=nmcli(tmp_path, answer), proc=proc, sys=sys_folder)
    assert network.metered is False, "not known yet"
    asking = network._asking
    assert asking is not None
    wait_until(lambda: asking.poll() is not None, what="the answer")
    assert asking.returncode == 0
    assert network.metered is metered
    network.close()


def test_what_cannot_be_found_out_is_not_metered(tmp_path: Path) -> None:
    proc, sys_folder = system(tmp_path)
    for tool in ("", str(tmp_path / "absent")):
        network = MeteredNetwork("auto", nmcli=tool, proc=proc, sys=sys_folder)
        assert [network.metered, network.metered] == [False, False]
    assert default_interface(proc) == "wlan0", "the lowest metric wins"
    assert default_interface(tmp_path) == ""
    assert MeteredNetwork("auto", nmcli="", proc=tmp_path, sys=tmp_path).metered is False


def test_a_mobile_modem_is_metered_and_the_owner_knows_better(tmp_path: Path) -> None:
    proc, sys_folder = system(tmp_path, route="wwan0", devtype="wwan")
    assert MeteredNetwork("auto", nmcli="", proc=proc, sys=sys_folder).metered is True
    assert MeteredNetwork("no", proc=proc, sys=sys_folder).metered is False
    assert MeteredNetwork("yes", proc=tmp_path, sys=tmp_path).metered is True
