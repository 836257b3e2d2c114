"""How the command line shows things: tables and details for people, JSON for programs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

Document = dict[str, Any]
#: Title to what is shown of a document under it.
Fields = Mapping[str, Callable[[Document], object]]

#: How each state looks. A state that is not named looks plain.
_STYLES: Mapping[str, str] = {
    **dict.fromkeys(
        ("online", "done", "finished", "healthy", "committed", "resolved", "passed", "released", "ok"), "green"
    ),
    **dict.fromkeys(("available", "stable", "champion", "intact"), "green"),
    **dict.fromkeys(("running", "canary", "fleet", "instructed", "recruiting"), "cyan"),
    **dict.fromkeys(("need", "downloading", "probation"), "cyan"),
    **dict.fromkeys(
        ("queued", "pending", "built", "warn", "suspect", "rolling_back", "proposed", "draft", "paused"), "yellow"
    ),
    **dict.fromkeys(("failed", "rejected", "rolled_back", "quarantined", "act", "critical", "drift", "broken"), "red"),
    **dict.fromkeys(("offline", "dismissed", "aborted", "withdrawn", "revoked", "declined"), "dim"),
}


#: Width of tables that no terminal shows (characters).
PIPE_WIDTH = 400


class Output:
    """Where one command writes.

    Attributes:
        as_json: Whether programs read it: then standard output carries one JSON document and nothing else.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        # What is piped is not folded to the width of a terminal that is not there.
        self._console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
        self.errors = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else PIPE_WIDTH)

    def say(self, message: str) -> None:
        """A line for people, on standard error when standard output is a document."""
        (self.errors if self.as_json else self._console).print(message, markup=False)

    def rows(
        self, rows: Sequence[Document], columns: Mapping[str, Callable[[Document], object]], *, empty: str
    ) -> None:
        """A list: a table, or a JSON array."""
        if self.as_json:
            self.document(list(rows))
        elif not rows:
            self._console.print(empty, style="dim", markup=False)
        else:
            table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
            for index, name in enumerate(columns):
                table.add_column(name, overflow="fold", no_wrap=index == 0)
            for row in rows:
                table.add_row(*(cell(value(row)) for value in columns.values()))
            self._console.print(table)

    def details(self, document: Document, fields: Fields) -> None:
        """One thing: names and values, or a JSON object."""
        if self.as_json:
            self.document(document)
            return
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in fields.items():
            shown = value(document)
            if shown not in ("", None):
                table.add_row(name, cell(shown))
        self._console.print(table)

    def document(self, document: object) -> None:
        """JSON on standard output."""
        sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
        sys.stdout.flush()


def cell(value: object) -> Text:
    """Text that is never taken for markup; a state gets its colour; control characters are made visible."""
    text = "-" if value in ("", None) else str(value)
    visible = "".join(char if char.isprintable() or char == "\n" else "�" for char in text)
    return Text(visible, style=_STYLES.get(text, ""))


def moment(at_ms: int) -> str:
    """Local time of a moment; empty for 0."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_ms / 1000)) if at_ms else ""


def age(at_ms: int, *, now_ms: int | None = None) -> str:
    """How long ago a moment was, in one unit; empty for 0."""
    if not at_ms:
        return ""
    seconds = max(0, ((now_ms if now_ms is not None else time.time_ns() // 1_000_000) - at_ms) // 1000)
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"


def percent(value: float | None) -> str:
    """0.9312 -> 93.1 %; empty for nothing."""
    return "" if value is None else f"{value * 100:.1f} %"


def amount(size: float) -> str:
    """1536000 -> 1.5 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def pairs(values: Mapping[str, object]) -> str:
    """{"a": 1} -> a=1."""
    return " ".join(f"{name}={value}" for name, value in sorted(values.items()))


def number(value: object) -> str:
    """A number without noise."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
