"""What the README tells people to type exists: every command, positional argument and option of ours."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import typer

from skerry_agent.cli import app as agent
from skerry_gateway.cli import app as gateway
from skerry_server.cli.main import app as server
from skerry_simulation.cli import app as simulation

README = Path(__file__).parents[3] / "README.md"
PROGRAMS = {
    name: typer.main.get_command(app)
    for name, app in {
        "skerry": server,
        "skerry-agent": agent,
        "skerry-gateway": gateway,
        "skerry-sim": simulation,
    }.items()
}


def command_lines(markdown: str) -> list[list[str]]:
    """The words of each line of a code block and of each code span that begins with one of our programs."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", markdown, re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL))
    lines = [line for block in blocks for line in block.splitlines()] + spans
    return [shlex.split(line, comments=True) for line in lines if line.partition(" ")[0] in PROGRAMS]


def parse(words: list[str]) -> click.Context:
    """Parse a command line as its program would, without carrying it out; raises click.UsageError."""
    command, name, rest = PROGRAMS[words[0]], words[0], words[1:]
    context: click.Context | None = None
    while isinstance(command, click.Group):
        context = click.Context(command, parent=context, info_name=name)
        name, rest = (rest or [""])[0], rest[1:]
        found = command.get_command(context, name)
        if found is None:
            raise click.UsageError(f"no command {name!r}", context)
        command = found
    return command.make_context(name, rest, parent=context)


LINES = command_lines(README.read_text())


def test_the_readme_shows_every_program_and_the_loop() -> None:
    shown = {" ".join(words[:3]) for words in LINES}
    assert {words[0] for words in LINES} == set(PROGRAMS)
    assert {"skerry up", "skerry train start", "skerry rollout start", "skerry campaign start"} <= shown


@pytest.mark.parametrize("line", [shlex.join(words) for words in LINES])
def test_a_line_of_the_readme_is_accepted(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(README.parent)  # files that it names are named from there
    context = parse(shlex.split(line))
    assert context.command.callback is not None
    assert context.args == []


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("skerry launch", "no command"),
        ("skerry train", "no command"),
        ("skerry train start", "Missing argument"),
        ("skerry train start --task digits", "No such option"),
        ("skerry rollout start digits-1 digits-2", "unexpected extra argument"),
        ("skerry-agent enroll --server http://a", "Missing option"),
    ],
)
def test_a_wrong_line_would_be_noticed(line: str, says: str) -> None:
    with pytest.raises(click.UsageError) as refused:
        parse(shlex.split(line))
    assert says in refused.value.format_message()
