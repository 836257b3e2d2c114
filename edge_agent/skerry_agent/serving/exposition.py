"""Metrics as text: the Prometheus format 0.0.4 and OpenMetrics 1.0, which also carries exemplars. Pure.

A client library for metrics would cost the serving process 5 MB and counts that are paid per request; the numbers are
counted by the engine already, and only their text is missing.

Sources: https://prometheus.io/docs/instrumenting/exposition_formats/ and
https://prometheus.io/docs/specs/om/open_metrics_spec/.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
#: Most characters of the names and values of an exemplar's labels (OpenMetrics 1.0).
EXEMPLAR_CHARACTERS = 128

Labels = Mapping[str, str]


@dataclass(frozen=True)
class SampleExemplar:
    """One observation of a bucket.

    Attributes:
        labels: What names it.
        value: The observation.
        at_s: When it was made (Unix time, seconds).
    """

    labels: Labels
    value: float
    at_s: float


@dataclass(frozen=True)
class Sample:
    """One line.

    Attributes:
        suffix: After the name of the family: "", "_total", "_bucket", "_count" or "_sum".
        labels: Its labels.
        value: Its value.
        exemplar: Of a bucket.
    """

    suffix: str
    labels: Labels
    value: float
    exemplar: SampleExemplar | None = None


@dataclass(frozen=True)
class Family:
    """Samples of one name.

    Attributes:
        name: Without a suffix.
        kind: "counter", "gauge" or "histogram".
        text: What it is, for people.
        samples: In their order.
    """

    name: str
    kind: str
    text: str
    samples: list[Sample] = field(default_factory=list)


def counter(name: str, text: str, values: Iterable[tuple[Labels, float]]) -> Family:
    """A family that only counts up."""
    return Family(name, "counter", text, [Sample("_total", labels, value) for labels, value in values])


def gauge(name: str, text: str, values: Iterable[tuple[Labels, float]]) -> Family:
    """A family that goes up and down."""
    return Family(name, "gauge", text, [Sample("", labels, value) for labels, value in values])


def histogram_samples(
    labels: Labels,
    bounds: Sequence[float],
    counts: Sequence[int],
    total: float,
    exemplars: Sequence[SampleExemplar | None],
) -> list[Sample]:
    """The lines of one histogram.

    Args:
        labels: Of the histogram.
        bounds: Upper bounds of all buckets but the last, ascending.
        counts: Observations of each bucket, one more than bounds.
        total: Sum of the observations.
        exemplars: One a bucket, or None.
    """
    samples, below = [], 0
    for bound, count, exemplar in zip((*bounds, math.inf), counts, exemplars, strict=True):
        below += count
        samples.append(Sample("_bucket", {**labels, "le": _number(bound)}, below, exemplar))
    return [*samples, Sample("_count", labels, below), Sample("_sum", labels, total)]


def wants_openmetrics(accept: str) -> bool:
    """Whether an Accept header asks for OpenMetrics at least as much as for the older text.

    >>> wants_openmetrics("application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5")
    True
    >>> wants_openmetrics("*/*"), wants_openmetrics("application/openmetrics-text;version=2.0.0")
    (False, False)
    """
    best = {"application/openmetrics-text": 0.0, "text/plain": 0.0}
    for part in accept.lower().split(","):
        kind, *parameters = [piece.strip() for piece in part.split(";")]
        given = dict(parameter.partition("=")[::2] for parameter in parameters)
        if kind in best and given.get("version", "1.0.0") in ("0.0.1", "0.0.4", "1.0.0"):
            best[kind] = max(best[kind], _quality(given.get("q", "1")))
    return best["application/openmetrics-text"] > 0.0 and best["application/openmetrics-text"] >= best["text/plain"]


def render(families: Iterable[Family], *, openmetrics: bool) -> bytes:
    """The text of all families; exemplars only in OpenMetrics, which is the only format that has them."""
    lines: list[str] = []
    for family in families:
        name = family.name
        declared = name if openmetrics or family.kind != "counter" else f"{name}_total"
        lines += [f"# HELP {declared} {_escape(family.text)}", f"# TYPE {declared} {family.kind}"]
        for sample in family.samples:
            line = f"{name}{sample.suffix}{_labels(sample.labels)} {_number(sample.value)}"
            if openmetrics and sample.exemplar is not None:
                exemplar = sample.exemplar
                named = sum(len(key) + len(value) for key, value in exemplar.labels.items())
                if named <= EXEMPLAR_CHARACTERS:
                    line += f" # {_labels(exemplar.labels)} {_number(exemplar.value)} {exemplar.at_s:.3f}"
            lines.append(line)
    return ("\n".join([*lines, *(["# EOF"] if openmetrics else [])]) + "\n").encode()


def _labels(labels: Labels) -> str:
    inside = ",".join(f'{name}="{_escape(value, quotes=True)}"' for name, value in labels.items())
    return f"{{{inside}}}" if inside else ""


def _escape(text: str, *, quotes: bool = False) -> str:
    escaped = text.replace("\\", "\\\\").replace("\n", "\\n")
    return escaped.replace('"', '\\"') if quotes else escaped


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(int(value)) if value == int(value) and abs(value) < 1e15 else f"{value:.12g}"


def _quality(text: str) -> float:
    try:
        quality = float(text)
    except ValueError:
        return 0.0
    return quality if 0.0 <= quality <= 1.0 else 0.0
