"""One run of the stream door: opens both ends, and tells what came of it."""

from __future__ import annotations

import contextlib
import logging
import math
import secrets
import signal
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from skerry_agent.client import SharedMemoryClient
from skerry_agent.config import AgentLayout
from skerry_agent.errors import AgentError, DeviceError, InputError
from skerry_agent.link.backoff import Backoff
from skerry_agent.link.mqtt import Connection, LinkEvent, LinkSettings
from skerry_agent.stream.addresses import (
    MqttAddress,
    SensorAddress,
    check_no_loop,
    error_topic,
    parse_sink,
    parse_source,
)
from skerry_agent.stream.door import Asker, Door, DoorCounts, wait_for_model
from skerry_agent.stream.intake import Framing, Intake, IntakeCounts
from skerry_agent.stream.payloads import MESSAGE_SAMPLES, payload_limit
from skerry_agent.stream.rows import KEEPS, Keep, RowQueue
from skerry_agent.stream.sensors import OpenSensor, Sensor, SensorSettings, find_sensor
from skerry_agent.stream.shutdown import Shutdown
from skerry_agent.stream.sinks import LineSink, Sink, TopicSink
from skerry_agent.stream.sources import MqttSource, SensorSource, Source

log = logging.getLogger(__name__)
#: Longest wait between two tries to reach a broker (s): it is nearby, and nobody else's.
RECONNECT_S = 15.0
#: How long the serving process may take to answer a row (s).
ANSWER_S = 5.0
#: Most rows that may wait, and their bytes.
QUEUE_ROWS = 4096
QUEUE_BYTES = 256 << 20
#: Room of a packet beside its payload.
_PACKET_BYTES = 4096


@dataclass(frozen=True)
class StreamSettings:
    """How a stream runs.

    Attributes:
        source: See :mod:`skerry_agent.stream.addresses`.
        sink: See there.
        samples: Whether a topic carries samples; otherwise whole rows. Sensors always give samples.
        hop: Samples between the beginnings of two windows; 0: windows side by side.
        rate_hz: Samples a second; None: the sensor's own, or not known.
        gap_ms: How much later or earlier than expected a sample is a gap; None: two and a half periods.
        speed: Of a recording; 0: as fast as possible.
        deadline_ms: How long after it came a row may take; None: for ever.
        keep: Which rows stay when more come than are answered: "newest", "oldest" or "all"; empty: all of standard
            input, of a plain file and of a recording at full speed, else the newest.
        queue: Rows that may wait.
        qos: Of MQTT, at both ends.
        password_file: File with the password of the user in the addresses.
        ca: File of the authority for mqtts; None: those of the system.
        certificate, key: Files of this side's identity for mqtts, if it needs one.
    """

    source: str
    sink: str
    samples: bool = False
    hop: int = 0
    rate_hz: float | None = None
    gap_ms: float | None = None
    speed: float = 1.0
    deadline_ms: float | None = None
    keep: str = ""
    queue: int = 64
    qos: int = 1
    password_file: Path | None = None
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        """Raises InputError for a setting out of its range."""
        for holds, field, expected, got in (
            (0 <= self.hop <= MESSAGE_SAMPLES, "--hop", f"0 to {MESSAGE_SAMPLES} samples", self.hop),
            (self.rate_hz is None or 0 < self.rate_hz < math.inf, "--rate", "samples a second, above 0", self.rate_hz),
            (self.gap_ms is None or 0 <= self.gap_ms < math.inf, "--gap-ms", "milliseconds, 0 or more", self.gap_ms),
            (0 <= self.speed < math.inf, "--speed", "0 or more", self.speed),
            (
                self.deadline_ms is None or 0 < self.deadline_ms < math.inf,
                "--deadline-ms",
                "milliseconds, above 0",
                self.deadline_ms,
            ),
            (self.keep in ("", *KEEPS), "--keep", "newest, oldest or all", self.keep),
            (1 <= self.queue <= QUEUE_ROWS, "--queue", f"1 to {QUEUE_ROWS} rows", self.queue),
            (self.qos in (0, 1), "--qos", "0 or 1", self.qos),
            ((self.certificate is None) == (self.key is None), "--cert", "together with --key", self.certificate),
        ):
            if not holds:
                raise InputError(field, expected=expected, got=got)


