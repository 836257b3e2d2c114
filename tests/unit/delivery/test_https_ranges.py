"""What an answer's Content-Range says of the file."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry_agent.update.https_source import FileRefusedError, file_size


def test_the_size_of_the_whole_file() -> None:
    assert file_size("bytes 100-199/12345", 100) == 12345


@pytest.mark.parametrize(
    "header", ["", "bytes 0-99/200", "bytes 100-199/*", "items 100-199/200", "bytes 100-199", f"bytes 100-1/{'9' * 19}"]
)
def test_another_range_is_refused(header: str) -> None:
    with pytest.raises(FileRefusedError):
        file_size(header, 100)


@given(st.one_of(st.text(max_size=60), st.from_regex(r"bytes 7-[0-9]{0,20}/.{0,20}")))
def test_any_header_is_a_size_or_refused(header: str) -> None:
    try:
        assert 0 <= file_size(header, 7) < 10**18
    except FileRefusedError:
        return
