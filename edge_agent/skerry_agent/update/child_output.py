"""What a process of this package said before it ended: one line of JSON, perhaps among other lines."""

from __future__ import annotations

import json


def last_document(text: str) -> dict[str, object] | None:
    """The last line that is a JSON object; None if there is none."""
    for line in reversed(text.splitlines()):
        try:
            document = json.loads(line)
        except ValueError:
            continue
        if isinstance(document, dict):
            return document
    return None


def last_line(text: str) -> str:
    """The last line, for people: of a traceback, that is the error."""
    return text.strip().splitlines()[-1] if text.strip() else "no output"
