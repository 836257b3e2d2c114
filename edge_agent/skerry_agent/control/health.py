"""Health reports: what serving did in one period. Differences of counters are pure; nothing here does I/O."""

from __future__ import annotations

from dataclasses import dataclass

from skerry_contract.v1.agent_local_pb2 import ServingStatus
from skerry_contract.v1.telemetry_pb2 import DeviceConditions, HealthReport

#: Counters of ServingStatus of which a report has the difference over its period.
COUNTERS = ("requests", "errors", "labelled", "labelled_correct")


def increase(before: int, now: int) -> int:
    """What a counter counted between two looks; a lower value means that it began anew at 0."""
    return now - before if now >= before else now


@dataclass
class HealthMeter:
    """Turns the running totals of serving into reports.

    Attributes:
        boot_id: Of the control process.
        last_s: When the last report was made (monotonic seconds).
        totals: Counters at that time.
    """

    boot_id: str
    last_s: float
    totals: dict[str, int]

    def report(
        self,
        status: ServingStatus | None,
        now_s: float,
        *,
        outbox_depth: int,
        temperature_c: float,
        training: bool,
        conditions: DeviceConditions | None = None,
    ) -> HealthReport:
        """The report for the period since the last one.

        Args:
            status: Of serving; None if it does not answer: its counters are then reported as 0, to be caught up by
                the next report.
            now_s: Monotonic seconds.
            outbox_depth: Messages that wait.
            temperature_c: Hottest thermal zone; 0 if there is none.
            training: Whether the training process works on a campaign.
            conditions: What decides whether the device may train.
        """
        report = HealthReport(
            boot_id=self.boot_id,
            period_ms=max(0, round((now_s - self.last_s) * 1000)),
            outbox_depth=outbox_depth,
            temperature_c=temperature_c,
            training=training,
            conditions=conditions,
        )
        self.last_s = now_s
        if status is None:
            return report
        for name in COUNTERS:
            now = getattr(status, name)
            setattr(report, name, increase(self.totals.get(name, 0), now))
            self.totals[name] = now
        report.release_id = status.release_id
        report.variant = status.variant
        report.latency_p50_us = status.latency_p50_us
        report.latency_p99_us = status.latency_p99_us
        report.rss_bytes = status.rss_bytes
        return report
