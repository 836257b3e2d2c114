"""Prometheus metrics, read from the counters when they are asked for: nothing is paid per request."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from skerry_agent.engine.counters import LATENCY_BOUNDS
from skerry_agent.engine.engine import EngineStatus
from skerry_agent.serving.labels import LabelDesk


class ServingCollector(Collector):
    """Turns a status into metric families.

    Args:
        status: Gives the status of the engine.
        labels: Counts labels.
        rss_bytes: Gives the resident memory of the process.
    """

    def __init__(self, status: Callable[[], EngineStatus], labels: LabelDesk, rss_bytes: Callable[[], int]) -> None:
        self._status = status
        self._labels = labels
        self._rss_bytes = rss_bytes

    def collect(self) -> Iterator[Metric]:
        """See ``prometheus_client``."""
        status = self._status()
        counters = status.counters
        active = GaugeMetricFamily(
            "skerry_release_active", "1 for the release that answers.", labels=("release", "variant", "backend")
        )
        if status.release_id:
            active.add_metric((status.release_id, status.variant, status.backend), 1)
        yield active
        for name, text, value in (
            ("skerry_requests", "Answered requests.", counters.requests),
            ("skerry_rows", "Answered rows.", counters.rows),
            ("skerry_errors", "Requests that failed through no fault of their own.", counters.errors),
            ("skerry_labels", "Labels joined to requests.", self._labels.labelled),
            ("skerry_labels_correct", "Labels that agree with the prediction.", self._labels.correct),
        ):
            yield CounterMetricFamily(name, text, value=value)
        refused = CounterMetricFamily(
            "skerry_refused_requests", "Requests refused for their own fault.", labels=("reason",)
        )
        for reason, count in counters.refused.items():
            refused.add_metric((reason,), count)
        yield refused
        cumulative = list(itertools.accumulate(counters.buckets))
        bounds = [f"{bound / 1e6:g}" for bound in LATENCY_BOUNDS] + ["+Inf"]
        yield HistogramMetricFamily(
            "skerry_latency_seconds",
            "Time from a validated call to its answer, without the door.",
            buckets=list(zip(bounds, cumulative, strict=True)),
            sum_value=counters.latency_sum_us / 1e6,
        )
        yield GaugeMetricFamily("skerry_resident_memory_bytes", "Resident memory.", value=self._rss_bytes())


def create_renderer(collector: ServingCollector) -> Callable[[], tuple[bytes, str]]:
    """A function that gives the text of all metrics and its content type."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    return lambda: (generate_latest(registry), CONTENT_TYPE_LATEST)
