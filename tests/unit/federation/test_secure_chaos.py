"""Any mixture of lost, doubled, reordered and spoilt messages: an exact sum of the survivors, or a reason."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry_contract.secure_aggregation import MASKED, SECAGG_KINDS
from skerry_server.federation.secure_aggregation.failure import SecureRoundFailedError
from unit.federation.fakes import Clock
from unit.federation.secure_rig import SecureExchange, expected_mean, fleet, instruction, model, rules, secure_round

COUNT = 5
#: What happens to an answer: nothing comes, a byte changes, the end is missing, the device restarts after it.
FAULTS = ("lost", "changed", "cut", "restart")
PLANS = st.dictionaries(
    st.tuples(st.integers(0, COUNT - 1), st.sampled_from(SECAGG_KINDS)),
    st.tuples(st.sampled_from(FAULTS), st.booleans(), st.floats(0, 0.999)),
    max_size=4,
)


def spoil(fields: dict[str, Any], fault: str, place: float) -> dict[str, Any]:
    """One of the answer's byte strings, changed or cut."""
    name = max((name for name, value in fields.items() if isinstance(value, bytes)), key=lambda name: len(fields[name]))
    data = fields[name]
    if fault == "cut":
        return {**fields, name: data[: int(place * len(data))]}
    at = int(place * len(data))
    return {**fields, name: data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :]}


@settings(max_examples=15, deadline=None, derandomize=True)
@given(plan=PLANS, doubled=st.booleans(), newest_first=st.booleans())
def test_a_sum_of_the_survivors_or_a_reason(
    plan: dict[tuple[int, str], tuple[str, bool, float]], doubled: bool, newest_first: bool
) -> None:
    clock = Clock()
    devices = fleet(COUNT, clock)
    done: set[tuple[int, str]] = set()

    def answer(device: str, kind: str, fields: dict[str, Any]) -> dict[str, Any] | None:
        index = int(device[-3:])
        if (index, kind) not in plan:
            return fields
        fault, always, place = plan[index, kind]
        if (index, kind) in done and not always:
            return fields
        done.add((index, kind))
        if fault == "restart":
            devices[index].restart()
            return fields
        if fault == "lost":
            return None
        # A changed element of a masked vector cannot be told from another update: it is cut instead.
        return spoil(fields, "cut" if kind == MASKED else fault, place)

    exchange = SecureExchange(devices, clock, doubled=doubled, newest_first=newest_first, answer=answer)
    reason = ""
    try:
        result = secure_round(exchange).collect(instruction(), model(), rules(COUNT, minimum=3))
    except SecureRoundFailedError as error:
        reason = error.reason
    if reason:
        assert plan
        return
    survivors = [device for device in devices if device.name in result.survivors]
    assert len(survivors) >= 3
    assert result.weight == sum(device.examples for device in survivors)
    for key, expected in expected_mean(survivors).items():
        np.testing.assert_allclose(result.mean_difference()[key], expected, atol=2e-3)
    if not plan:
        assert len(survivors) == COUNT
