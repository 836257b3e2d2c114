"""Which answers counted: a table of twelve bytes a device."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry_contract.counted import COUNTED_DEVICES, counted_round, encode_counted
from skerry_contract.errors import WireError


@given(st.dictionaries(st.text(min_size=1, max_size=12), st.integers(0, 2**32 - 1), max_size=20))
def test_every_device_finds_its_own_round(rounds: dict[str, int]) -> None:
    data = encode_counted("campaign-1", rounds)
    assert len(data) == 12 * len(rounds)
    for device, number in rounds.items():
        assert counted_round(data, "campaign-1", device) == number
        assert counted_round(data, "campaign-2", device) is None


def test_what_is_no_table_is_refused() -> None:
    assert counted_round(b"", "campaign-1", "a") is None
    for data in (b"x", bytes(13), bytes(12 * (COUNTED_DEVICES + 1))):
        with pytest.raises(WireError, match="counted"):
            counted_round(data, "campaign-1", "a")
    for rounds in ({"a": -1}, {"a": 2**32}):
        with pytest.raises(ValueError, match="rounds below"):
            encode_counted("campaign-1", rounds)


def test_a_tag_inside_another_entry_is_not_taken_for_one() -> None:
    data = encode_counted("campaign-1", {"a": 7})
    assert counted_round(data[4:] + data[:4], "campaign-1", "a") is None
