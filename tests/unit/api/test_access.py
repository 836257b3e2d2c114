from __future__ import annotations

import pytest

from skerry_server.api.access import ROLES, ForbiddenError, Principal, UnauthenticatedError, bearer_token


@pytest.mark.parametrize("role", ROLES)
def test_a_role_includes_exactly_the_ones_before_it(role: str) -> None:
    caller = Principal(name="ada", role=role)
    reach = [needed for needed in ROLES if caller.may(needed)]
    assert reach == list(ROLES[: ROLES.index(role) + 1])


def test_an_unknown_role_may_nothing() -> None:
    caller = Principal(name="eve", role="root")
    assert not any(caller.may(needed) for needed in ROLES)
    with pytest.raises(ForbiddenError) as told:
        caller.require("viewer")
    assert (told.value.role, told.value.needed) == ("root", "viewer")


@pytest.mark.parametrize("header", ["Bearer abc", "bearer abc", "BEARER   abc "])
def test_the_scheme_is_not_case_sensitive(header: str) -> None:
    assert bearer_token(header) == "abc"


@pytest.mark.parametrize(
    "header",
    [None, "", "abc", "Bearer", "Bearer ", "Basic abc", "Bearer " + "a" * 257, "Bearer a\x00b", "Bearer schlüssel"],
)
def test_anything_else_is_refused_without_repeating_it(header: str | None) -> None:
    with pytest.raises(UnauthenticatedError) as told:
        bearer_token(header)
    assert "abc" not in str(told.value)
