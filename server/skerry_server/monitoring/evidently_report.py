"""An Evidently HTML report of two tables. The only file that imports evidently.

Evidently wants raw rows, and rows never leave a device; so :mod:`~skerry_server.monitoring.report_rows` rebuilds some
from histograms. The report shows shapes to people. Verdicts are never read from it: its PSI takes its bins from the
range of both samples, so that one outlier hides a shift.

Importing it takes seconds and much memory: only the report job, a process of its own, does.
"""

from __future__ import annotations

import html
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from skerry_server.monitoring.detector import Array


def render(baseline: Mapping[str, Array], current: Mapping[str, Array], *, notice: str, path: Path) -> bytes:
    """Write a data drift report.

    Args:
        baseline: Column name to float64 [M].
        current: The same columns, float64 [N].
        notice: Shown above the report; says what the rows are.
        path: Working file that Evidently writes.

    Returns:
        The HTML document.
    """
    os.environ["DO_NOT_TRACK"] = "1"
    import pandas as pd
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    definition: Any = DataDefinition(numerical_columns=list(baseline))
    reference: Any = Dataset.from_pandas(pd.DataFrame(dict(baseline)), data_definition=definition)
    observed: Any = Dataset.from_pandas(pd.DataFrame(dict(current)), data_definition=definition)
    snapshot: Any = Report([DataDriftPreset(method="wasserstein")]).run(observed, reference)
    snapshot.save_html(str(path))
    document = path.read_text(encoding="utf-8")
    banner = (
        '<div role="note" style="font: 15px/1.5 sans-serif; padding: 12px 24px; background: #fff4ce; '
        f'border-bottom: 1px solid #d9b300">{html.escape(notice)}</div>'
    )
    head, body, rest = document.partition("<body>")
    return (head + body + banner + rest if body else banner + document).encode("utf-8")
