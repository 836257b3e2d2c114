from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry_server.cli.command import parse_pairs, parse_settings
from skerry_server.cli.output import Output, age, cell, number, pairs, percent
from skerry_server.errors import InvalidRequestError


@given(st.text(alphabet=st.characters(blacklist_categories=["Cs"]), max_size=50))
def test_no_text_of_a_device_reaches_the_terminal_as_a_command(text: str) -> None:
    shown = cell(text).plain
    assert all(char.isprintable() or char == "\n" for char in shown)


def test_markup_is_text() -> None:
    assert cell("[bold red]x[/]").plain == "[bold red]x[/]"
    assert str(cell("rolled_back").style) == "red"


@pytest.mark.parametrize(
    ("at_ms", "expected"),
    [
        (0, ""),
        (10_000_000, "0 s ago"),
        (9_941_000, "59 s ago"),
        (9_940_000, "1 min ago"),
        (2_800_000, "2 h ago"),
        (20_000_000, "0 s ago"),
    ],
)
def test_ages(at_ms: int, expected: str) -> None:
    assert age(at_ms, now_ms=10_000_000) == expected


def test_figures() -> None:
    assert (percent(0.9312), percent(None), number(0.123456), number(7), pairs({"b": 1, "a": "x"})) == (
        "93.1 %",
        "",
        "0.1235",
        "7",
        "a=x b=1",
    )


def test_settings_are_json_where_they_are_json() -> None:
    given_texts = ["rounds=5", "rate=0.1", "strategy=fedprox", "x=a=b", "on=true", 'list=[1, "a"]', "empty="]
    assert parse_settings(given_texts) == {
        "rounds": 5, "rate": 0.1, "strategy": "fedprox", "x": "a=b", "on": True, "list": [1, "a"], "empty": "",
    }  # fmt: skip
    with pytest.raises(InvalidRequestError) as told:
        parse_pairs(["nonsense"], option="--label")
    assert (told.value.field, told.value.got) == ("--label", "nonsense")


def test_json_goes_alone_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output(as_json=True)
    out.say("hello")
    out.rows([{"id": "ä"}], {"id": lambda row: row["id"]}, empty="nothing")
    captured = capsys.readouterr()
    assert json.loads(captured.out) == [{"id": "ä"}]
    assert captured.err == "hello\n"


def test_an_empty_list_says_so_to_people_and_is_an_empty_array_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    Output(as_json=False).rows([], {}, empty="no devices")
    assert capsys.readouterr().out == "no devices\n"
    Output(as_json=True).rows([], {}, empty="no devices")
    assert capsys.readouterr().out == "[]\n"
