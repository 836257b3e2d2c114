"""What HTML reports have in common: one self-contained file, plots as inline SVG, light and dark."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light dark; --ink: #1b2733; --dim: #5c6b7a; --line: #d9e0e7; --paper: #ffffff;
        --accent: #0b6e99; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4eaf0; --dim: #93a1af; --line: #2c3844; --paper: #10171e; --accent: #5db7dd; }
  figure { background: #f6f8fa; border-radius: 8px; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto; padding: 2rem;
       max-width: 72rem; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
p.lead { color: var(--dim); margin-top: .3rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .8rem; }
.card { border: 1px solid var(--line); border-radius: 8px; padding: .7rem .9rem; }
.card b { display: block; font-size: 1.5rem; font-variant-numeric: tabular-nums; } .card span { color: var(--dim); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(28rem, 1fr)); gap: 1rem; }
figure { margin: 0; padding: .5rem; } figure svg { width: 100%; height: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--dim); font-weight: 600; }
"""


def document(title: str, lead: str, body: str) -> str:
    """A whole page; ``body`` is HTML, the rest plain text."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Skerry: {escape(title)}</title><style>{STYLE}</style></head><body>
<h1>{escape(title)}</h1>
<p class="lead">{escape(lead)}</p>
{body}
</body></html>
"""


def cards(figures: Iterable[tuple[str, str]]) -> str:
    """Figures that are read first: what, and how much."""
    inner = "".join(f'<div class="card"><span>{escape(k)}</span><b>{escape(v)}</b></div>' for k, v in figures)
    return f'<div class="cards">{inner}</div>'


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table of plain values."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def plots(drawings: Iterable[str]) -> str:
    """SVG drawings side by side."""
    return '<div class="plots">' + "".join(f"<figure>{drawing}</figure>" for drawing in drawings) + "</div>"


def axes(width: float = 6.4, height: float = 3.4) -> tuple[Any, Any]:
    """A figure and its axes in the house's style (inches)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    plane = figure.add_subplot()
    plane.spines[["top", "right"]].set_visible(False)
    return figure, plane


def svg(figure: Any) -> str:
    """A figure as an SVG element."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]
