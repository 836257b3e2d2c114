"""What every command shares: the options that say which control plane, ``--json``, and a clean end.

A command is a function whose first parameter is a :class:`Shell`; :func:`command` registers it with the shared
options added, so that they can stand where people type them: at the end.
"""

from __future__ import annotations

import functools
import inspect
import json
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from skerry_server.cli.client import ApiClient, connect
from skerry_server.cli.output import Output
from skerry_server.errors import InvalidRequestError

_PANEL = "Control plane"
_SHARED: dict[str, Any] = {
    "url": Annotated[str, typer.Option("--url", help="Address of the API [SKERRY_URL].", rich_help_panel=_PANEL)],
    "token": Annotated[str, typer.Option("--token", help="API token [SKERRY_TOKEN].", rich_help_panel=_PANEL)],
    "data_dir": Annotated[
        Path | None,
        typer.Option("--data-dir", help="Read address and admin token from this directory.", rich_help_panel=_PANEL),
    ],
    "as_json": Annotated[bool, typer.Option("--json", help="Print JSON for programs.", rich_help_panel=_PANEL)],
}
_DEFAULTS: dict[str, Any] = {"url": "", "token": "", "data_dir": None, "as_json": False}

#: Options that several commands have.
Limit = Annotated[int, typer.Option("--limit", min=1, max=100_000, help="Most rows.")]
TaskFilter = Annotated[str, typer.Option("--task", help="Only this task.")]
StateFilter = Annotated[str, typer.Option("--state", help="Only this state.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; goes into the audit ledger.")]
Wait = Annotated[bool, typer.Option("--wait", help="Wait for the end; exit code 1 when it fails.")]
Timeout = Annotated[float, typer.Option("--timeout", min=1, help="With --wait: seconds to wait at most.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A setting that differs; repeatable.")
]
Pairs = Annotated[list[str] | None, typer.Option("--label", metavar="NAME=VALUE", help="Repeatable.")]


@dataclass(frozen=True)
class Shell:
    """What a command works with.

    Attributes:
        api: The control plane.
        out: Where it writes.
    """

    api: ApiClient
    out: Output


def group(name: str, *, help: str) -> typer.Typer:
    """A group of commands; alone it shows its help."""
    return typer.Typer(name=name, help=help, no_args_is_help=True, rich_markup_mode="markdown")


def command(
    parent: typer.Typer, name: str, *, example: str = ""
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function of (shell, ...) as a command with the shared options.

    Args:
        parent: Its group.
        name: Name of the command.
        example: Shown at the end of its help.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        hints = typing.get_type_hints(function, include_extras=True)
        own = [
            parameter.replace(annotation=hints[parameter.name])
            for parameter in list(inspect.signature(function).parameters.values())[1:]
        ]
        shared = [
            inspect.Parameter(each, inspect.Parameter.KEYWORD_ONLY, default=_DEFAULTS[each], annotation=annotation)
            for each, annotation in _SHARED.items()
        ]

        def run(**values: Any) -> None:
            api = connect(values.pop("url"), values.pop("token"), values.pop("data_dir"))
            try:
                function(Shell(api, Output(as_json=values.pop("as_json"))), **values)
            finally:
                api.close()

        functools.update_wrapper(run, function)
        del run.__wrapped__  # type: ignore[attr-defined]  # typer would look through it at the function's own signature
        keyword = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own]
        run.__signature__ = inspect.Signature([*keyword, *shared])  # type: ignore[attr-defined]  # PEP 362 allows it
        run.__annotations__ = {each.name: each.annotation for each in [*keyword, *shared]} | {"return": None}
        epilog = f"Example: `{example}`" if example else None
        parent.command(name, help=inspect.getdoc(function), epilog=epilog, no_args_is_help=False)(run)
        return function

    return decorate


def parse_pairs(texts: list[str] | None, *, option: str) -> dict[str, str]:
    """``["a=1"]`` to ``{"a": "1"}``; raises InvalidRequestError."""
    result: dict[str, str] = {}
    for text in texts or []:
        name, separator, value = text.partition("=")
        if not name or not separator:
            raise InvalidRequestError(option, expected="NAME=VALUE", got=text)
        result[name] = value
    return result


def parse_settings(texts: list[str] | None) -> dict[str, Any]:
    """``["rounds=5", "strategy=fedprox"]`` to ``{"rounds": 5, "strategy": "fedprox"}``: JSON where it is JSON."""
    result: dict[str, Any] = {}
    for name, value in parse_pairs(texts, option="--set").items():
        try:
            result[name] = json.loads(value)
        except ValueError:
            result[name] = value
    return result


def parse_nested_settings(texts: list[str] | None) -> dict[str, Any]:
    """As :func:`parse_settings`, and ``["privacy.mode=central"]`` to ``{"privacy": {"mode": "central"}}``.

    Raises:
        InvalidRequestError: Not NAME=VALUE, or a name that is both a value and a place for others.
    """
    result: dict[str, Any] = {}
    for name, value in parse_settings(texts).items():
        *places, last = name.split(".")
        place = result
        for part in places:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise InvalidRequestError("--set", expected=f"{part} to have a value or parts, not both", got=name)
        if last in place:
            raise InvalidRequestError("--set", expected=f"{last} to have a value or parts, not both", got=name)
        place[last] = value
    return result


def given(**filters: object) -> dict[str, str]:
    """The filters that are not empty, as the API wants them."""
    return {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in filters.items()
        if value not in (None, "")
    }
