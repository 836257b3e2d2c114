"""Metrics of the device, from the counters of the engine when they are asked for: nothing is paid per request."""

from __future__ import annotations

from collections.abc import Callable

from skerry_agent.engine.counters import LATENCY_BOUNDS, Exemplar, FormValues
from skerry_agent.engine.personal import PersonalStatus
from skerry_agent.engine.status import EngineStatus
from skerry_agent.serving.exposition import (
    OPENMETRICS,
    PROMETHEUS,
    Family,
    Sample,
    SampleExemplar,
    counter,
    gauge,
    histogram_samples,
    render,
    wants_openmetrics,
)
from skerry_agent.serving.labels import LabelDesk

#: Gives the text and its content type, for the value of an Accept header.
Renderer = Callable[[str], tuple[bytes, str]]

_BOUNDS_S = tuple(bound / 1e6 for bound in LATENCY_BOUNDS)


def create_renderer(status: Callable[[], EngineStatus], labels: LabelDesk, rss_bytes: Callable[[], int]) -> Renderer:
    """A function that gives the text of all metrics.

    Args:
        status: Of the engine.
        labels: Counts labels.
        rss_bytes: Resident memory of the process.
    """

    def text(accept: str) -> tuple[bytes, str]:
        openmetrics = wants_openmetrics(accept)
        families = describe(status(), labels.labelled, labels.correct, rss_bytes())
        return render(families, openmetrics=openmetrics), OPENMETRICS if openmetrics else PROMETHEUS

    return text


def describe(status: EngineStatus, labelled: int, correct: int, rss_bytes: int) -> list[Family]:
    """All metric families of a moment."""
    counters, sensors = status.counters, status.sensors
    active = {"release": status.release_id, "variant": status.variant, "backend": status.backend}
    families = [
        gauge("skerry_release_active", "1 for the release that answers.", [(active, 1)] if status.release_id else []),
        gauge("skerry_ladder_rung", "Number of the network that answers; 0 is the release's own.", [({}, status.rung)]),
        counter("skerry_requests", "Answered requests.", [({}, counters.requests)]),
        counter("skerry_rows", "Answered rows.", [({}, counters.rows)]),
        counter("skerry_errors", "Requests that failed through no fault of their own.", [({}, counters.errors)]),
        counter("skerry_labels", "Labels joined to requests.", [({}, labelled)]),
        counter("skerry_labels_correct", "Labels that agree with the prediction.", [({}, correct)]),
        counter("skerry_refused_requests", "Requests refused for their own fault.", _by_reason(counters.refused)),
        counter("skerry_shed_requests", "Requests that were not computed.", _by_reason(counters.shed)),
        counter("skerry_late_requests", "Requests that were answered after their deadline.", [({}, counters.late)]),
        gauge("skerry_requests_in_flight", "Requests that are computed or wait.", [({}, status.in_flight)]),
        Family(
            "skerry_latency_seconds",
            "histogram",
            "Time from a call to its answer, without the door, by what answered.",
            [sample for form in counters.forms for sample in _histogram(form)],
        ),
        gauge("skerry_resident_memory_bytes", "Resident memory.", [({}, rss_bytes)]),
        *_personal(status.personal),
    ]
    if status.deadline_us != float("inf"):
        families.append(
            gauge("skerry_deadline_seconds", "How long an answer may take.", [({}, status.deadline_us / 1e6)])
        )
    if sensors.temperature_c is not None:
        families.append(gauge("skerry_temperature_celsius", "Hottest zone.", [({}, sensors.temperature_c)]))
    if sensors.power_w is not None:
        families.append(gauge("skerry_power_watts", "Power of the device.", [({}, sensors.power_w)]))
    if sensors.power_mode:
        families.append(gauge("skerry_power_mode", "1 for the power mode.", [({"mode": sensors.power_mode}, 1)]))
    return families


def _personal(status: PersonalStatus) -> list[Family]:
    """Whether the device's own parameters answer, and how good they were when they were compared with the release."""
    accuracies = [
        ({"parameters": "release"}, status.global_accuracy),
        ({"parameters": "own"}, status.personal_accuracy),
    ]
    return [
        gauge("skerry_personal_active", "1 while own parameters answer.", [({}, int(status.state == "answers"))]),
        gauge(
            "skerry_personal_accuracy",
            "Share of this device's validation samples that was right.",
            accuracies if status.examples else [],
        ),
    ]


def _by_reason(counts: dict[str, int]) -> list[tuple[dict[str, str], float]]:
    return [({"reason": reason}, count) for reason, count in counts.items()]


def _histogram(values: FormValues) -> list[Sample]:
    form = values.form
    return histogram_samples(
        {"variant": form.variant, "rung": str(form.rung), "backend": form.backend},
        _BOUNDS_S,
        values.buckets,
        values.latency_sum_us / 1e6,
        [_exemplar(exemplar) for exemplar in values.exemplars],
    )


def _exemplar(exemplar: Exemplar | None) -> SampleExemplar | None:
    if exemplar is None:
        return None
    return SampleExemplar({"request_id": exemplar.request_id}, exemplar.latency_us / 1e6, exemplar.at_s)
