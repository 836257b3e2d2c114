"""Rows rebuilt from histograms, for charts that want rows. Pure.

Each cell gives values spread evenly between its edges; a cell is as wide as it is, and the two outer ones, which are
open, are given the width of their neighbour. Columns are rebuilt one by one: how features depend on each other is not
in the histograms and not in the rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from skerry_server.monitoring.detector import Array

#: Rows of a rebuilt table.
ROWS = 2_000


def rebuild_column(edges: Sequence[float], counts: Array, *, rows: int = ROWS) -> Array:
    """Values whose histogram between ``edges`` has the proportions of ``counts``.

    Args:
        edges: E strictly increasing edges.
        counts: float64 [E + 1], with at least one count.
        rows: How many values.

    Returns:
        float64 [rows], increasing: the quantiles (i + 1/2) / rows of the piecewise uniform distribution.

    Raises:
        ValueError: The counts do not fit the edges, or all are zero.
    """
    inner = np.asarray(edges, dtype=np.float64)
    if counts.shape != (inner.size + 1,):
        raise ValueError(f"{inner.size} edges need {inner.size + 1} counts, got shape {counts.shape}")
    total = float(counts.sum())
    if total <= 0:
        raise ValueError("there is no count to rebuild rows from")
    widths = np.diff(inner)
    first, last = (float(widths[0]), float(widths[-1])) if widths.size else (1.0, 1.0)
    bounds = np.concatenate(([inner[0] - first], inner, [inner[-1] + last]))
    cumulative = np.concatenate(([0.0], np.cumsum(counts))) / total
    # numpy.interp needs increasing abscissae: empty cells are left out, as (left, right) bounds of the full ones.
    full = np.flatnonzero(counts > 0)
    levels = np.stack([cumulative[full], cumulative[full + 1]], axis=1).ravel()
    values = np.stack([bounds[full], bounds[full + 1]], axis=1).ravel()
    column: Array = np.interp((np.arange(rows) + 0.5) / rows, levels, values)
    return column
