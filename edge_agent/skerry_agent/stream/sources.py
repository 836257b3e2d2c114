"""Where rows come from: a topic of a broker or a sensor, each on threads of its own until it is stopped."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from typing import Protocol

from skerry_agent.errors import DeviceError, InputError
from skerry_agent.link.mqtt import Connection, Incoming, LinkEvent
from skerry_agent.stream.intake import Intake
from skerry_agent.stream.sensors import Sensor, SensorEndedError, SensorGapError
from skerry_agent.stream.verdicts import wait_s

log = logging.getLogger(__name__)
#: How long a source may take to stop (s); a sensor in a foreign driver that takes longer is left to the end of the
#: process.
STOP_S = 3.0


class Source(Protocol):
    """A source that was made but not started."""

    def start(self) -> None:
        """Begin to feed."""
        ...

    def stop(self) -> None:
        """Feed nothing more; threads are joined."""
        ...


class MqttSource:
    """Messages of a topic. What is published while there is no connection is not seen: a stream is about now."""

    def __init__(self, intake: Intake, connect: Callable[[Callable[[LinkEvent], bool]], Connection]) -> None:
        """Nothing happens before :meth:`start`.

        Args:
            intake: Takes the payloads, on the connection's thread.
            connect: Makes the connection that posts to a function.
        """
        self._intake = intake
        self._connection = connect(self._post)

    def start(self) -> None:
        """See :class:`Source`."""
        self._connection.start()

    def stop(self) -> None:
        """See :class:`Source`."""
        self._connection.stop()

    def _post(self, event: LinkEvent) -> bool:
        if isinstance(event, Incoming):
            self._intake.payload(event.payload)
            event.acknowledge()
        return True


class SensorSource:
    """Reads a sensor on a thread; one that breaks is opened again, after a while, for as long as it takes."""

    def __init__(
        self, intake: Intake, sensor: Sensor, *, reopen: Callable[[], Sensor], on_end: Callable[[], None], name: str
    ) -> None:
        """Nothing happens before :meth:`start`.

        Args:
            intake: Takes the samples.
            sensor: An open one; closed by this source.
            reopen: Opens it anew; raises DeviceError, InputError or OSError.
            on_end: Called on the source's thread when there are no more samples.
            name: For logs.
        """
        self._intake, self._sensor = intake, sensor
        self._reopen, self._on_end, self._name = reopen, on_end, name
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sensor", daemon=True)

    def start(self) -> None:
        """See :class:`Source`."""
        self._thread.start()

    def stop(self) -> None:
        """See :class:`Source`."""
        self._stopping.set()
        if self._thread.ident is None:
            self._sensor.close()
            return
        self._thread.join(STOP_S)
        if self._thread.is_alive():
            log.warning("%s did not stop within %g s", self._name, STOP_S)

    def _run(self) -> None:
        sensor: Sensor | None = self._sensor
        failures = 0
        while not self._stopping.is_set():
            try:
                if sensor is None:
                    sensor = self._reopen()
                    log.info("%s: opened again", self._name)
                    self._intake.restart()
                samples = sensor.read()
                failures = 0
                if len(samples):
                    self._intake.samples(samples)
            except SensorGapError:
                self._intake.restart()
            except SensorEndedError:
                log.info("%s: no more samples", self._name)
                break
            except InputError as error:
                self._intake.refuse(error)
                failures += 1
            except Exception as error:  # a foreign driver may raise anything
                failures += 1
                said = str(error) if isinstance(error, DeviceError | OSError) else f"{type(error).__name__}: {error}"
                log.warning("%s: %s; opened again", self._name, said)
                self._close(sensor)
                sensor = None
            if failures:
                self._stopping.wait(wait_s(failures, random.random()))
        self._close(sensor)
        self._on_end()

    def _close(self, sensor: Sensor | None) -> None:
        try:
            if sensor is not None:
                sensor.close()
        except Exception as error:  # a foreign driver may raise anything
            log.warning("%s: closing: %s: %s", self._name, type(error).__name__, error)