def run_stream(layout: AgentLayout, settings: StreamSettings, *, output: int = 1) -> dict[str, Any]:
    """Stream until the source ends, or SIGTERM or SIGINT.

    Args:
        layout: The device's data.
        settings: How.
        output: Descriptor for ``-``.

    Returns:
        The summary: all counts, "task" and "seconds".

    Raises:
        InputError: A setting, an address or a file that cannot be right.
        DeviceError: No device there, a sensor that cannot be opened, or the output is closed.
        ForbiddenError: The serving process does not let this user in.
    """
    source, sink = parse_source(settings.source), parse_sink(settings.sink)
    if isinstance(source, MqttAddress):
        if isinstance(sink, MqttAddress):
            check_no_loop(source, sink)
        if settings.keep == "all":
            raise InputError("--keep", expected="newest or oldest: a broker does not wait", got="all")
    open_sensor = find_sensor(source.name) if isinstance(source, SensorAddress) else None
    links = {
        end: _link(address, settings)
        for end, address in (("source", source), ("sink", sink))
        if isinstance(address, MqttAddress)
    }
    if not layout.root.is_dir():
        raise DeviceError(f"{layout.root} is no folder", remedy="name the device's with --data-dir")
    shutdown = Shutdown()
    asker = Asker(lambda: SharedMemoryClient.connect(layout.root, timeout=ANSWER_S))
    started = time.monotonic()
    with _signals(shutdown), contextlib.closing(asker):
        model = wait_for_model(asker, shutdown)
        if model is None:
            return {**asdict(IntakeCounts()), **asdict(DoorCounts()), **_ends(None, None, "", started)}
        row_bytes = 4 * math.prod(model.shape)
        if settings.queue * row_bytes > QUEUE_BYTES:
            raise InputError("--queue", expected=f"at most {QUEUE_BYTES // row_bytes} rows", got=settings.queue)
        keep = _keep(settings, source)
        queue = RowQueue(settings.queue, keep=keep)
        framing = Framing(
            windows=settings.samples or isinstance(source, SensorAddress),
            hop=settings.hop,
            rate_hz=settings.rate_hz or 0.0,
            gap_ms=settings.gap_ms,
            deadline_ms=settings.deadline_ms,
        )
        intake = Intake(framing, model.shape, queue)
        if isinstance(source, SensorAddress) and open_sensor is not None:
            wanted = SensorSettings(source.argument, model.shape[0], settings.rate_hz, settings.speed)
            sensor = _opened(open_sensor, wanted, settings.source)
            if sensor.channels != model.shape[0]:
                sensor.close()
                raise InputError(settings.source, expected=f"{model.shape[0]} channels", got=sensor.channels)
            reopen = open_sensor
            feed: Source = SensorSource(
                intake, sensor, reopen=lambda: reopen(wanted), on_end=queue.close, name=settings.source
            )
        else:
            numbers = model.shape[0] * MESSAGE_SAMPLES if settings.samples else math.prod(model.shape)
            feed = MqttSource(intake, links["source"](payload_limit(numbers) + _PACKET_BYTES))
        out: Sink
        if isinstance(sink, MqttAddress):
            topics = (sink.topic, error_topic(sink))
            out = TopicSink(topics, links["sink"](0), qos=settings.qos, keep=keep, shutdown=shutdown)
        else:
            out = LineSink(output, shutdown)
        door = Door(asker, queue, out, shutdown, model=model, on_shape=intake.reshape, on_stop=feed.stop)
        feed.start()
        try:
            door.run()
        finally:
            queue.close()
            feed.stop()
            out.close()
        return {
            **asdict(intake.counts),
            **asdict(door.counts),
            **_ends(queue, out, model.task, started),
        }


def _ends(queue: RowQueue | None, out: Sink | None, task: str, started: float) -> dict[str, Any]:
    return {
        "dropped": queue.dropped if queue else 0,
        "untold": queue.untold if queue else 0,
        "undelivered": out.undelivered if out else 0,
        "task": task,
        "seconds": round(time.monotonic() - started, 3),
    }


def _opened(open_sensor: OpenSensor, wanted: SensorSettings, name: str) -> Sensor:
    """Open a sensor, which may be anybody's code."""
    try:
        return open_sensor(wanted)
    except AgentError:
        raise
    except Exception as error:
        raise DeviceError(f"{name}: {type(error).__name__}: {error}", remedy="check the sensor") from error


def _keep(settings: StreamSettings, source: MqttAddress | SensorAddress) -> Keep:
    for keep in KEEPS:
        if settings.keep == keep:
            return keep
    patient = False
    if isinstance(source, SensorAddress) and source.name == "raw":
        patient = source.argument in ("", "-") or Path(source.argument).is_file()
    elif isinstance(source, SensorAddress) and source.name == "replay":
        patient = not settings.speed
    return "all" if patient else "newest"


@contextlib.contextmanager
def _signals(shutdown: Shutdown) -> Iterator[None]:
    """SIGTERM and SIGINT end the stream, where this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: shutdown.ask()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _link(
    address: MqttAddress, settings: StreamSettings
) -> Callable[[int], Callable[[Callable[[LinkEvent], bool]], Connection]]:
    """Makes connections to a broker: first for the largest packet, then for who hears of it.

    Raises:
        InputError: A file that is named does not hold what it should.
    """
    name = f"{address.host}:{address.port}/{address.topic}"
    credentials = None
    if address.username:
        credentials = (address.username, _password(settings.password_file))
    tls = None
    if address.tls:

        def make_tls() -> ssl.SSLContext:
            context = ssl.create_default_context(cafile=settings.ca)
            if settings.certificate is not None:
                context.load_cert_chain(settings.certificate, settings.key)
            return context

        try:
            make_tls()
        except OSError as error:
            raise InputError("--ca, --cert, --key", expected="PEM files that belong together", got=error) from error
        tls = make_tls

    def of_size(packet_bytes: int) -> Callable[[Callable[[LinkEvent], bool]], Connection]:
        link = LinkSettings(
            name=name,
            host=address.host,
            port=address.port,
            tls=tls,
            client_id=f"skerry-stream-{secrets.token_hex(6)}",
            session_s=0,
            receive_maximum=64,
            filters=(address.topic,) if packet_bytes else (),
            credentials=credentials,
            qos=settings.qos,
            retained=False,
            packet_bytes=packet_bytes,
            at_once=True,
        )
        return lambda post: Connection(link, post=post, backoff=Backoff(None, ceiling_s=RECONNECT_S))

    return of_size


def _password(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        return path.read_text().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("--password-file", expected="a file with the password", got=error) from error
