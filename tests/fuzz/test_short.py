"""Every parser against a few hundred mutated inputs, by hypothesis: what `make fuzz` does for hours, in seconds."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.target import BrokenPromiseError, Target
from fuzz.targets import TARGETS

EDITS = st.tuples(
    st.floats(0, 1),
    st.integers(0, 12),
    st.one_of(
        st.binary(max_size=8),
        st.sampled_from(
            [
                b"\xff" * 9 + b"\x01",
                b"\x80" * 10,
                b"\0\0\0\0",
                b"\xff\xff\xff\xff\x0f",
                b"9" * 30,
                b"[" * 40,
                b"null",
                b"-",
            ]
        ),
    ),
)


def inputs(target: Target) -> st.SearchStrategy[bytes]:
    """Seeds with edits, and bytes of no form."""

    def edited(seed: bytes, edits: list[tuple[float, int, bytes]]) -> bytes:
        for place, length, piece in edits:
            start = int(place * len(seed))
            seed = seed[:start] + piece + seed[start + length :]
        return seed

    changed = st.builds(edited, st.sampled_from(target.seeds), st.lists(EDITS, min_size=1, max_size=4))
    return st.one_of(changed, changed, st.binary(max_size=64))


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_no_input_breaks_a_parser(name: str) -> None:
    target = TARGETS[name]
    for seed in target.seeds[:8]:
        target.try_memory(seed)

    @settings(
        max_examples=25,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs(target))
    def check(data: bytes) -> None:
        target.try_bytes(data)

    check()


def test_a_broken_promise_is_told() -> None:
    def crash(data: bytes) -> None:
        raise ZeroDivisionError

    def swell(data: bytes) -> bytes:
        return bytes(8 << 20)

    with pytest.raises(BrokenPromiseError, match="ZeroDivisionError"):
        Target("crash", crash, (b"",), (ValueError,)).try_bytes(b"")
    with pytest.raises(BrokenPromiseError, match="bytes of memory"):
        Target("swell", swell, (b"",), ()).try_memory(b"")
